"""Paired latency: models timed beside the dense one in the same interleaved rounds, with confidence intervals.

Medians resist the spikes of a shared machine. Their uncertainty is estimated by the percentile bootstrap
(Efron 1979, Annals of Statistics 7:1) over ROUNDS, so that what the models of one round have in common (clock, load)
stays paired, and the interval of the ratio is as narrow as the pairing makes it.

A busy neighbour slows models unequally for seconds (measured: a ratio of 0.57 instead of 0.49). So rounds are spread
over several seconds, and those in which either of the two was disturbed are left out. Both have to be quiet: were the
dense one's rounds chosen alone, it would be quiet in them by choice and the other only by chance, and a copy of the
dense model would look slower (measured: 1.45 times, where it was disturbed in two of three rounds). Where the result
decides nothing all the same (too many rounds disturbed, or too wide an interval), rounds are added until it does, or
until patience runs out.

Samples are short. Where other programs share the core, each runs for some milliseconds at a time: a longer sample is
interrupted in every round, by about the same time, and looks quiet (measured beside two of them, with samples of 5 ms:
2.88 ms in place of 0.64).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError
from amcsearch.runs import Interval, Measurement
from amcsearch.runtime.base import Runtime
from amcsearch.runtime.loaded import LoadedNetwork
from amcsearch.runtime.on_device.drift import DISTURBED, QUIET_QUANTILE
from amcsearch.runtime.on_device.timing import Clock, time_round, warm_up, without_gc
from amcsearch.runtime.onnx_runtime import OnnxRuntime

__all__ = [
    "SAMPLE_MS",
    "PairedLatency",
    "measure_many",
    "measured_until_decided",
    "measuring_seconds",
    "median_interval",
    "paired_latency",
    "paired_samples",
    "quiet_rounds",
    "time_interleaved",
]


SAMPLE_MS = 0.5  # least duration of a sample: some calls of a small network, one of a larger
WARMUP_MS = 10.0
Inputs = NDArray[np.generic] | Sequence[NDArray[np.generic]]


def time_interleaved(
    networks: Sequence[LoadedNetwork],
    inputs: Inputs,
    rounds: int,
    min_ms: float,
    rng: np.random.Generator,
    *,
    warmup_ms: float = WARMUP_MS,
) -> NDArray[np.float64]:
    """Time every network once a round, in a fresh random order each round.

    Args:
        networks: S loaded networks that take the same inputs.
        inputs: the arrays that they take, in order, or the only one; batch included.
        rounds: samples of each network.
        min_ms: a sample repeats the call until about this long, and is the mean over the repeats.
        rng: source of the orders.
        warmup_ms: each network runs this long before the first round.

    Returns:
        (S, rounds) milliseconds a call.

    Raises:
        BadInputError: no network, no round, or one that does not take such inputs.
    """
    if not networks or rounds < 1:
        raise BadInputError(f"timing {len(networks)} models in {rounds} rounds: at least 1 of each is needed")
    arrays = [inputs] if isinstance(inputs, np.ndarray) else inputs
    calls = [network.bound_call(arrays) for network in networks]
    clock = Clock()
    with without_gc():
        repeats = [warm_up(call, min_ms, warmup_ms, clock)[0] for call in calls]
        return np.array([time_round(calls, repeats, rng, clock) for _ in range(rounds)]).T


RESAMPLES = 2000
LEVEL = 0.95
ROUNDS = 300
BLOCK = 20  # rounds in a row …
PATIENCE = 3.0  # times as long as the rounds that were asked for, where nothing else is said
PAUSE_S = 0.6  # … and then a pause, so that all of them together outlast a disturbance of seconds


@dataclass(frozen=True, slots=True)
class PairedLatency:
    """Latency of a pruned model beside the dense one: medians over rounds with 95 % intervals, in ms a call.

    ``ratio`` is the median over rounds of pruned / dense: 0.5 means twice as fast. ``rounds`` counts those used,
    ``disturbed`` those left out.
    """

    dense_ms: float
    dense_low: float
    dense_high: float
    pruned_ms: float
    pruned_low: float
    pruned_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    disturbed: int = 0

    @property
    def doubt(self) -> str | None:
        """Why the measurement decides nothing; None where it does."""
        ms = Interval(self.pruned_ms, self.pruned_low, self.pruned_high)
        return Measurement(ms, Interval(self.ratio, self.ratio_low, self.ratio_high), self.rounds, self.disturbed).doubt


def median_interval(
    samples: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median of each row of (S, rounds) with its 95 % bootstrap interval: three arrays (S,), median, low, high.

    All rows are resampled with the same rounds.
    """
    rounds = samples.shape[1]
    picks = rng.integers(0, rounds, size=(resamples, rounds))
    medians = np.stack([np.median(row[picks], axis=1) for row in samples])  # (S, resamples)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return np.median(samples, axis=1), low, high


