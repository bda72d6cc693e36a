"""Measure many pruned versions of a network: whole runs for the truth, profiles for who took the time.

A shared machine is undisturbed only now and then. So each variant is timed in many short samples spread over the
whole run, twice (before and after the profiles), and its latency is its FASTEST sample: the one nothing disturbed.
On a machine with busy neighbours the fastest samples of two such passes agreed to 0.3 % where medians differed by 30 %;
on a quiet machine both statistics predict equally well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from amcsearch.core import LayerSpec, PruningPolicy
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Trace
from amcsearch.runtime.attribution import LayerTime, profile_layers
from amcsearch.runtime.onnx_export import exported
from amcsearch.runtime.session import make_session
from amcsearch.runtime.timing import time_interleaved
from amcsearch.runtime.variants import random_kept

__all__ = ["MeasuredVariant", "Progress", "batched", "call_overhead_ms", "measure_variants"]

Progress = Callable[[float, str], None]
"""Called with the share done, in [0, 1], and what is being done."""

ROUNDS = 20
SAMPLE_MS = 1.5  # short, so that some samples fall between two disturbances
PROFILE_ROUNDS = 15
CHUNK_BYTES = 128 * 2**20  # of serialised models held at once; the runtime keeps about three times that


@dataclass(frozen=True)
class MeasuredVariant:
    """One pruned network: layers, latency in two passes (fastest samples, ms), and profile by layer name."""

    policy: PruningPolicy
    layers: tuple[LayerSpec, ...]
    first_ms: float
    second_ms: float
    profile: dict[str, LayerTime]

    @property
    def latency_ms(self) -> float:
        """Fastest sample of both passes."""
        return min(self.first_ms, self.second_ms)


def batched(example: Tensor, batch: int) -> Tensor:
    """Repeat an example (1, …) to (batch, …)."""
    return example.expand(batch, *example.shape[1:]).contiguous()


def call_overhead_ms(threads: int) -> float:
    """Latency of a call that computes next to nothing: what every network pays once."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = make_session(bytes(model.SerializeToString()), threads)
    x = np.zeros((1, 1), dtype=np.float32)
    return float(time_interleaved([session], x, ROUNDS, SAMPLE_MS, np.random.default_rng(0)).min())


def _chunks(
    model: nn.Module, trace: Trace, x: Tensor, policies: Sequence[PruningPolicy], rng: np.random.Generator
) -> Iterator[tuple[list[PruningPolicy], list[bytes]]]:
    """Export variants until ``CHUNK_BYTES`` are full, the dense network first in each chunk, and yield them."""
    dense = exported(model, x)
    chosen, models = [trace.network.dense], [dense]
    for policy in policies:
        chosen.append(policy)
        models.append(exported(remove(model, trace, random_kept(trace, policy, rng)), x))
        if sum(map(len, models)) > CHUNK_BYTES:
            yield chosen, models
            chosen, models = [trace.network.dense], [dense]
    if len(chosen) > 1 or not policies:
        yield chosen, models


def _share_out(progress: Progress | None, start: float, stop: float, what: str, steps: int) -> Callable[[int], None]:
    """A counter of ``steps`` steps that reports its share of the interval from ``start`` to ``stop``."""
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(start + (stop - start) * min(done / steps, 1.0), what)

    return step


def _measure_chunk(
    trace: Trace,
    chunk: tuple[list[PruningPolicy], list[bytes]],
    inputs: NDArray[np.generic],
    threads: int,
    rng: np.random.Generator,
    profile: bool,
    step: Callable[[int], None],
) -> list[MeasuredVariant]:
    policies, models = chunk
    layers = [trace.network.with_channels(policy).layers for policy in policies]
    sessions = [make_session(model, threads) for model in models]
    first = time_interleaved(sessions, inputs, ROUNDS, SAMPLE_MS, rng, progress=step).min(axis=1)
    profiles: list[dict[str, LayerTime]] = [{} for _ in models]
    if profile:
        names = [[layer.name for layer in specs] for specs in layers]
        profiles = profile_layers(models, names, inputs, threads=threads, rounds=PROFILE_ROUNDS, rng=rng)
    second = time_interleaved(sessions, inputs, ROUNDS, SAMPLE_MS, rng, progress=step).min(axis=1)
    return [
        MeasuredVariant(policy, specs, float(a), float(b), times)
        for policy, specs, a, b, times in zip(policies, layers, first, second, profiles, strict=True)
    ]


def measure_variants(
    model: nn.Module,
    trace: Trace,
    example: Tensor,
    policies: Sequence[PruningPolicy],
    *,
    threads: int,
    rng: np.random.Generator,
    profile: bool = True,
    progress: Progress | None = None,
) -> list[MeasuredVariant]:
    """Remove random channels as each policy says, export, time in two passes, and profile in between.

    Variants are measured in chunks that fit into memory, each beside the dense network; chunks are brought to one
    scale by it.

    Args:
        model, trace: the dense network.
        example: the input, batch included.
        policies: what to measure.
        threads: threads inside an operator.
        rng: chooses channels and orders.
        profile: whether to attribute time to layers; without it ``profile`` of the results is empty.
        progress: see ``Progress``.

    Returns:
        The dense network first, then one a policy.
    """
    step = _share_out(progress, 0.0, 1.0, "measuring variants", 2 * ROUNDS * (len(policies) + 1))
    inputs = example.numpy()
    chunks = [
        _measure_chunk(trace, chunk, inputs, threads, rng, profile, step)
        for chunk in _chunks(model, trace, example, policies, rng)
    ]
    dense_ms = min(chunk[0].latency_ms for chunk in chunks)
    scaled = [_scaled(variant, dense_ms / chunk[0].latency_ms) for chunk in chunks for variant in chunk[1:]]
    return [next(chunk[0] for chunk in chunks if chunk[0].latency_ms == dense_ms), *scaled]


def _scaled(variant: MeasuredVariant, factor: float) -> MeasuredVariant:
    return replace(variant, first_ms=variant.first_ms * factor, second_ms=variant.second_ms * factor)
