"""From what kits measured to latency tables.

A pass's latency is the median of its samples in the rounds in which the network's reference was within 5 % of its quiet
level, as for finalists (``verify``): what the user will see when nobody else uses the machine. Fastest samples predict
equally well, and read some percent too low. A pass with less than half as many quiet rounds as the variant's quietest
one does not count: the few it has were hardly quiet throughout. Without any, the fastest sample of each pass stands in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.runtime.attribution import kernel_runs
from amcsearch.runtime.kit_results import KitResult, ModelResult, TimedPass
from amcsearch.runtime.measured import KernelRun, MeasuredVariant
from amcsearch.runtime.measurement_plan import described_networks
from amcsearch.runtime.network_record import network_from_record
from amcsearch.runtime.on_device.drift import DISTURBED, QUIET_QUANTILE
from amcsearch.runtime.roles import HELD_OUT
from amcsearch.runtime.table_builder import merged, table_of, with_entry

__all__ = ["measured_variants", "table_from_results"]


def _passes_ms(passes: Iterable[TimedPass], quiet_ms: float) -> tuple[float, ...]:
    quiet = [(one.samples_ms, one.reference_ms <= DISTURBED * quiet_ms) for one in passes]
    most = max((int(rounds.sum()) for _, rounds in quiet), default=0)
    if not most:
        return tuple(float(samples.min()) for samples, _ in quiet)
    return tuple(float(np.median(samples[rounds])) for samples, rounds in quiet if 2 * rounds.sum() >= most)


def _quiet_level(models: Iterable[ModelResult]) -> float:
    """Low quantile of all samples of a network's reference, in ms."""
    samples = [one.reference_ms for model in models for one in model.passes]
    return float(np.quantile(np.concatenate(samples), QUIET_QUANTILE)) if samples else np.inf


def _variant(model: ModelResult, network: NetworkSpec, owners: Mapping[str, str], quiet_ms: float) -> MeasuredVariant:
    policy = network.dense if model.policy is None else PruningPolicy(model.policy)
    passes = _passes_ms(model.passes, quiet_ms)
    runs: Sequence[KernelRun] = ()
    if model.graph is not None and (model.nodes or not passes):
        runs = kernel_runs(model.graph, owners, model.nodes)
    return MeasuredVariant(policy, network.with_channels(policy).layers, passes, tuple(runs))


def measured_variants(result: KitResult, name: str) -> tuple[NetworkSpec, list[MeasuredVariant], list[MeasuredVariant]]:
    """The dense shapes of a network of a result, the variants that build its table, and those held out.

    Raises:
        BadInputError: the result's plan does not describe the network.
    """
    networks = described_networks(result.plan["info"])
    if name not in networks:
        raise BadInputError(f"the result holds no network {name!r}; it holds {sorted(networks)}")
    network = network_from_record(networks[name]["network"])
    owners: Mapping[str, str] = networks[name]["owners"]
    models = [model for model in result.models if model.network == name]
    quiet_ms = _quiet_level(models)
    found = [(model.role, _variant(model, network, owners, quiet_ms)) for model in models]
    building = [variant for role, variant in found if role != HELD_OUT]
    return network, building, [variant for role, variant in found if role == HELD_OUT and variant.passes_ms]


def table_from_results(results: Iterable[KitResult], known: Sequence[LatencyTable] = ()) -> LatencyTable:
    """Make one table of all networks in results of one device, beside those of tables that are there already.

    Variants of a network in several results count together, brought to the speed of the first by its dense network.

    Raises:
        BadInputError: no result, two devices, or too few variants of a network.
    """
    parts: dict[str, list[tuple[KitResult, NetworkSpec, list[MeasuredVariant], list[MeasuredVariant]]]] = {}
    for result in results:
        for name in described_networks(result.plan["info"]):
            parts.setdefault(name, []).append((result, *measured_variants(result, name)))
    tables = list(known)
    for name, measured in parts.items():
        result, network, _, _ = measured[-1]
        speeds = [_dense_ms(own, network) for _, _, own, _ in measured]
        building = [_slower(v, speeds[0] / s) for (_, _, own, _), s in zip(measured, speeds, strict=True) for v in own]
        held_out = [_slower(v, speeds[0] / s) for (*_, own), s in zip(measured, speeds, strict=True) for v in own]
        table = table_of(name, network, building, held_out, result.overhead_ms, result.provenance)
        tables.append(with_entry(table, name, {"drift": _drift(result), "notes": list(result.notes)}))
    return merged(tables)


def _dense_ms(variants: Sequence[MeasuredVariant], network: NetworkSpec) -> float:
    return next((v.latency_ms for v in variants if v.policy == network.dense and v.passes_ms), 1.0)


def _slower(variant: MeasuredVariant, factor: float) -> MeasuredVariant:
    return replace(variant, passes_ms=tuple(factor * ms for ms in variant.passes_ms))


def _drift(result: KitResult) -> dict[str, Any]:
    return {key: result.drift[key] for key in ("disturbed_share", "largest") if key in result.drift}
