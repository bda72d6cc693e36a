"""Optimal Brain Compression by channels: remove the channel that costs least after a refit, one after another.

With B = G^-1 (damped) of a reader's inputs, for the columns S of a unit:

    score(S) = tr(W_S (B_SS)^-1 W_S^T);   W <- W - W_S (B_SS)^-1 B_S,:;   B <- B - B_:,S (B_SS)^-1 B_S,:

The scores add up to the exact refit error of everything removed so far, so ONE pass gives the order, the error and the
weights of every kept count: W after the removal of R is W_K + W_R G_RK G_KK^-1, the rule ``least_squares``.

Frantar & Alistarh, Optimal Brain Compression, 2022 (arXiv 2208.11580), in the group form of ZipLM (Kurtic et al. 2023,
arXiv 2302.04089). Departures: a group with several readers sums their scores, each as a share of its output's energy,
and updates each; the Gram matrix is centred where the reader's constant is refitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.least_squares import DAMPING, damped, inverse
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, Reader, RemovalErrors

__all__ = ["Obc", "Removal", "trace_removals"]

FOLD: Final = 128  # columns of the update that are held before they are taken into the inverse
HELD: Final = 0.75  # share of the columns that is left where the others are dropped


@dataclass(frozen=True)
class Removal:
    """One step of the trace: the unit that left, and each reader's error so far.

    ``errors[i]`` is the damped E||y - y'||^2 of reader i.
    """

    unit: int
    errors: tuple[float, ...]
    passes: tuple["_Pass", ...]

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Each reader's weights (conv_groups, C_out / conv_groups, columns) after this step, 0 where units left.

        They are those of the running pass: read them before the next step.
        """
        return tuple(each.whole_weight() for each in self.passes)