def quiet_rounds(*models_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rounds in which every model, (rounds,) each, was near its own fastest tenth: (rounds,); at least a tenth."""
    slowed = np.max([ms / np.quantile(ms, QUIET_QUANTILE) for ms in models_ms], axis=0)
    return np.asarray(slowed <= max(DISTURBED, float(np.quantile(slowed, QUIET_QUANTILE))))


def paired_latency(
    dense_ms: NDArray[np.float64], pruned_ms: NDArray[np.float64], rng: np.random.Generator
) -> PairedLatency:
    """Statistics of samples (rounds,) of both models, taken in the same rounds.

    Raises:
        BadInputError: different numbers of rounds, none, or a sample that is not a positive number.
    """
    if dense_ms.shape != pruned_ms.shape or dense_ms.ndim != 1 or not dense_ms.size:
        raise BadInputError(f"paired samples of shapes {dense_ms.shape} and {pruned_ms.shape}: equal rounds are needed")
    if not (np.isfinite(dense_ms).all() and np.isfinite(pruned_ms).all() and min(dense_ms.min(), pruned_ms.min()) > 0):
        raise BadInputError("paired samples must be positive, finite milliseconds")
    median, low, high = median_interval(np.stack([dense_ms, pruned_ms, pruned_ms / dense_ms]), rng)
    return PairedLatency(
        dense_ms=float(median[0]),
        dense_low=float(low[0]),
        dense_high=float(high[0]),
        pruned_ms=float(median[1]),
        pruned_low=float(low[1]),
        pruned_high=float(high[1]),
        ratio=float(median[2]),
        ratio_low=float(low[2]),
        ratio_high=float(high[2]),
        rounds=dense_ms.size,
    )


def measure_many(
    dense: Path | bytes,
    pruned: Sequence[Path | bytes],
    inputs: Inputs,
    *,
    runtime: Runtime | None = None,
    rounds: int = ROUNDS,
    min_ms: float = SAMPLE_MS,
    seed: int = 0,
    patience_s: float | None = 0.0,
) -> list[PairedLatency]:
    """Measure several pruned models beside the dense one, all in the same interleaved rounds.

    Args:
        dense, pruned: files of the runtime, or their contents, that take the same inputs.
        inputs: the arrays that they take, in order, or the only one; batch included.
        runtime: what runs them; None is ONNX Runtime's CPU provider on one thread.
        rounds: samples of each model, disturbed ones included; 100 or more outlast most disturbances.
        min_ms: least duration of a sample.
        seed: of the orders and the bootstrap.
        patience_s: how much longer to measure, in all, where the rounds leave a model in doubt; None is three times as
            long as they took.

    Raises:
        BadInputError: as ``Runtime.load`` and ``time_interleaved``.
    """
    rng = np.random.default_rng(seed)
    runtime = runtime or OnnxRuntime()
    networks = [runtime.load(file) for file in (dense, *pruned)]
    return measured_until_decided(
        lambda count: time_interleaved(networks, inputs, count, min_ms, rng), rounds, patience_s, rng
    )


def measured_until_decided(
    sample: Callable[[int], NDArray[np.float64]],
    rounds: int,
    patience_s: float | None,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[PairedLatency]:
    """Sample so many rounds, then go on a block at a time while a model is in doubt and patience lasts.

    Args:
        sample: times a number of rounds: (1 + pruned, rounds) ms, the dense model first.
        rounds: at least so many.
        patience_s: of the rounds beyond, by ``clock``; None is three times as long as the rounds took. A block that has
            begun is finished.
        rng: source of the bootstrap.
        clock: seconds.
        pause: waits so many seconds between two blocks.
    """
    blocks, begun = [], clock()
    for done in range(0, rounds, BLOCK):
        pause(PAUSE_S if done else 0.0)
        blocks.append(sample(min(BLOCK, rounds - done)))
    latencies, rounds_end = _paired(blocks, rng), clock()
    patience_s = PATIENCE * (rounds_end - begun) if patience_s is None else patience_s
    while any(latency.doubt for latency in latencies) and clock() - rounds_end < patience_s:
        pause(PAUSE_S)
        blocks.append(sample(BLOCK))
        latencies = _paired(blocks, rng)
    return latencies


def paired_samples(dense_ms: NDArray[np.float64], pruned_ms: NDArray[np.float64], seed: int = 0) -> PairedLatency:
    """Statistics of samples (rounds,) of both models in the same rounds, without those that disturbed either.

    Raises:
        BadInputError: as ``paired_latency``.
    """
    if dense_ms.shape != pruned_ms.shape or not dense_ms.size:
        raise BadInputError(f"paired samples of shapes {dense_ms.shape} and {pruned_ms.shape}: equal rounds are needed")
    return _paired([np.stack([dense_ms, pruned_ms])], np.random.default_rng(seed))[0]


def _paired(blocks: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> list[PairedLatency]:
    """Statistics of every model beside the dense one, of the rounds in which both were quiet."""
    dense, *pruned = np.concatenate(blocks, axis=1)  # (rounds,) each
    paired = []
    for row in pruned:
        quiet = quiet_rounds(dense, row)
        paired.append(replace(paired_latency(dense[quiet], row[quiet], rng), disturbed=int((~quiet).sum())))
    return paired


def measuring_seconds(call_ms: float, models: int, rounds: int, min_ms: float = SAMPLE_MS) -> float:
    """Return about how long ``measure_many`` takes: so many models, the dense one included, of ``call_ms`` a call."""
    blocks = -(-rounds // BLOCK)
    sample_ms = max(min_ms, call_ms) + call_ms  # an untimed call comes before every sample
    warm_ms = max(WARMUP_MS, 2 * call_ms)
    return (blocks - 1) * PAUSE_S + models * (rounds * sample_ms + blocks * warm_ms) / 1e3
