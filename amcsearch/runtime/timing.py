"""Timing several models against each other: interleaved, warm, without the garbage collector.

Machines drift (clock, neighbours, temperature). Each round times every model once in a fresh random order, so that
drift hits all alike and two samples of one round may be compared as a pair.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from amcsearch.core import BadInputError

__all__ = ["bound_call", "time_interleaved"]

NS_PER_MS = 1e6


def bound_call(session: ort.InferenceSession, inputs: NDArray[np.generic]) -> Callable[[], None]:
    """A call without arguments that runs ``session`` once on ``inputs``, nothing allocated or copied on the way."""
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, np.ascontiguousarray(inputs))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    session.run_with_iobinding(binding)
    values = binding.get_outputs()  # of this batch's shape: from now on each run writes into them
    binding.clear_binding_outputs()
    for output, value in zip(session.get_outputs(), values, strict=True):
        binding.bind_ortvalue_output(output.name, value)

    def call() -> None:
        session.run_with_iobinding(binding)

    return call


@contextmanager
def _without_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sample_ms(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats / NS_PER_MS


def _warm_up(call: Callable[[], None], min_ms: float, warmup_ms: float) -> int:
    """Run until ``warmup_ms`` are over (twice at least); return how many calls fill ``min_ms``."""
    elapsed, fastest = 0.0, math.inf
    while elapsed < warmup_ms or not math.isfinite(fastest):
        elapsed += _sample_ms(call, 1)
        one = _sample_ms(call, 1)
        elapsed, fastest = elapsed + one, min(fastest, one)
    return max(1, math.ceil(min_ms / fastest))


def time_interleaved(
    sessions: Sequence[ort.InferenceSession],
    inputs: NDArray[np.generic],
    rounds: int,
    min_ms: float,
    rng: np.random.Generator,
    *,
    warmup_ms: float = 10.0,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Time every session once a round, in a fresh random order each round.

    Args:
        sessions: S sessions that take the same input.
        inputs: the one input array, batch included.
        rounds: samples of each session.
        min_ms: a sample repeats the call until about this long, and is the mean over the repeats.
        rng: source of the orders.
        warmup_ms: each session runs this long before the first round. Warm-up also follows each change of session
            inside a round, by one untimed call: caches then hold the weights of the model being timed.
        progress: called with 1 after every sample (S x rounds times in all).

    Returns:
        (S, rounds) milliseconds a call.

    Raises:
        BadInputError: no session, or no round.
    """
    if not sessions or rounds < 1:
        raise BadInputError(f"timing {len(sessions)} models in {rounds} rounds: at least 1 of each is needed")
    calls = [bound_call(session, inputs) for session in sessions]
    samples = np.empty((len(calls), rounds))
    with _without_gc():
        repeats = [_warm_up(call, min_ms, warmup_ms) for call in calls]
        for r in range(rounds):
            for s in rng.permutation(len(calls)):
                calls[s]()
                samples[s, r] = _sample_ms(calls[s], repeats[s])
                if progress is not None:
                    progress(1)
    return samples
