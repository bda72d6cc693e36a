"""Fronts of predicted error against every cost of several devices, as documents, and the policy that a budget picks.

The predicted error of a policy is the sum over groups of the error of its kept count. One set of tables gives it for
all devices and costs.

Where policies of the fronts were evaluated, the metric of any other is expected to be

    m(e) = m_dense + g(e),   g: falling and piecewise linear through (error, gain over dense) of the evaluated policies

(pool adjacent violators: Ayer et al. 1955, Ann. Math. Stat. 26(4)). Each of these is left out and predicted by the
others. The largest miss in units of s(e) = sqrt(-g(e) + one sample), as counts scatter, is the half width in these: of
N policies alike a further one misses no more in N of N + 1 (normalised conformal bounds, Papadopoulos et al. 2002).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, InfeasibleBudgetError, Limit, Metric, PruningPolicy, parse_json, read_text
from amcsearch.runs.documents import Document, MetricRecord, StoredDocument
from amcsearch.runs.files import expanded, replacing
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import read_points
from amcsearch.runs.table_summary import TableSummary

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FRONT_COLUMNS",
    "Confidence",
    "ErrorTables",
    "EvaluatedPolicy",
    "FrontChoice",
    "FrontDevice",
    "FrontFiles",
    "FrontResult",
    "FrontSummary",
]

FRONT_COLUMNS: Final = ("device", "along", "error", "expected", "policy")
"""Columns of ``front.csv``, besides one for each cost: the front of ``along`` on ``device``, one policy a row."""
_FEWEST: Final = 3  # evaluated policies from which a half width can be said
_TOLERANCE: Final = 1e-9  # relative: the same cost summed in another order is still the same cost

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrontFiles:
    """The files of a front: tables of errors, points one a row, the summary, and the page."""

    tables: Path
    points: Path
    front: Path
    page: Path

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """Return those in a run folder."""
        return cls(*(run.path / name for name in ("errors.json", "front.csv", "front.json", "report.html")))

    @property
    def by_name(self) -> dict[str, str]:
        """Their paths, by what they are."""
        return {item.name: str(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True)
class ErrorTables(StoredDocument):
    """The error of every kept count of every group, and the dense network that it is counted from.

    ``source`` says who gave the errors. ``dense_metric`` is that of the dense network on the ``samples`` of the search
    split. ``kept`` are ascending counts by group, ``error`` one value for each, never rising.
    """

    source: str
    dense_metric: float
    samples: int
    kept: Mapping[str, tuple[int, ...]]
    error: Mapping[str, tuple[float, ...]]

    def of(self, group: str, choices: NDArray[np.int64]) -> Array:
        """Errors (choices,) of some counts of a group, each of which must be in the table."""
        return np.array(self.error[group])[np.searchsorted(self.kept[group], choices)]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``errors.json``.

        Raises:
            BadInputError: it cannot be read, or is damaged.
        """
        try:
            return cls.from_json(parse_json(read_text(path), path.name), path.name)
        except BadInputError as error:
            raise BadInputError(f"{path} is damaged ({error}); delete it, and resume the run") from error


@dataclass(frozen=True)
class FrontDevice(StoredDocument):
    """A device, what the dense network costs there, and how its costs were predicted.

    ``seconds`` are those that all of its fronts took.
    """

    name: str
    profile: str | None
    table: TableSummary | None
    channel_multiple: int
    dense: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class EvaluatedPolicy(StoredDocument):
    """A policy of a front as it was evaluated: recovered, on the search split, before fine-tuning.

    ``metric`` with the ends of its 95 % interval, which is that of the difference from the dense network on the same
    samples; None where there is none.
    """

    device: str
    along: str
    policy: PruningPolicy
    error: float
    metric: float
    loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Confidence(Document):
    """How far the metric of a policy is known, before fine-tuning.

    ``expected`` is None where nothing was evaluated, or nothing of so large an error. ``within`` is the half width,
    None where too few policies were evaluated. ``rank_correlation`` is that of predicted errors with what was lost.
    """

    expected: float | None
    within: float | None
    evaluated: int
    rank_correlation: float | None
    text: str


@dataclass(frozen=True)
class FrontChoice(Document):
    """The policy of least predicted error within a budget on a device.

    ``limits`` and ``cost`` are in the units of the costs; ``of_dense`` are shares of the dense network's. ``table``
    says how well latency is predicted. ``measured`` is there where this very policy was evaluated.
    """

    device: str
    limits: Mapping[str, float]
    policy: PruningPolicy
    error: float
    cost: Mapping[str, float]
    of_dense: Mapping[str, float]
    table: TableSummary | None
    confidence: Confidence
    measured: EvaluatedPolicy | None

    def save(self, path: Path | str) -> Path:
        """Write the policy to a file that ``prune`` takes; raises as ``files.replacing``."""
        target = expanded(path)
        with replacing(target) as temporary:
            temporary.write_text(self.policy.to_json() + "\n", encoding="utf-8")
        return target


