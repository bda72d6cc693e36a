"""Timing several sessions against each other in interleaved rounds, by the program that runs on devices too."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from amcsearch.core import BadInputError
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.session import bound_call
from amcsearch.runtime.on_device.timing import Clock, time_round, warm_up, without_gc

__all__ = ["time_interleaved"]


def time_interleaved(
    sessions: Sequence[ort.InferenceSession],
    inputs: NDArray[np.generic],
    rounds: int,
    min_ms: float,
    rng: np.random.Generator,
    *,
    warmup_ms: float = 10.0,
) -> NDArray[np.float64]:
    """Time every session once a round, in a fresh random order each round.

    Args:
        sessions: S sessions that take the same input.
        inputs: the one input array, batch included.
        rounds: samples of each session.
        min_ms: a sample repeats the call until about this long, and is the mean over the repeats.
        rng: source of the orders.
        warmup_ms: each session runs this long before the first round.

    Returns:
        (S, rounds) milliseconds a call.

    Raises:
        BadInputError: no session, no round, or a model that does not take such an input.
    """
    if not sessions or rounds < 1:
        raise BadInputError(f"timing {len(sessions)} models in {rounds} rounds: at least 1 of each is needed")
    try:
        calls = [bound_call(session, inputs) for session in sessions]
    except DeviceError as error:
        raise BadInputError(str(error)) from error
    clock = Clock()
    with without_gc():
        repeats = [warm_up(call, min_ms, warmup_ms, clock)[0] for call in calls]
        return np.array([time_round(calls, repeats, rng, clock) for _ in range(rounds)]).T
