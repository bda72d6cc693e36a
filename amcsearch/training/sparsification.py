"""Training-time pruning: hooks of the training loop that mask weights or units, or train gates to a target.

``MaskedTraining`` runs the network on W * M, and a schedule says what M is from step to step. What is out of use stays
exactly 0 under momentum and weight decay, because masks are applied again after every step of the optimiser (unless the
schedule lets weights out of use live on).

``MaskedUnits`` masks channels and heads. A unit's mask is multiplied into everything that reads it. Its weight is 1 and
its gradient dL/dM, so that the rules for single weights hold word for word: RigL grows the units of the largest
|dL/dM|, movement adds up -rate * dL/dM (Sanh et al. 2020, arXiv 2005.07683, one score a block), surgery lets closed
units train by the gradient they would have open. What reads a unit starts at 0 when the unit is opened again, unless
the schedule keeps what is closed. A schedule counts units, but what a unit costs depends on the widths of its
neighbours, and a device has a grid. As soon as a schedule is down to its count, ``finish`` turns its masks into those
that meet the target exactly, and the remaining training runs on just the network that will be left.

``GatedTraining`` runs the network on gated weights, and multipliers push the gates to a target:

    penalty = l1 * (c - t) + l2 * (c - t)^2,   l1 += rate * (c - t),   l2 += rate * (c - t)^2

c is the expected share of the cost that is left, t the share asked for; the weights descend, the multipliers ascend.
Wang et al., Structured Pruning of Large Language Models, 2020 (arXiv 1910.04732), as in CoFi: Xia et al. 2022
(arXiv 2204.00408). t falls linearly from 1 to its end during the warm-up. Where c is not differentiable, the multiplier
is the weight of a method's own penalty:  mu = mu_0 * exp(l1 + DAMPING * (c - t)), within exp(-LIMIT … LIMIT).
Departure: l2 begins at DAMPING, not at 0: a multiplier alone integrates, and swings about its target.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.graph import Batch
from amcsearch.methods import Gate, GateMethod, Masks, MaskSchedule, Moment, Plan, UnitSlices

__all__ = [
    "DAMPING",
    "LIMIT",
    "FixedMasks",
    "GatedTraining",
    "Lagrangian",
    "MaskedTraining",
    "MaskedUnits",
    "bake",
    "target_at",
]

LIMIT: Final = 8.0
DAMPING: Final = 10.0


def target_at(progress: float, target: float, warmup: float) -> float:
    """Share of the cost asked for when ``progress`` of the training is over."""
    return target if progress >= warmup else 1.0 + (target - 1.0) * progress / warmup


@dataclass
class Lagrangian:
    """Multipliers of one constraint."""

    rate: float
    linear: float = 0.0
    square: float = DAMPING

    def penalty(self, share: Tensor, target: float) -> Tensor:
        """Return what joins the loss, a scalar, differentiable in ``share``."""
        gap = share - target
        return self.linear * gap + self.square * gap.square()

    def strength(self, share: float, target: float) -> float:
        """Return what a method's own penalty is multiplied by."""
        return math.exp(min(max(self.linear + DAMPING * (share - target), -LIMIT), LIMIT))

    def ascend(self, share: float, target: float) -> None:
        """Climb; ``linear`` stays within what ``strength`` can use."""
        gap = share - target
        self.linear = min(max(self.linear + self.rate * gap, -LIMIT), LIMIT)
        self.square += self.rate * gap * gap


Share = Callable[[Mapping[str, Tensor]], Tensor]
"""Densities by item → share of the dense cost that is expected to stay, a scalar; differentiable."""


