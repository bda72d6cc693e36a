"""Masked training: the network runs on W * M, and a schedule says what M is from step to step.

What is out of use stays exactly 0 under momentum and weight decay, because masks are applied again after every step of
the optimiser (unless the schedule lets weights out of use live on).
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan

__all__ = ["FixedMasks", "MaskedTraining", "bake"]


class FixedMasks(MaskSchedule):
    """Masks that are known: fine-tuning after pruning."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks

    def begin(self, moment: Moment) -> Masks:
        """Return the masks."""
        del moment
        return self._masks

    def masks(self, moment: Moment) -> None:
        """Leave them."""
        del moment


def bake(model: nn.Module, masks: Masks) -> None:
    """Write W * M into the network's own tensors, parameters or buffers."""
    with torch.no_grad():
        for name, mask in masks.items():
            path, _, leaf = name.rpartition(".")
            tensor: Tensor = getattr(model.get_submodule(path), leaf)
            tensor.masked_fill_(~mask.to(tensor.device), 0)


class MaskedTraining:
    """The ``TrainingHook`` of a mask schedule.

    ``weights`` are parameters of the network that is trained, by name; ``scores`` asks the criterion. After training,
    ``masks`` are the last ones and ``bake`` makes the network theirs.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        schedule: MaskSchedule,
        plan: Plan,
        scores: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self.masks: dict[str, Tensor] = {}
        self._weights, self._schedule, self._plan, self._scores = weights, schedule, plan, scores
        self._memory: dict[str, Tensor] = {}
        self._early: dict[str, Any] | None = None  # the network to be rewound to
        self._used: dict[str, Tensor] = {}
        self._model: nn.Module | None = None

    def forward(self, model: nn.Module, inputs: Tensor, step: int) -> Any:
        """Run the network on its masked weights."""
        self._model = model
        if not self.masks:
            ones = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self._weights.items()}
            self.masks = dict(ones)
            moment = self._moment(step, {})
            found = self._finished(self._schedule.begin(moment), moment)
            self._take(found if found is not None else ones)
        return self._run(model, inputs)

    def penalty(self) -> Tensor | float:
        """None."""
        return 0.0

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Ask the schedule, then step."""
        zeros = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        gradients = {name: used.grad if used.grad is not None else zeros[name] for name, used in self._used.items()}
        if self._schedule.remembers(step, self._plan) and self._model is not None:
            self._early = copy.deepcopy(self._model.state_dict())
        moment = self._moment(step, gradients)
        found = self._finished(self._schedule.masks(moment), moment)
        if found is not None:
            self._take(found, optimizer)
        if self._schedule.rewinds(step, self._plan):
            self._rewind(optimizer)
        if self._schedule.skips(step, self._plan):
            return
        self._assign(gradients)
        optimizer.step()
        self._apply()

    def clock(self, step: int) -> int:
        """As the schedule's."""
        return self._schedule.clock(step, self._plan)

    def state(self) -> dict[str, Any]:
        """Masks, memory and the early network."""
        return {"masks": self.masks, "memory": self._memory, "early": self._early}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        places = {name: weight.device for name, weight in self._weights.items()}
        self.masks = {name: mask.to(places[name]) for name, mask in state["masks"].items()}
        self._memory = {name: value.to(places[name]) for name, value in state["memory"].items()}
        self._early = state["early"]

    def _moment(self, step: int, gradients: Mapping[str, Tensor]) -> Moment:
        weights = {name: weight.detach() for name, weight in self._weights.items()}
        return Moment(step, self._plan, weights, self.masks, gradients, cache(self._scores), self._memory)

    def _finished(self, found: Masks | None, moment: Moment) -> Masks | None:
        """Return the masks to be used in place of those that the schedule found."""
        del moment
        return found

    def _take(self, masks: Masks, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Use new masks; weights that come into use start without the optimiser's memory of them."""
        for name, mask in masks.items():
            if optimizer is not None and not self._schedule.keeps_pruned:
                self._open(name, mask & ~self.masks[name], optimizer)
        self.masks = dict(masks)
        self._apply()

    def _run(self, model: nn.Module, inputs: Tensor) -> Any:
        """Run on the masked weights, whose gradients are to be had afterwards in ``_used``."""
        self._used = {name: weight * self.masks[name] for name, weight in self._weights.items()}
        for used in self._used.values():
            used.retain_grad()
        return functional_call(model, self._used, (inputs,))

    def _assign(self, gradients: Mapping[str, Tensor]) -> None:
        """Give the weights the gradients that the optimiser is to follow."""
        for name, weight in self._weights.items():
            dense = self._schedule.dense_gradient
            weight.grad = gradients[name] if dense else gradients[name] * self.masks[name]

    def _open(self, name: str, grown: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Forget what the optimiser remembers of weights that come into use."""
        for value in optimizer.state.get(self._weights[name], {}).values():
            if isinstance(value, Tensor) and value.shape == grown.shape:
                value[grown] = 0

    def _apply(self) -> None:
        """Put the masks on the weights."""
        if not self._schedule.keeps_pruned:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.mul_(self.masks[name])

    def _rewind(self, optimizer: torch.optim.Optimizer) -> None:
        if self._model is not None and self._early is not None:
            self._model.load_state_dict(self._early)
            optimizer.state.clear()
            self._apply()
