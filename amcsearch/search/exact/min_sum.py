"""The least sum of errors within a budget, over functions of few variables each: exact dynamic programming.

    minimise Σ_g e_g(k_g) + Σ_f w · c_f(k)   such that   Σ_f t_f(k) <= T,    f: functions of the widths k of few groups

Variable elimination (``elimination.py``) with the budget as one more axis, cut into B buckets of δ = (T - base) / B:

    D'[kept, b] = min over decided of  D[table, b - ticks(joint)] + e(joint),   ticks = ceil((t - min t) / δ)

All that a step completes is rounded once, and up: no solution exceeds T, and none is worse than the optimum for the
budget T - G·δ (G groups; SPDY rounds to nearest and may exceed it). ``base`` sums the least of every step. Chains,
residual stages and branches are the same to it. Hot loop: shift the rows of many joint choices, and add to them.

A cost that is a maximum over moments is exact without rounding. As a further limit (``caps``) it excludes every joint
choice that exceeds it at a moment: ticks = B + 1. As the axis, b stands for what is allowed, and nothing is spent:

    D'[kept, b] = min over decided of  D[table, b] + e(joint)   where ticks <= b,   ticks = ceil((peak - base) / δ)

Multiple-choice knapsack for pruning: HALP (Shen et al. 2022), SPDY (Frantar & Alistarh 2022), both for separable
costs; a layer's cost here depends on its input width as well. float32: sums that differ by less than 1e-6 of their
size count as equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from amcsearch.core import InfeasibleBudgetError
from amcsearch.search.exact.elimination import Step, elimination_steps
from amcsearch.search.exact.factors import Factor, PeakFactor

__all__ = ["BudgetedSum", "Solution"]

_Scoped = TypeVar("_Scoped", Factor, PeakFactor)
_BLOCK: Final = 2**20  # joint choices of all policies looked at together
_CELLS: Final = 2**16  # of a table that are computed together: they stay within a core's cache
_SLACK: Final = 1e-11  # relative to the limit: the same cost summed in another order is still the same cost


@dataclass(frozen=True)
class _Stage:
    """One step with its tables, all over (kept R, decided F, introduced V) combinations."""

    step: Step
    shape: tuple[int, int, int]
    ticks: NDArray[np.int64]
    costs: Mapping[str, NDArray[np.float64]]
    is_sum: bool

    @property
    def stays(self) -> bool:
        """Whether the introduced group is still open after the step."""
        return self.step.group in self.step.after


class BudgetedSum:
    """A sum of costs and its limit, to be solved for any errors.

    Args:
        sizes: number of choices of each group, (G,).
        factors: their sum is the cost.
        axis: name of the cost that is limited; the other costs may be weighed against errors.
        limit: T, in the unit of ``axis``.
        buckets: B, at least 1; where all costs are multiples of δ nothing is lost to rounding.
        peaks: costs that are maxima over moments; those of ``axis`` make it one.
        caps: limits of the other ones.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        factors: Sequence[Factor],
        axis: str,
        limit: float,
        buckets: int,
        peaks: Sequence[PeakFactor] = (),
        caps: Mapping[str, float] | None = None,
    ) -> None:
        self.sizes, self.axis, self.limit, self.buckets = tuple(sizes), axis, limit, buckets
        self._names = tuple(factors[0].costs) if factors else (axis,)
        self._caps = dict(caps or {})
        steps = elimination_steps(sizes, [*(f.scope for f in factors), *(p.scope for p in peaks)])
        tables = [self._tables(step, closed) for step, closed in zip(steps, _closed(steps, factors), strict=True)]
        maxima = [self._maxima(step, closed) for step, closed in zip(steps, _closed(steps, peaks), strict=True)]
        is_sum = not any(peak.name == axis for peak in peaks)
        if is_sum:
            constant = sum(float(factor.costs[axis]) for factor in factors if not factor.scope)
            self.base = constant + sum(float(costs[axis].min()) for costs in tables)
        else:
            fixed = [float(peak.values) for peak in peaks if not peak.scope and peak.name == axis]
            self.base = max([*fixed, *(float(peak[axis].min()) for peak in maxima)])
        self.bucket = max((limit - self.base) / buckets, _SLACK * abs(limit))
        self._stages = [
            _Stage(step, peak[axis].shape, self._ticks(costs if is_sum else peak, peak, is_sum), costs, is_sum)
            for step, costs, peak in zip(steps, tables, maxima, strict=True)
        ]

    def solve(self, errors: Sequence[NDArray[np.float64]], weights: Mapping[str, float] | None = None) -> "Solution":
        """Return the least sums for every budget up to the limit.

        Args:
            errors: of each choice of each group, (choices,), finite.
            weights: what one unit of another cost counts as error; costs not named do not count.
        """
        tables = [np.zeros((1, 1, self.buckets + 1), dtype=np.float32)]
        values = []
        for stage in self._stages:
            value = np.broadcast_to(np.asarray(errors[stage.step.group]), stage.shape).astype(np.float64)
            for name, weight in (weights or {}).items():
                value = value + weight * stage.costs[name]
            values.append(value.astype(np.float32))
            old = self.seen_from(stage.step, tables[-1])
            tables.append(_advance(stage, old, values[-1]))
        return Solution(self, self._stages, tables, values)

    def seen_from(self, step: Step, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """The table over ``step.before`` as (kept R, decided F, B + 1)."""
        order = [*_positions(step.before, step.kept), *_positions(step.before, step.gone)]
        shaped = table.reshape(*self._shape(step.before), self.buckets + 1)
        rows, decided = prod(self._shape(step.kept)), prod(self._shape(step.gone))
        return shaped.transpose(*order, len(order)).reshape(rows, decided, self.buckets + 1)

    def _shape(self, groups: Sequence[int]) -> list[int]:
        return [self.sizes[g] for g in groups]

    def _tables(self, step: Step, closed: Sequence[Factor]) -> dict[str, NDArray[np.float64]]:
        """Costs by name that a step completes, summed: (R, F, V)."""
        parts = (step.kept, step.gone, (step.group,))
        axes = [g for part in parts for g in part]
        total: dict[str, NDArray[np.float64]] = {}
        for name in self._names:
            summed = np.zeros(self._shape(axes))
            for factor in closed:
                summed += _along(factor.costs[name], factor.scope, axes)
            total[name] = summed.reshape([prod(self._shape(part)) for part in parts])
        return total

    def _maxima(self, step: Step, closed: Sequence[PeakFactor]) -> dict[str, NDArray[np.float64]]:
        """Maxima by name that a step completes: (R, F, V)."""
        parts = (step.kept, step.gone, (step.group,))
        axes = [g for part in parts for g in part]
        largest: dict[str, NDArray[np.float64]] = {}
        for name in {*self._caps, self.axis}:
            values = np.zeros(self._shape(axes))
            for factor in closed:
                if factor.name == name:
                    values = np.maximum(values, _along(factor.values, factor.scope, axes))
            largest[name] = values.reshape([prod(self._shape(part)) for part in parts])
        return largest

    def _ticks(
        self, costs: Mapping[str, NDArray[np.float64]], peaks: Mapping[str, NDArray[np.float64]], is_sum: bool
    ) -> NDArray[np.int64]:
        """What every joint choice spends of a sum, or needs of a maximum; B + 1 of what exceeds a limit by itself."""
        values = costs[self.axis]
        if self.base > self.limit + _SLACK * abs(self.limit):
            return np.full(values.shape, self.buckets + 1)
        least = float(values.min()) if is_sum else self.base
        excess = (values - least - _SLACK * abs(self.limit)) / self.bucket
        ticks = np.asarray(np.ceil(np.clip(excess, 0.0, self.buckets + 1)), dtype=np.int64)
        for name, cap in self._caps.items():
            ticks[peaks[name] > cap * (1.0 + _SLACK)] = self.buckets + 1
        return ticks


@dataclass(frozen=True)
class Solution:
    """The least sums for every budget, and the choices that reach them."""

    problem: BudgetedSum
    _stages: Sequence[_Stage]
    _tables: Sequence[NDArray[np.float32]]
    _values: Sequence[NDArray[np.float32]]

    @property
    def least(self) -> NDArray[np.float32]:
        """Least sum within base + b · δ, never rising, for b = 0 … B: (B + 1,); inf where nothing fits."""
        return self._tables[-1].reshape(-1)

    @property
    def front(self) -> NDArray[np.int64]:
        """The buckets b where the least sum falls, ascending: the Pareto front of error against cost."""
        before = np.concatenate([[np.inf], self.least[:-1]])
        return np.flatnonzero(self.least < before)

    def choice(self, bucket: int) -> NDArray[np.int64]:
        """Position of each group's choice (G,) that gives ``least[bucket]``.

        Raises:
            InfeasibleBudgetError: nothing fits.
        """
        return np.asarray(self.choices(np.array([range(self.problem.buckets + 1)[bucket]]))[0])

    def choices(self, buckets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of each group's choice (P, G) that give ``least[buckets]`` for buckets (P,) from 0 to B.

        Raises:
            InfeasibleBudgetError: nothing fits the smallest of them.
        """
        problem = self.problem
        lacking = buckets[~np.isfinite(self.least[buckets])]
        if len(lacking):
            limit = min(problem.limit, problem.base + int(lacking.min()) * problem.bucket)
            raise InfeasibleBudgetError(
                f"no policy within {problem.axis} ≤ {limit:.6g} was found; no layer by itself allows less than "
                f"{problem.base:.6g} together; raise the limit or allow more pruning"
            )
        chosen = np.zeros((len(buckets), len(problem.sizes)), dtype=np.int64)
        left = buckets.astype(np.int64)
        for stage, before, value in zip(self._stages[::-1], self._tables[-2::-1], self._values[::-1], strict=True):
            table, joint = problem.seen_from(stage.step, before), stage.shape[1] * stage.shape[2]
            for start in range(0, len(buckets), max(1, _BLOCK // joint)):
                rows = slice(start, start + max(1, _BLOCK // joint))
                left[rows] -= self._decide(stage, table, value, chosen[rows], left[rows])
        return chosen

    def _decide(
        self,
        stage: _Stage,
        before: NDArray[np.float32],
        value: NDArray[np.float32],
        chosen: NDArray[np.int64],
        buckets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Fill in, in ``chosen`` (P, G), what the step decided, given later steps; return the ticks it spent, (P,)."""
        step, sizes, policies = stage.step, self.problem.sizes, np.arange(len(buckets))
        kept, gone = list(step.kept), list(step.gone)
        r = np.zeros(len(buckets), dtype=np.int64)
        if kept:
            r = np.ravel_multi_index(tuple(chosen[:, kept].T), [sizes[g] for g in kept])
        ticks, values = stage.ticks[r], value[r]  # (P, F, V)
        if stage.stays:
            introduced = chosen[:, step.group]
            ticks, values = ticks[policies, :, introduced, None], values[policies, :, introduced, None]
        at = buckets[:, None, None]
        left = at - ticks if stage.is_sum else np.where(ticks <= at, at, -1)
        sums = before[r[:, None, None], np.arange(ticks.shape[1])[:, None], np.maximum(left, 0)] + values
        best = np.where(left >= 0, sums, np.inf).reshape(len(buckets), -1).argmin(axis=1)
        f, v = np.divmod(best, ticks.shape[2])
        if gone:
            chosen[:, gone] = np.stack(np.unravel_index(f, [sizes[g] for g in gone]), axis=1)
        if not stage.stays:
            chosen[:, step.group] = v
        return np.asarray(ticks[policies, f, v]) if stage.is_sum else np.zeros(len(buckets), dtype=np.int64)


def _advance(stage: _Stage, old: NDArray[np.float32], value: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table after a step, (R, V or 1, B + 1), from the one before, (R, F, B + 1)."""
    rows, decided, introduced = stage.shape
    width = old.shape[2]
    new = np.full((rows, introduced if stage.stays else 1, width), np.inf, dtype=np.float32)
    step = max(1, _CELLS // (introduced * width))
    for block in (slice(first, first + step) for first in range(0, rows, step)):
        before = _spent(old[block], stage.ticks[block], stage.is_sum)
        for f in range(decided):
            sums = before(f)  # (rows of the block, V, B + 1)
            sums += value[block, f, :, None]
            np.minimum(new[block], sums if stage.stays else sums.min(axis=1, keepdims=True), out=new[block])
    return new


def _spent(old: NDArray[np.float32], ticks: NDArray[np.int64], is_sum: bool) -> Callable[[int], NDArray[np.float32]]:
    """Rows (R, V, B + 1) of a table (R, F, B + 1), by the choice f decided, once ``ticks`` (R, F, V) are spent.

    inf where fewer are left. Of a maximum nothing is spent, but as many must be allowed.
    """
    rows, _, width = old.shape
    if not is_sum:
        return lambda f: np.where(np.arange(width) >= ticks[:, f, :, None], old[:, f, None], np.float32(np.inf))
    padded = np.concatenate([np.full_like(old, np.inf), old], axis=2)
    windows = sliding_window_view(padded, width, axis=2)  # (R, F, B + 2, B + 1): the row shifted by B + 1 … 0 ticks
    return lambda f: windows[np.arange(rows)[:, None], f, width - ticks[:, f]]


def _positions(of: Sequence[int], groups: Sequence[int]) -> list[int]:
    return [of.index(g) for g in groups]


def _closed(steps: Sequence[Step], factors: Sequence[_Scoped]) -> list[list[_Scoped]]:
    """The factors each step completes: those whose last group it introduces."""
    when = {step.group: i for i, step in enumerate(steps)}
    closed: list[list[_Scoped]] = [[] for _ in steps]
    for factor in factors:
        if factor.scope:
            closed[max(when[g] for g in factor.scope)].append(factor)
    return closed


def _along(table: NDArray[np.float64], scope: Sequence[int], axes: Sequence[int]) -> NDArray[np.float64]:
    """A table over ``scope`` with its axes in the order of ``axes`` and length 1 along those it lacks."""
    order = [scope.index(g) for g in axes if g in scope]
    sizes = iter(table.transpose(order).shape)
    return table.transpose(order).reshape([next(sizes) if g in scope else 1 for g in axes])