class GatedTraining:
    """The ``TrainingHook`` of a gate: ``target`` is the share of the dense cost to reach, as ``share`` measures it."""

    def __init__(self, gate: Gate, method: GateMethod, share: Share, target: float, steps: int) -> None:
        self._gate, self._method, self._share, self._target, self._steps = gate, method, share, target, steps
        self._optimizer = gate.optimizer()
        self._lagrangian = Lagrangian(method.multiplier_rate)
        self._now, self._asked = torch.ones(()), 1.0

    def forward(self, model: nn.Module, batch: Batch, step: int) -> Any:
        """Run the network on its gated weights."""
        progress = step / self._steps
        self._gate.begin_step(progress)
        self._asked = target_at(progress, self._target, self._method.target_warmup)
        self._optimizer.zero_grad(set_to_none=True)
        with self._gate.noise(model):
            return functional_call(model, self._gate.tensors(), batch.args, dict(batch.kwargs))

    def penalty(self) -> Tensor | float:
        """Return the Lagrangian's term, or the gate's own penalty by the multiplier."""
        self._now = self._share(self._gate.density())
        if self._gate.drive == "expected":
            return self._lagrangian.penalty(self._now, self._asked)
        if self._gate.drive == "fixed":
            return self._gate.penalty()
        return self._gate.penalty() * self._lagrangian.strength(float(self._now), self._asked)

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Step the network and the gate; the multipliers climb."""
        del step
        optimizer.step()
        self._optimizer.step()
        self._gate.end_step()
        self._lagrangian.ascend(float(self._now.detach()), self._asked)

    def clock(self, step: int) -> int:
        """As it is."""
        return step

    def state(self) -> dict[str, Any]:
        """Gate, its optimiser and the multipliers."""
        multipliers = vars(self._lagrangian)
        return {"gate": self._gate.state_dict(), "optimizer": self._optimizer.state_dict(), **multipliers}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self._gate.load_state_dict(state["gate"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name in vars(self._lagrangian):
            setattr(self._lagrangian, name, state[name])


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

    def forward(self, model: nn.Module, batch: Batch, step: int) -> Any:
        """Run the network on its masked weights."""
        self._model = model
        if not self.masks:
            dense = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self._weights.items()}
            self.masks = dict(dense)
            moment = self._moment(step, {})
            masks = self._finished(self._schedule.begin(moment), moment)
            self._take(masks if masks is not None else dense)
        return self._run(model, batch)

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
        masks = self._finished(self._schedule.masks(moment), moment)
        if masks is not None:
            self._take(masks, optimizer)
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
        devices = {name: weight.device for name, weight in self._weights.items()}
        self.masks = {name: mask.to(devices[name]) for name, mask in state["masks"].items()}
        self._memory = {name: value.to(devices[name]) for name, value in state["memory"].items()}
        self._early = state["early"]

    def _moment(self, step: int, gradients: Mapping[str, Tensor]) -> Moment:
        weights = {name: weight.detach() for name, weight in self._weights.items()}
        return Moment(step, self._plan, weights, self.masks, gradients, cache(self._scores), self._memory)

    def _finished(self, masks: Masks | None, moment: Moment) -> Masks | None:
        """Return the masks to be used in place of those that the schedule found."""
        del moment
        return masks

    def _take(self, masks: Masks, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Use new masks; weights that come into use start without the optimiser's memory of them."""
        for name, mask in masks.items():
            if optimizer is not None and not self._schedule.keeps_pruned:
                self._open(name, mask & ~self.masks[name], optimizer)
        self.masks = dict(masks)
        self._apply()

    def _run(self, model: nn.Module, batch: Batch) -> Any:
        """Run on the masked weights, whose gradients are to be had afterwards in ``_used``."""
        self._used = {name: weight * self.masks[name] for name, weight in self._weights.items()}
        for used in self._used.values():
            used.requires_grad_().retain_grad()  # a frozen weight is masked by its gradient too, and stays as it is
        return functional_call(model, self._used, batch.args, dict(batch.kwargs))

    def _assign(self, gradients: Mapping[str, Tensor]) -> None:
        """Give the weights the gradients that the optimiser is to follow."""
        for name, weight in self._weights.items():
            if not weight.requires_grad:
                continue
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


class MaskedUnits(MaskedTraining):
    """The ``TrainingHook`` of a mask schedule on units; ``masks`` are (n_units,) a group.

    ``finish`` maps masks of ``plan.n_keep`` units, and what the schedule ranks by, to the masks that are used.
    """

    def __init__(
        self,
        slices: UnitSlices,
        schedule: MaskSchedule,
        plan: Plan,
        scores: Callable[[], Mapping[str, Tensor]],
        finish: Callable[[Masks, Mapping[str, Tensor]], Masks] = lambda masks, _: masks,
    ) -> None:
        all_open = {name: torch.ones(count, device=slices.device) for name, count in slices.counts.items()}
        super().__init__(all_open, schedule, plan, scores)
        self._slices, self._finish = slices, finish

    def _finished(self, masks: Masks | None, moment: Moment) -> Masks | None:
        if masks is None or sum(int(mask.sum()) for mask in masks.values()) != moment.plan.n_keep:
            return masks
        return self._finish(masks, self._schedule.ranks(moment))

    def _run(self, model: nn.Module, batch: Batch) -> Any:
        self._used = {name: mask.float().requires_grad_() for name, mask in self.masks.items()}
        tensors = self._slices.scaled(self._used, straight_through=self._schedule.dense_gradient)
        return functional_call(model, tensors, batch.args, dict(batch.kwargs))

    def _assign(self, gradients: Mapping[str, Tensor]) -> None:
        """Leave the network's gradients as they are: the masks are in them."""

    def _open(self, name: str, grown: Tensor, optimizer: torch.optim.Optimizer) -> None:
        for parameter, dim, positions in self._slices.readers(name, grown):
            with torch.no_grad():
                parameter.index_fill_(dim, positions, 0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.index_fill_(dim, positions, 0)

    def _apply(self) -> None:
        """Leave the weights of closed units: nothing reads them."""