@dataclass(frozen=True)
class FrontSummary(StoredDocument):
    """All of a front but its points: devices, evaluated policies, and how well errors rank them.

    ``samples`` are those of the search split.
    """

    name: str
    metric: MetricRecord
    dense_metric: float
    samples: int
    errors_from: str
    devices: tuple[FrontDevice, ...]
    evaluated: tuple[EvaluatedPolicy, ...]
    rank_correlation: float | None
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def judged_by(self) -> Metric:
        """The metric."""
        return self.metric.metric

    def expected(self, errors: Array) -> Array:
        """Metric that is expected of policies with these predicted errors, (P,); NaN beyond what was evaluated."""
        gains = _interpolated(*self._evaluated_gains, errors)
        return self.dense_metric + self._sign * gains

    def within(self, error: float) -> float | None:
        """Half width of the metric that is expected at a predicted error; None of few evaluated policies."""
        errors, gains = self._evaluated_gains
        left_out = ((np.delete(errors, i), np.delete(gains, i), errors[i : i + 1]) for i in range(1, len(errors)))
        expected = (float(_interpolated(*each)[0]) for each in left_out)
        misses = [abs(a - b) / self._spread(e) for a, b, e in zip(expected, gains[1:], errors[1:], strict=True)]
        known = [miss for miss in misses if not math.isnan(miss)]
        return max(known) * self._spread(error) if len(errors) > _FEWEST and known else None

    def _spread(self, error: float) -> float:
        errors, gains = self._evaluated_gains
        lost = max(0.0, -float(_interpolated(errors, gains, np.array([error]))[0]))
        return math.sqrt(lost + (1.0 if self.judged_by.is_share else -gains.min()) / self.samples)

    def confidence(self, error: float) -> Confidence:
        """Say how far the metric of a policy with this predicted error is known."""
        metric, count, within = self.judged_by, len(self.evaluated), self.within(error)
        expected: float | None = float(self.expected(np.array([error]))[0])
        if not count:
            text = "predicted only: no policy of this front was evaluated; go on with --evaluations 12 --resume"
            return Confidence(None, None, 0, None, text)
        correlation = self.rank_correlation
        ranks = f"; rank correlation of predicted error and what was lost {_two_digits(correlation)}"
        if expected is None or math.isnan(expected):
            most = max(each.error for each in self.evaluated)
            text = f"none: the predicted error {error:.3g} is beyond the largest that was evaluated, {most:.3g}{ranks}"
            return Confidence(None, None, count, correlation, text)
        half = "" if within is None else f" ± {metric.difference_text(within)}"
        value = f"{metric.word} {metric.text(expected)}{half} expected before fine-tuning"
        text = f"{value}, from {count} evaluated policies{ranks}"
        return Confidence(expected, within, count, correlation, text)

    @property
    def confidence_text(self) -> str:
        """How far the metric of any policy is known."""
        if not self.evaluated:
            return self.confidence(0.0).text
        ranks, metric = _two_digits(self.rank_correlation), self.judged_by
        dense = f"dense {metric.word} {metric.text(self.dense_metric)}, {len(self.evaluated)} of its policies evaluated"
        return f"{dense}; rank correlation of predicted error and what was lost {ranks}"

    def device(self, name: str | None) -> FrontDevice:
        """Return a device by its name; the only one for None.

        Raises:
            BadInputError: no device of that name, or none named of several.
        """
        names = [device.name for device in self.devices]
        if name is None and len(names) > 1:
            raise BadInputError(f"device: none is named, and the front has {', '.join(names)}; name one (--device)")
        if name is not None and name not in names:
            raise BadInputError(
                f"device {name!r} is not in this front, which has {', '.join(names)}; name one of them, or make the "
                "front again for it: amcsearch front CONFIG --devices … --resume"
            )
        return self.devices[0 if name is None else names.index(name)]

    @property
    def _sign(self) -> float:
        return self.judged_by.gain(1.0, 0.0)

    @property
    def _evaluated_gains(self) -> tuple[Array, Array]:
        """Predicted errors and gains over dense of what was evaluated, the dense network first."""
        errors = [0.0, *(each.error for each in self.evaluated)]
        gains = [0.0, *(self.judged_by.gain(each.metric, self.dense_metric) for each in self.evaluated)]
        finite = np.isfinite(gains)
        return np.array(errors)[finite], np.array(gains)[finite]


