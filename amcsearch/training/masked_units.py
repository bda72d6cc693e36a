"""Masked training of whole units: a mask schedule opens and closes channels and heads while the network trains.

A unit's mask is multiplied into everything that reads it. Its weight is 1 and its gradient dL/dM, so that the rules for
single weights hold word for word: RigL grows the units of the largest |dL/dM|, movement adds up -rate * dL/dM (Sanh et
al. 2020, arXiv 2005.07683, one score a block), surgery lets closed units train by the gradient they would have open.
What reads a unit starts at 0 when the unit is opened again, unless the schedule keeps what is closed.

A schedule counts units, but what a unit costs depends on the widths of its neighbours, and a device has a grid. So as
soon as a schedule is down to its count, ``finish`` turns its masks into those that meet the target exactly, and the
rest of the training runs on just the network that will be left.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan
from amcsearch.methods.unit_slices import UnitSlices
from amcsearch.training.masked import MaskedTraining

__all__ = ["MaskedUnits"]


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
        ones = {name: torch.ones(count, device=slices.device) for name, count in slices.counts.items()}
        super().__init__(ones, schedule, plan, scores)
        self._slices, self._finish = slices, finish

    def _finished(self, found: Masks | None, moment: Moment) -> Masks | None:
        if found is None or sum(int(mask.sum()) for mask in found.values()) != moment.plan.n_keep:
            return found
        return self._finish(found, self._schedule.ranks(moment))

    def _run(self, model: nn.Module, inputs: Tensor) -> Any:
        self._used = {name: mask.float().requires_grad_() for name, mask in self.masks.items()}
        tensors = self._slices.scaled(self._used, straight_through=self._schedule.dense_gradient)
        return functional_call(model, tensors, (inputs,))

    def _assign(self, gradients: Mapping[str, Tensor]) -> None:
        """Leave the network's gradients as they are: the masks are in them."""

    def _open(self, name: str, grown: Tensor, optimizer: torch.optim.Optimizer) -> None:
        for parameter, dim, places in self._slices.readers(name, grown):
            with torch.no_grad():
                parameter.index_fill_(dim, places, 0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.index_fill_(dim, places, 0)

    def _apply(self) -> None:
        """Leave the weights of closed units: nothing reads them."""
