"""Hooks of a training: what takes part in every step, keeps its state between epochs, and watches over its epochs."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch

__all__ = ["PlainTraining", "StateStore", "TrainingHook", "Watch"]


class TrainingHook(Protocol):
    """Takes part in every step of a training; steps count from 0 over the whole training."""

    def forward(self, model: nn.Module, batch: Batch, step: int) -> Any:
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

    def forward(self, model: nn.Module, batch: Batch, step: int) -> Any:
        """As the network itself."""
        del step
        return batch.through(model)

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


Judge = Callable[[nn.Module], tuple[float, ...]]
"""Judges a network in the middle of its training; of two values the smaller is better."""


class Watch:
    """Judges a training after every epoch: its best network is kept, and it ends where it no longer gets better.

    The network before the training is a candidate as well. Of equal ones the earlier is kept.

    Args:
        judge: of a network; it leaves the network in the modes it was in.
        keep_best: the training ends with the best network, not with the last.
        patience: the training ends after so many epochs in a row that gave no better one; None never ends it.

    Raises:
        BadInputError: a patience below 1.
    """

    def __init__(self, judge: Judge, *, keep_best: bool = True, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise BadInputError(f"patience = {patience}, must be at least 1 epoch")
        self.keep_best, self.patience = keep_best, patience
        self.values: dict[int, tuple[float, ...]] = {}
        """What each network was judged as, by its epoch counted from 1; 0 is the network before the training."""
        self._judge = judge
        self._weights: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The epoch of the best network, counted from 1; 0 is the network before the training."""
        return min(self.values, key=lambda epoch: (self.values[epoch], epoch), default=0)

    def see(self, model: nn.Module, epoch: int) -> None:
        """Judge the network after an epoch, counted from 1; 0 comes before the training."""
        self.values[epoch] = self._judge(model)
        if self.keep_best and epoch == self.best_epoch:
            self._weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @property
    def is_over(self) -> bool:
        """Whether the training is to end."""
        return self.patience is not None and sum(epoch > self.best_epoch for epoch in self.values) >= self.patience

    def finish(self, model: nn.Module) -> None:
        """Give the network its best weights, if these are to be kept."""
        if self.keep_best and self.values:
            model.load_state_dict(self._weights)

    def state(self) -> dict[str, Any]:
        """Return what the next epoch depends on."""
        return {"values": self.values, "weights": self._weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.values = {int(epoch): tuple(map(float, value)) for epoch, value in state["values"].items()}
        self._weights = state["weights"]
