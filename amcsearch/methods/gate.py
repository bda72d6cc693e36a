"""The contract of gates: a differentiable mask and a penalty in training, densities and an order after it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Trace

__all__ = ["Gate", "GateMethod"]


class Gate(nn.Module, ABC):
    """A gate of one network in training; its parameters are what it learns, its state dict what it is.

    An *item* is a group of channels (its method's ``granularity`` is units: one gate a unit, shared by all that is
    coupled) or a tensor (weights). Promise: ``tensors`` are differentiable in the network's parameters, and in the
    gate's through them or through ``penalty``; only ``tensors`` and ``noise`` draw random numbers, from torch's global
    generator; ``final`` and ``scores`` are functions of the state.

    ``drive`` says how a target is reached: ``expected`` gates are pushed by the difference of ``density`` (which is
    differentiable) from it; of a ``strength`` gate the weight of ``penalty`` is raised and lowered; ``fixed`` gates
    are left alone.
    """

    drive: ClassVar[Literal["expected", "strength", "fixed"]]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights to train by, by state-dict name: one draw where the gate is random."""

    def noise(self, model: nn.Module) -> AbstractContextManager[object]:
        """While this is entered, layers of ``model`` add the noise that is not in ``tensors``."""
        del model
        return nullcontext()

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return the method's own penalty, a scalar."""

    @abstractmethod
    def density(self) -> Mapping[str, Tensor]:
        """Return the expected share that is open: (n_units,) a group, or a scalar a tensor."""

    @abstractmethod
    def scores(self) -> Mapping[str, Tensor]:
        """Return what is worth keeping, largest first: (n_units,) a group, or the shape of a tensor."""

    @abstractmethod
    def final(self) -> dict[str, Tensor]:
        """Return the weights to evaluate by, without noise."""

    def begin_step(self, progress: float) -> None:
        """Take the share of the training that is over: temperatures cool, penalties warm up."""
        del progress

    def end_step(self) -> None:
        """Follow a step of the gate's optimiser: keep parameters within their bounds."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of what the gate learns."""


@dataclass(frozen=True)
class GateMethod(ABC):
    """Hyper-parameters of a gate, and those of reaching a target, which every gate has.

    ``target_warmup`` is the share of the training over which the target falls from dense to itself; ``multiplier_rate``
    how fast the Lagrange multipliers climb.

    Raises:
        BadInputError: a share outside [0, 1], or a rate that is not above 0.
    """

    granularity: ClassVar[Literal["units", "weights"]]
    learning_rate: float = 0.05
    target_warmup: float = 0.5
    multiplier_rate: float = 0.1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0.0 <= self.target_warmup <= 1.0:
            raise BadInputError(f"{name}: target_warmup = {self.target_warmup}, must be from 0 to 1")
        for field in ("learning_rate", "multiplier_rate"):
            if not getattr(self, field) > 0.0:
                raise BadInputError(f"{name}: {field} = {getattr(self, field)}, must be above 0")

    @abstractmethod
    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """Return the gate of a network that is to be trained on so many samples; the network is left as it is.

        Raises:
            BadInputError: the network has nothing that this gate can close.
        """
