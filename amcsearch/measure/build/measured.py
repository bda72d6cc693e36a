"""Pruned networks as a device ran them, made of the results of kits.

A pass's latency is the median of its samples in the rounds in which the network's reference was within 5 % of its quiet
level, as for finalists (``verify``): what the user will see when nobody else uses the machine. Fastest samples predict
equally well, and read some percent too low. A pass with less than half as many quiet rounds as the variant's quietest
one does not count: the few it has were hardly quiet throughout. Without any, the fastest sample of each pass stands in:
a variant whose every pass the device was slow in looks slower beside others than it is, and is measured again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec, PruningPolicy
from amcsearch.measure.build.attribution import KernelRun, kernel_runs
from amcsearch.measure.kit.kit import REFERENCE
from amcsearch.measure.kit.kit_results import KitResult, ModelResult, TimedPass
from amcsearch.measure.plan.network_record import DescribedNetwork
from amcsearch.measure.plan.roles import HELD_OUT
from amcsearch.runtime import DISTURBED, QUIET_QUANTILE, quiet_rounds

__all__ = ["MeasuredNetwork", "MeasuredVariant", "joined_variants", "measured_variants", "slowed_models"]

SLOWED: Final = 1.10  # times slower than in its quiet moments: more than a table may err where a machine is restless


@dataclass(frozen=True)
class MeasuredVariant:
    """One pruned network: its layers, its latency in independent passes over all variants (ms), and its profile.

    ``passes_ms`` is empty where only the graph was read, ``kernels`` where the network was not profiled.
    """

    policy: PruningPolicy
    layers: tuple[LayerSpec, ...]
    passes_ms: tuple[float, ...]
    kernels: tuple[KernelRun, ...]

    @property
    def latency_ms(self) -> float:
        """Median of the passes: one that was disturbed throughout does not count."""
        return float(np.median(self.passes_ms))

    @cached_property
    def kernels_by_layer(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
        """Layer name → kernel → positions in ``kernels``."""
        positions: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, run in enumerate(self.kernels):
            positions[run.layer][run.kernel].append(position)
        return positions


class MeasuredNetwork(NamedTuple):
    """A network of a result: its dense shapes, the variants that build its table, and those held out."""

    network: NetworkSpec
    building: list[MeasuredVariant]
    held_out: list[MeasuredVariant]

    @property
    def dense_ms(self) -> float | None:
        """Latency of the dense network, None where it was not timed."""
        dense = (v for v in self.building if v.policy == self.network.dense and v.passes_ms)
        return next((variant.latency_ms for variant in dense), None)


def _passes_ms(passes: Sequence[TimedPass], quiet_ms: float) -> tuple[float, ...]:
    quiet = [_quiet_samples(timed, DISTURBED * quiet_ms) for timed in passes]
    most = max(map(len, quiet), default=0)
    if not most:
        return tuple(float(timed.samples_ms.min()) for timed in passes)
    return tuple(float(np.median(samples)) for samples in quiet if 2 * len(samples) >= most)


def _quiet_samples(timed: TimedPass, most_ms: float) -> NDArray[np.float64]:
    """Samples of the rounds in which the reference took at most ``most_ms`` and the model was near its fastest tenth.

    Were the reference alone asked, it would be quiet by choice and the model by chance, and look slower.
    """
    return timed.samples_ms[(timed.reference_ms <= most_ms) & quiet_rounds(timed.samples_ms)]


def _quiet_level(models: Sequence[ModelResult]) -> float:
    """Low quantile of all samples of a network's reference, in ms."""
    samples = [timed.reference_ms for model in models for timed in model.passes]
    return float(np.quantile(np.concatenate(samples), QUIET_QUANTILE)) if samples else np.inf


def _variant(model: ModelResult, described: DescribedNetwork, quiet_ms: float) -> MeasuredVariant:
    network = described.network
    policy = network.dense if model.policy is None else PruningPolicy(model.policy)
    passes = _passes_ms(model.passes, quiet_ms)
    runs: Sequence[KernelRun] = ()
    graph = model.graph if model.nodes or not passes else None
    if graph is not None:
        runs = kernel_runs(graph, described.owners, model.nodes)
    return MeasuredVariant(policy, network.with_channels(policy).layers, passes, tuple(runs))


def measured_variants(result: KitResult, name: str) -> MeasuredNetwork:
    """What a result says of one network.

    Raises:
        BadInputError: the result's plan does not describe the network.
    """
    if name not in result.networks:
        raise BadInputError(f"the result holds no network {name!r}; it holds {sorted(result.networks)}")
    described = result.networks[name]
    models = [model for model in result.models if model.network == name]
    quiet_ms = _quiet_level(models)
    building, held_out = [], []
    for model in models:
        variant = _variant(model, described, quiet_ms)
        if model.role != HELD_OUT:
            building.append(variant)
        elif variant.passes_ms:
            held_out.append(variant)
    return MeasuredNetwork(described.network, building, held_out)


def joined_variants(results: Sequence[KitResult], name: str) -> MeasuredNetwork:
    """What several results say of one network, at the speed of the first, which their dense networks tell.

    Raises:
        BadInputError: as ``measured_variants``.
    """
    parts = [measured_variants(result, name) for result in results]
    speeds = [1.0 if part.dense_ms is None else part.dense_ms for part in parts]
    even = [(part, speeds[0] / speed) for part, speed in zip(parts, speeds, strict=True)]
    building = [_slower(variant, factor) for part, factor in even for variant in part.building]
    held_out = [_slower(variant, factor) for part, factor in even for variant in part.held_out]
    return MeasuredNetwork(parts[-1].network, building, held_out)


def _slower(variant: MeasuredVariant, factor: float) -> MeasuredVariant:
    return replace(variant, passes_ms=tuple(factor * ms for ms in variant.passes_ms))


def slowed_models(results: Sequence[KitResult]) -> dict[str, float]:
    """Models that were never timed while the device was near its quiet speed, and how many times slower it was.

    That is the low quantile of the reference's samples in the model's quietest pass, over that of all samples of the
    reference in whichever result has the lowest: one that was slow throughout has no quiet moment to tell it by. A
    model is judged by its last result, the reference by its first.
    """
    quiet_ms: dict[str, float] = {}
    slowest: dict[str, float] = {}
    for result in results:
        for name in {model.network for model in result.models}:
            level = _quiet_level([model for model in result.models if model.network == name])
            quiet_ms[name] = min(level, quiet_ms.get(name, np.inf))
    for result in results:
        for model in result.models:
            levels = [float(np.quantile(timed.reference_ms, QUIET_QUANTILE)) for timed in model.passes]
            if levels and not (model.role == REFERENCE and model.id in slowest):
                slowest[model.id] = min(levels) / quiet_ms[model.network]
    return {name: ratio for name, ratio in slowest.items() if ratio > SLOWED}