class _Pass:
    """Weights and inverse of one reader while its units leave.

    Of B, (g, D, D), only the entries of units that are left are held, and of W, (g, O, D), only their columns; of both
    the state at the last fold. B = base - V V^T and W = weight - Z V^T with V (g, D, K) and Z (g, O, K). A removal
    appends the columns B_:,S L^-T of the units S to V and W_S L^-T to Z, with L L^T = B_SS, so it costs D K and one
    look at W rather than D^2. Once there are ``FOLD`` columns, they are taken into base and weight by one matrix
    product. What left is dropped when it is a quarter.
    """

    def __init__(self, reader: Reader, damping: float) -> None:
        self.shape = reader.weight.shape
        self.kept = torch.arange(self.shape[-1])  # columns of the reader that are held
        self.columns = reader.columns.clone()  # (U, w) of each unit, among ``kept``
        self.is_left = torch.ones(self.shape[-1], dtype=torch.bool)  # of ``kept``
        self.weight = reader.weight.clone()
        self.base = inverse(damped(reader.inputs.gram, damping))
        self.blocks, self.products = self._blocks(self.columns)
        self.share = 1.0 / (reader.energy or 1.0)
        self.error = 0.0
        self._empty()

    def _empty(self) -> None:
        """Hold no columns of an update."""
        self.count = 0
        groups, outputs, columns = self.weight.shape
        room = FOLD + self.columns.shape[1]
        self.all_v = self.base.new_empty(groups, columns, room)
        self.all_z = self.base.new_empty(groups, outputs, room)

    def _blocks(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """B_SS and W_S^T W_S of the units with ``columns`` (u, w), both (g, u, w, w), where no update is held."""
        slices = self.weight.mT[:, columns]  # (g, u, w, O)
        return self.base[:, columns[:, :, None], columns[:, None, :]], slices @ slices.mT

    def scores(self, left: Tensor) -> Tensor:
        """tr(W_S (B_SS)^-1 W_S^T) of the units ``left`` (u,), summed over conv groups: (u,)."""
        blocks, products = self.blocks[:, left], self.products[:, left]
        if self.columns.shape[1] == 1:
            return (products / blocks).sum((0, 2, 3))
        solved = torch.linalg.solve(blocks, products)
        total: Tensor = solved.diagonal(dim1=-2, dim2=-1).sum((0, 2))
        return total

    def remove(self, unit: int) -> None:
        """Update W, B, the blocks and the products for the removal of a unit."""
        columns = self.columns[unit]
        v, z = self.all_v[:, :, : self.count], self.all_z[:, :, : self.count]
        lower = torch.linalg.cholesky(self.blocks[:, unit])  # (g, w, w)
        between = self.base[:, columns].mT - v @ v[:, columns].mT  # B_:,S (g, D, w)
        slices = self.weight[:, :, columns] - z @ v[:, columns].mT  # W_S (g, O, w)
        new_v = torch.linalg.solve_triangular(lower.mT, between, upper=True, left=False)
        new_z = torch.linalg.solve_triangular(lower.mT, slices, upper=True, left=False)
        self.is_left[columns] = False
        new_v[:, ~self.is_left] = 0.0
        overlap = self.weight.mT @ new_z - v @ (z.mT @ new_z)  # W^T Z of the new columns (g, D, w)
        overlap -= new_v @ (new_z.mT @ new_z) / 2
        parts, overlaps = new_v[:, self.columns], overlap[:, self.columns]  # (g, U, w, w)
        self.blocks -= parts @ parts.mT
        crossed = overlaps @ parts.mT
        self.products -= crossed + crossed.mT
        last = self.count + len(columns)
        self.all_v[:, :, self.count : last], self.all_z[:, :, self.count : last] = new_v, new_z
        self.count = last

    def fold(self, left: Tensor) -> None:
        """Take the update into base and weight once there is enough of it, and drop columns of all but ``left``."""
        if self.count < FOLD or not len(left):
            return
        v, z = self.all_v[:, :, : self.count], self.all_z[:, :, : self.count]
        self.base.baddbmm_(v, v.mT, alpha=-1.0)
        self.weight.baddbmm_(z, v.mT, alpha=-1.0)
        stays = self.is_left
        if float(stays.double().mean()) <= HELD:
            self.base = self.base[:, stays][:, :, stays]
            self.weight, self.kept = self.weight[:, :, stays], self.kept[stays]
            self.columns = (stays.cumsum(0) - 1)[self.columns]  # without meaning for units that are gone
            self.is_left = torch.ones(len(self.kept), dtype=torch.bool)
        self._empty()
        self.blocks[:, left], self.products[:, left] = self._blocks(self.columns[left])

    def whole_weight(self) -> Tensor:
        """W of all columns, 0 where units left: (g, O, D)."""
        whole = self.weight.new_zeros(self.shape)
        v, z = self.all_v[:, :, : self.count], self.all_z[:, :, : self.count]
        whole[:, :, self.kept] = (self.weight - z @ v.mT) * self.is_left
        return whole


def trace_removals(readers: Sequence[Reader], damping: float = DAMPING) -> Iterator[Removal]:
    """Yield removals, one a unit, from the dense group to the empty one.

    Raises:
        BadInputError: a Gram matrix that is singular in spite of the damping.
    """
    passes = tuple(_Pass(reader, damping) for reader in readers)
    left = torch.arange(len(readers[0].columns))
    while len(left):
        scores = [each.scores(left) for each in passes]
        total = torch.stack([score * each.share for score, each in zip(scores, passes, strict=True)]).sum(0)
        place = int(total.argmin())
        unit = int(left[place])
        left = torch.cat((left[:place], left[place + 1 :]))
        for score, each in zip(scores, passes, strict=True):
            each.error += float(score[place])
            each.remove(unit)
        yield Removal(unit, tuple(each.error for each in passes), passes)
        for each in passes:
            each.fold(left)


@dataclass(frozen=True)
class Obc:
    """Greedy removal by the exact error after least squares, in one pass over all counts.

    Raises:
        BadInputError: damping below 0.
    """

    damping: float = DAMPING
    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.damping >= 0.0:
            raise BadInputError(f"obc: damping = {self.damping}, must be at least 0 ({DAMPING} as a rule)")

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, last removed first."""
        return self.orders_and_errors(problem)[0]

    def orders_and_errors(self, problem: Problem) -> tuple[Ranking, RemovalErrors]:
        """As ``ErrorSelector.orders_and_errors``: the one pass that gives the order has the errors too."""
        orders, errors = {}, {}
        for group, readers in problem.readers.items():
            shares = [1.0 / (reader.energy or 1.0) for reader in readers]
            steps = [(step.unit, float(np.dot(step.errors, shares))) for step in trace_removals(readers, self.damping)]
            orders[group] = np.array([unit for unit, _ in reversed(steps)], dtype=np.int64)
            rising = np.maximum.accumulate([0.0, *(error for _, error in steps)])
            errors[group] = np.asarray(rising[::-1], dtype=np.float64)
        return orders, errors
