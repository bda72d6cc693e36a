"""Timing models against each other: interleaved, warm, without the garbage collector.

Machines drift (clock, neighbours, temperature). Each round times every model once in a fresh random order, so that
drift hits all alike and two samples of one round may be compared as a pair. Samples are short, so that some fall
between two disturbances.
"""

from __future__ import annotations

import gc
import math
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

import numpy as np

__all__ = ["Clock", "time_round", "warm_up", "without_gc"]

NS_PER_MS = 1e6
Call = Callable[[], None]


class Clock:
    """The device's clock; tests put another in its place."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def sample_ms(self, call: Call, repeats: int) -> float:
        """Milliseconds a call, the mean over ``repeats`` calls in a row."""
        start = time.perf_counter_ns()
        for _ in range(repeats):
            call()
        return (time.perf_counter_ns() - start) / repeats / NS_PER_MS


@contextmanager
def without_gc() -> Iterator[None]:
    """Collect no garbage inside, nor before: that takes longer than the rounds of a small network."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm_up(call: Call, sample_ms: float, warmup_ms: float, clock: Clock) -> tuple[int, float]:
    """Run until ``warmup_ms`` are over (twice at least).

    Returns:
        How many calls fill ``sample_ms``, and the fastest call's milliseconds.
    """
    elapsed, fastest = 0.0, math.inf
    while elapsed < warmup_ms or not math.isfinite(fastest):
        elapsed += clock.sample_ms(call, 1)
        duration_ms = clock.sample_ms(call, 1)
        elapsed, fastest = elapsed + duration_ms, min(fastest, duration_ms)
    return max(1, math.ceil(sample_ms / fastest)), fastest


def time_round(calls: Sequence[Call], repeats: Sequence[int], rng: np.random.Generator, clock: Clock) -> list[float]:
    """Time every call once, in random order: milliseconds a call.

    Each is run once untimed before its sample: caches then hold the weights of the model being timed.
    """
    samples = [0.0] * len(calls)
    for i in rng.permutation(len(calls)):
        calls[i]()
        samples[i] = clock.sample_ms(calls[i], repeats[i])
    return samples
