"""The verdict on a delivered network: is each limit met, missed or undecided, and do its files hold what was judged.

It is made once, of the final measurement of the delivered file, and every door shows it. A cost that is measured is
judged by its 95 % interval: below the limit it is met, above it missed, and an interval that straddles the limit
decides nothing. Neither does a busy host. Rounds count in which both networks were near their fastest tenth: where no
more than that tenth are, it is chance, and a network measured beside itself came out at 0.5 to 2.7 times its own
latency, 30 quiet rounds or more; where more were, but fewer than 20 in all, at 0.77 to 1.05. With 12 % quiet and 30 of
them it came out at 0.979 to 1.010 (``benchmarks/latency_prediction.md``). With a neighbour on both cores a ratio came
out at 1.244 (0.870–2.026). There the prediction is told with its error, and how to measure later.
A cost that follows from shapes (MACs, parameters, bytes, memory, energy by its model) is met or missed by its
prediction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

from amcsearch.core import Limit
from amcsearch.runs.documents import StoredDocument

__all__ = ["DeliveredFile", "Interval", "LimitVerdict", "Measurement", "Prediction", "Verdict", "VerdictState"]

MOST_DISTURBED: Final = 0.88  # share of rounds in which either network was
MANY_DISTURBED: Final = 0.75  # beyond this share …
LEAST_QUIET: Final = 30  # … so many rounds have to be quiet
MOST_WIDTH: Final = 0.4  # of an interval, as a share of its median
LEAST_ROUNDS: Final = 5  # the interval of fewer is too narrow to be believed
SIGMAS: Final = 2.0  # of a prediction that may lie between it and a measurement …
LEAST_ERROR: Final = 0.1  # … and this share of it, whatever the table claims
_TOLERANCE: Final = 1e-9  # relative: the same cost summed in another order is still the same cost
_UNITS: Final = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "ms",
    "energy_mj": "mJ",
    "model_bytes": "bytes",
    "peak_memory_bytes": "bytes",
}
_MEASURE: Final = "measure it on an idle machine: amcsearch prune CONFIG --policy policy.json"


class VerdictState(StrEnum):
    """``refused`` is a network whose delivered file is not what was judged; the others speak of limits."""

    MET = "met"
    MISSED = "missed"
    UNDECIDED = "undecided"
    REFUSED = "refused"


@dataclass(frozen=True)
class Interval(StoredDocument):
    """A measurement: its median and the ends of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """What a latency table says of the delivered network and of the dense one, and how to make the table better."""

    ms: float
    sigma_ms: float
    dense_ms: float
    cure: str


@dataclass(frozen=True)
class Measurement:
    """The final measurement of the delivered file, in runs interleaved with the dense network's.

    ``ratio`` is its share of dense latency; ``rounds`` counts those used and ``disturbed`` those left out; 0 of both
    where a run did not write them. ``predicted`` is what the latency table said of the same network, None without one;
    ``again`` says how to measure later, and ``table`` how to get a latency table of the device.
    """

    latency_ms: Interval
    ratio: Interval
    rounds: int = 0
    disturbed: int = 0
    predicted: Prediction | None = None
    again: str = f"{_MEASURE}, or raise device.patience_s"
    table: str = "measure a latency table on this machine"

    @property
    def doubt(self) -> str | None:
        """Why the measurement decides nothing; None where it does."""
        total = self.rounds + self.disturbed
        if self.disturbed > MOST_DISTURBED * total:
            return (
                f"the host was too busy: {self.disturbed} of {total} rounds were disturbed, at most "
                f"{math.floor(MOST_DISTURBED * total)} may be"
            )
        if self.disturbed > MANY_DISTURBED * total and self.rounds < LEAST_QUIET:
            return (
                f"the host was too busy: {self.disturbed} of {total} rounds were disturbed and {self.rounds} quiet; "
                f"beyond {MANY_DISTURBED:.0%} disturbed ones at least {LEAST_QUIET} must be quiet"
            )
        if self.ratio.high - self.ratio.low > MOST_WIDTH * self.ratio.median:
            return (
                f"the host was too busy: the 95 % interval {_number(self.ratio.low)}–{_number(self.ratio.high)}x of "
                f"dense is wider than {MOST_WIDTH:.0%} of its middle"
            )
        if total and self.rounds < LEAST_ROUNDS:
            return f"too few rounds: {self.rounds} of {total} were quiet, at least {LEAST_ROUNDS} are needed"
        return None


@dataclass(frozen=True)
class DeliveredFile(StoredDocument):
    """How far a delivered file, read back from the disk, gives the outputs of the network in memory on the test split.

    ``max_abs_diff`` is the largest difference, ``relative_diff`` the largest as a share of its sample's scale,
    ``changed`` counts those of ``predictions`` (the largest logit) that differ. ``problem`` says what is beyond its
    bound, None where nothing is. Numbers are NaN where the file could not be run.
    """

    name: str
    samples: int
    max_abs_diff: float
    relative_diff: float
    changed: int
    predictions: int
    problem: str | None = None