@dataclass(frozen=True, eq=False)
class FrontResult(Document):
    """What ``front`` returns: policies of least predicted error for every budget of every cost on every device.

    ``points`` has one policy a row, with ``FRONT_COLUMNS`` and a column for each cost. ``files`` are the paths written,
    by what they are.
    """

    summary: FrontSummary
    points: "pd.DataFrame"
    files: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read what ``front`` left in a folder.

        Raises:
            BadInputError: no front there, or a damaged one.
        """
        run = RunFolder(expanded(folder))
        files = FrontFiles.of(run)
        if not files.front.exists():
            raise BadInputError(
                f"{run.path} is no folder of a finished front; make one, amcsearch front CONFIG -o FOLDER, and ask that"
            )
        text = read_text(files.front)
        try:
            summary = FrontSummary.from_json(parse_json(text, files.front.name), files.front.name)
        except BadInputError as error:
            raise BadInputError(f"{files.front} is damaged ({error}); resume the run to make it again") from error
        costs = dict.fromkeys(name for device in summary.devices for name in device.dense)
        return cls(summary, read_points(files.points, FRONT_COLUMNS, costs), files.by_name)

    def within(self, budget: Mapping[str, str | float], device: str | None = None) -> FrontChoice:
        """Return the policy of least predicted error within a budget, such as ``{"latency_ms": "0.4x"}``, on a device.

        Every cost of the budget must hold. For one cost the policy is that of its front; for several it is the best
        that is on any front of the device.

        Raises:
            BadInputError: an unknown device or cost, or a limit that is out of range.
            InfeasibleBudgetError: no policy of the device's fronts meets the budget; names the smallest costs.
        """
        target = self.summary.device(device)
        limits = _limits(target, budget)
        rows = self.points[self.points["device"] == target.name]
        meets = np.ones(len(rows), dtype=np.bool_)
        for name, limit in limits.items():
            meets &= rows[name].to_numpy() <= limit * (1.0 + _TOLERANCE)
        if not meets.any():
            raise InfeasibleBudgetError(_too_low(target, budget, limits, rows))
        row = rows[meets].sort_values(["error", *limits], kind="stable").iloc[0]
        policy = PruningPolicy.from_json(row["policy"])
        cost = {name: float(row[name]) for name in target.dense}
        return FrontChoice(
            device=target.name,
            limits=limits,
            policy=policy,
            error=float(row["error"]),
            cost=cost,
            of_dense={name: value / target.dense[name] for name, value in cost.items() if target.dense[name]},
            table=target.table,
            confidence=self.summary.confidence(float(row["error"])),
            measured=next((each for each in self.summary.evaluated if each.policy == policy), None),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the summary and the paths; the points are in a file."""
        return {**self.summary.to_json(), "points": len(self.points), "files": dict(self.files)}


def _two_digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _limits(device: FrontDevice, budget: Mapping[str, str | float]) -> dict[str, float]:
    if not budget:
        raise BadInputError("budget: no limit is given; name one or more, such as latency_ms=0.4x")
    limits = {}
    for cost, written in budget.items():
        if cost not in device.dense:
            raise BadInputError(
                f"budget.{cost} = {written}: nothing predicts {cost} on device {device.name}; choose from "
                f"{', '.join(device.dense)} (latency needs a latency table, energy a device profile)"
            )
        limits[cost] = Limit.parse(cost, written, f"budget.{cost}", device.dense[cost]).resolve(device.dense[cost])
    return limits


def _too_low(
    device: FrontDevice, budget: Mapping[str, str | float], limits: Mapping[str, float], rows: "pd.DataFrame"
) -> str:
    parts = []
    for name, limit in limits.items():
        least = float(rows[name].min())
        share = f" ({least / device.dense[name]:.3g}x of dense)" if device.dense[name] else ""
        parts.append(f"budget.{name} = {budget[name]} is {limit:.6g}, the smallest on the front {least:.6g}{share}")
    return (
        f"no policy on the fronts of device {device.name} is within the budget ({'; '.join(parts)}); raise the limit, "
        "or allow more pruning (search.max_pruning_ratio, device.channel_multiple) and make the front again"
    )


def _interpolated(errors: Array, gains: Array, at: Array) -> Array:
    """Falling, piecewise linear gains at predicted errors (P,); NaN beyond the largest error, and of dense alone."""
    known, inverse = np.unique(errors, return_inverse=True)
    means = np.bincount(inverse, gains) / np.bincount(inverse)
    if len(known) < 2:
        return np.full(len(at), np.nan)
    return np.where(at <= known[-1], np.interp(at, known, _falling(means)), np.nan)


def _falling(values: Array) -> Array:
    """The values nearest by least squares that never rise: neighbours that do are pooled."""
    means: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-1] > means[-2]:
            count = counts[-2] + counts[-1]
            means[-2:] = [(means[-2] * counts[-2] + means[-1] * counts[-1]) / count]
            counts[-2:] = [count]
    return np.repeat(means, counts)
