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
from amcsearch.methods.least_squares import DAMPING, damped, solve
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, Reader, RemovalErrors

__all__ = ["Obc", "Removal", "trace_removals"]

FOLD: Final = 32  # columns of the update that are held before they are taken into the inverse


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

    Of B, (g, D, D), only the entries of units that are left are held, and of those the state at the last fold:
    B = base - V V^T with V (g, D, K). A removal appends the columns B_:,S L^-T of the units S, with L L^T = B_SS, so it
    costs D K rather than D^2. Every ``FOLD`` columns V is taken into the base by one matrix product, and what left is
    dropped.
    """

    def __init__(self, reader: Reader, damping: float) -> None:
        self.shape = reader.weight.shape
        self.kept = torch.arange(self.shape[-1])  # columns of the reader that are left, at the last fold
        self.columns = reader.columns.clone()  # (U, w) of each unit, among ``kept``
        self.weight = reader.weight.clone()
        self.base = _inverse(damped(reader.inputs.gram, damping))
        self.update = self.base.new_zeros(*self.base.shape[:2], 0)
        self.share = 1.0 / (reader.energy or 1.0)
        self.blocks = self.base[:, self.columns[:, :, None], self.columns[:, None, :]]  # (g, U, w, w)
        self.is_left = torch.ones(self.shape[-1], dtype=torch.bool)  # of ``kept``, since the last fold
        self.error = 0.0

    def scores(self, left: Tensor) -> Tensor:
        """tr(W_S (B_SS)^-1 W_S^T) of the units ``left`` (u,), summed over conv groups: (u,)."""
        columns = self.columns[left]
        blocks = self.blocks[:, left]
        if columns.shape[1] == 1:
            squares = self.weight.square().sum(1)[:, columns[:, 0]]  # (g, u)
            return (squares / blocks[:, :, 0, 0]).sum(0)
        slices = self.weight[:, :, columns].permute(0, 2, 3, 1)  # (g, u, w, O)
        products = slices @ slices.mT
        solved = torch.linalg.solve(blocks, products)
        total: Tensor = solved.diagonal(dim1=-2, dim2=-1).sum((0, 2))
        return total

    def remove(self, unit: int) -> None:
        """Update W, B and the blocks for the removal of a unit; its weights become exactly 0."""
        columns = self.columns[unit]
        lower = torch.linalg.cholesky(self.blocks[:, unit])  # (g, w, w)
        inverse = self.base[:, :, columns] - self.update @ self.update[:, columns].mT  # B_:,S (g, D, w)
        new = torch.linalg.solve_triangular(lower.mT, inverse, upper=True, left=False)
        slices = torch.linalg.solve_triangular(lower.mT, self.weight[:, :, columns], upper=True, left=False)
        self.is_left[columns] = False
        new[:, ~self.is_left] = 0.0
        self.weight -= slices @ new.mT
        self.weight[:, :, columns] = 0.0
        parts = new[:, self.columns]  # (g, U, w, w)
        self.blocks -= parts @ parts.mT
        self.update = torch.cat((self.update, new), -1)

    def fold(self, left: Tensor) -> None:
        """Take the update into the base, and drop the columns of all units but ``left`` once there are enough."""
        if self.update.shape[-1] < FOLD or not len(left):
            return
        stays = self.is_left
        update = self.update[:, stays]
        self.base = self.base[:, stays][:, :, stays].baddbmm_(update, update.mT, alpha=-1.0)
        self.weight, self.kept = self.weight[:, :, stays], self.kept[stays]
        self.update = update.new_zeros(*update.shape[:2], 0)
        place = stays.cumsum(0) - 1
        self.columns = place[self.columns]  # without meaning for units that are gone
        self.is_left = torch.ones(len(self.kept), dtype=torch.bool)
        self.blocks[:, left] = self.base[:, self.columns[left][:, :, None], self.columns[left][:, None, :]]

    def whole_weight(self) -> Tensor:
        """W of all columns: (g, O, D)."""
        whole = self.weight.new_zeros(self.shape)
        whole[:, :, self.kept] = self.weight
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


def _inverse(gram: Tensor) -> Tensor:
    return solve(gram, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram))


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