@dataclass(frozen=True)
class LimitVerdict(StoredDocument):
    """Whether one limit holds.

    ``asked`` is what the user wrote. ``limit``, ``predicted`` and ``measured`` are shares of the dense network's cost
    if ``of_dense``, else in the unit of the cost; ``measured`` is None where the cost is only predicted.
    """

    cost: str
    asked: str | float
    limit: float
    of_dense: bool
    predicted: float
    measured: Interval | None
    state: VerdictState
    reason: str

    @classmethod
    def by_prediction(cls, limit: Limit, predicted: float, dense: float, slack: float = 0.0) -> Self:
        """Judge a cost that follows from shapes: ``predicted`` and ``dense`` in its unit. NaN is missed.

        ``slack`` is what the limit may be exceeded by, in its own unit.
        """
        value = _share(predicted, dense) if limit.of_dense else predicted
        is_within = value <= limit.value * (1.0 + _TOLERANCE) + slack  # false for NaN
        state = VerdictState.MET if is_within else VerdictState.MISSED
        unit = _unit(limit)
        reason = f"{_number(value)}{unit} by its shapes, at most {_number(limit.value)}{unit}"
        cure = "" if is_within else "; prune further, or raise the limit"
        return cls(limit.cost, limit.written, limit.value, limit.of_dense, value, None, state, reason + cure)

    @classmethod
    def by_measurement(cls, limit: Limit, predicted: float, dense: float, made: Measurement) -> Self:
        """Judge latency by the final measurement; one that is not a number decides nothing."""
        interval = made.ratio if limit.of_dense else made.latency_ms
        if math.isnan(interval.low + interval.high):
            return cls.unmeasured(limit, predicted, dense)
        value = _share(predicted, dense) if limit.of_dense else predicted
        state, reason = _of_interval(limit, value, interval, made)
        if made.doubt is not None:
            sigma_ms = None if made.predicted is None else made.predicted.sigma_ms
            sigma = sigma_ms if sigma_ms is None or not limit.of_dense else _share(sigma_ms, dense)
            error = "" if sigma is None else f" ± {_number(sigma)}"
            reason += f"; predicted {_number(value)}{error}{_unit(limit)}; {made.again}"
        return cls(limit.cost, limit.written, limit.value, limit.of_dense, value, interval, state, reason)

    @classmethod
    def unmeasured(cls, limit: Limit, predicted: float, dense: float, again: str | None = None) -> Self:
        """Decide nothing: latency is only predicted; ``again`` says how to measure it."""
        value = _share(predicted, dense) if limit.of_dense else predicted
        reason = f"{_number(value)}{_unit(limit)} is predicted and nothing was measured; {again or _MEASURE}"
        state = VerdictState.UNDECIDED
        return cls(limit.cost, limit.written, limit.value, limit.of_dense, value, None, state, reason)

    @property
    def as_limit(self) -> Limit:
        """What was asked, as a limit."""
        return Limit(self.cost, self.limit, self.of_dense, f"budget.{self.cost}")

    def measured_anew(self, made: Measurement, dense_ms: float) -> Self:
        """Return the verdict by another measurement, where the limit is one of latency; ``dense_ms`` is predicted."""
        if self.cost != "latency_ms":
            return self
        predicted = self.predicted * dense_ms if self.of_dense else self.predicted
        return replace(type(self).by_measurement(self.as_limit, predicted, dense_ms, made), asked=self.asked)

    @property
    def text(self) -> str:
        """One sentence: the limit, what came of it, and why."""
        return f"{self.asked_text} is {self.state}: {self.reason}"

    @property
    def asked_text(self) -> str:
        """The cost and what the user wrote, a number with its unit: ``macs = 0.5x``, ``model_bytes = 40,960 bytes``."""
        bound = self.asked if isinstance(self.asked, str) else f"{_number(self.asked)}{_unit(self.as_limit)}"
        return f"{self.cost} = {bound}"


