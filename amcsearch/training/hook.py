"""Hooks of a training: what takes part in every step, and what keeps its state between epochs."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["PlainTraining", "StateStore", "TrainingHook"]


class TrainingHook(Protocol):
    """Takes part in every step of a training; steps count from 0 over the whole training."""

    def forward(self, model: nn.Module, inputs: Tensor, step: int) -> Any:
        """Return the network's output for a batch, by weights of the hook's choice."""
        ...

    def penalty(self) -> Tensor | float:
        """Return what joins the loss: a scalar tensor, or 0.0."""
        ...

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Follow the backward pass of a step; the optimiser steps only if this asks it to."""
        ...

    def clock(self, step: int) -> int:
        """Return the step whose learning rate this step has."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that decides what comes next, as tensors and plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        ...


class StateStore(Protocol):
    """Keeps the state of a training between epochs, so that a killed one goes on to the same weights."""

    def load(self) -> dict[str, Any] | None:
        """Return the state saved last; None where there is none."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state, whole or not at all."""
        ...


class PlainTraining:
    """The hook that changes nothing."""

    def forward(self, model: nn.Module, inputs: Tensor, step: int) -> Any:
        """As the network itself."""
        del step
        return model(inputs)

    def penalty(self) -> Tensor | float:
        """None."""
        return 0.0

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Step."""
        del step
        optimizer.step()

    def clock(self, step: int) -> int:
        """As it is."""
        return step

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""
        del state