@dataclass(frozen=True)
class Verdict(StoredDocument):
    """What came of every limit, by the final measurement of the delivered file.

    ``warnings`` are sentences about the network that no limit speaks of; ``problems`` say which delivered files are not
    what was judged; ``doubt`` says why the measured latency decides nothing, None where it does.
    """

    limits: tuple[LimitVerdict, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    doubt: str | None = None

    @classmethod
    def of(
        cls, limits: Iterable[LimitVerdict], files: Iterable[DeliveredFile] = (), made: Measurement | None = None
    ) -> Self:
        """Join the verdicts on single limits and files; say where the network is not faster than dense or than told."""
        problems = tuple(f"{file.name}: {file.problem}" for file in files if file.problem is not None)
        judged = tuple(limits)
        in_doubt = not any(limit.measured is not None for limit in judged)  # else the limit says so
        if made is None:
            return cls(judged, problems)
        warnings = (*_slower(made, in_doubt), *_mispredicted(made, judged))
        return cls(judged, problems, warnings, made.doubt)

    @property
    def state(self) -> VerdictState:
        """``refused`` with a problem, else ``missed`` or ``undecided`` where any limit is, else ``met``."""
        if self.problems:
            return VerdictState.REFUSED
        states = {limit.state for limit in self.limits}
        worst_first = (VerdictState.MISSED, VerdictState.UNDECIDED)
        return next((state for state in worst_first if state in states), VerdictState.MET)

    @property
    def texts(self) -> tuple[str, ...]:
        """Sentences on all that is not as it should be: files, limits that are not met, and warnings."""
        unmet = (limit.text for limit in self.limits if limit.state is not VerdictState.MET)
        return (*self.problems, *unmet, *self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, with the ``state`` among its keys."""
        return {"state": str(self.state), **super().to_json()}


def _of_interval(limit: Limit, predicted: float, interval: Interval, made: Measurement) -> tuple[VerdictState, str]:
    unit = _unit(limit)
    measured = f"measured {_number(interval.median)}{unit} ({_number(interval.low)}–{_number(interval.high)})"
    bound = f"at most {_number(limit.value)}{unit}"
    if made.doubt is not None:
        return VerdictState.UNDECIDED, f"{measured}, {bound}, but {made.doubt}"
    if interval.high <= limit.value:
        return VerdictState.MET, f"{measured}, {bound}"
    if interval.low > limit.value:
        return VerdictState.MISSED, f"{measured}, {bound}; {_cure(limit, predicted, interval, made.table)}"
    return VerdictState.UNDECIDED, f"{measured}, {bound}: the 95 % interval straddles the limit; {made.again}"


def _cure(limit: Limit, predicted: float, interval: Interval, table: str) -> str:
    """What to do about a missed limit: a prediction beyond it is the policy's fault, one within it the table's."""
    if predicted > limit.value * (1.0 + _TOLERANCE):
        return f"{_number(predicted)}{_unit(limit)} was predicted: prune further, or raise the limit"
    if not (predicted > 0.0 and math.isfinite(interval.high)):
        return f"{table}, and search again"
    aim = limit.value * predicted / interval.high
    digits = 10.0 ** (2 - math.floor(math.log10(aim)))
    asked = f"{math.floor(aim * digits) / digits:g}{'x' if limit.of_dense else ' ms'}"
    told = f"{_number(predicted)}{_unit(limit)} was predicted"
    return f"{told}: ask for {limit.cost} = {asked}, or {table}, and search again"


def _slower(made: Measurement, say_doubt: bool) -> Iterable[str]:
    """Warn of a network that is slower than dense, or not measurably faster."""
    low, high = made.ratio.low, made.ratio.high
    measured = f"{_number(made.ratio.median)}x of dense latency ({_number(low)}–{_number(high)})"
    if made.doubt is not None:
        yield from [f"the measured latency decides nothing: {made.doubt}; {made.again}"] * say_doubt
    elif low >= 1.0:
        yield f"the delivered network is slower than the dense one: {measured}; keep the dense one, or prune further"
    elif not high < 1.0:
        yield f"the delivered network is not measurably faster than the dense one: {measured}"


def _mispredicted(made: Measurement, limits: Iterable[LimitVerdict]) -> Iterable[str]:
    """Warn of a prediction that is further from the measured interval than its error can be.

    As a share of dense, since machines drift, but where the limit on latency is absolute. The sentence on a limit that
    was missed in spite of the prediction says so itself.
    """
    of_latency = [limit for limit in limits if limit.cost == "latency_ms"]
    predicted = made.predicted
    told = any(limit.state is VerdictState.MISSED and limit.predicted <= limit.limit for limit in of_latency)
    if predicted is None or made.doubt is not None or told or not predicted.dense_ms > 0.0:
        return
    of_dense = all(limit.of_dense for limit in of_latency)
    whole, interval = (predicted.dense_ms, made.ratio) if of_dense else (1.0, made.latency_ms)
    value, sigma = predicted.ms / whole, predicted.sigma_ms / whole
    away = max(interval.low - value, value - interval.high)
    if away > max(SIGMAS * sigma, LEAST_ERROR * value):
        unit = "x of dense latency" if of_dense else " ms"
        yield (
            f"the latency table errs on the delivered network: it predicted {_number(value)} ± {_number(sigma)}{unit}, "
            f"measured are {_number(interval.median)} ({_number(interval.low)}–{_number(interval.high)}), so another "
            f"policy may fit the limits better; {predicted.cure}, and search again"
        )


def _share(value: float, dense: float) -> float:
    return value / dense if dense else math.nan if value else 0.0


def _unit(limit: Limit) -> str:
    return "x of dense" if limit.of_dense else f" {_UNITS.get(limit.cost, limit.cost)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
