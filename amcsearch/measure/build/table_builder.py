"""Latency tables from whole, really pruned networks: their rows, their calibration, and what they reward.

Isolated layers are not measured: their sums err by tens of percent, because a layer alone pays reorders and a call of
its own. See ``calibration`` for how profiles and whole runs become rows that add up.

A table also says which multiple of channels its device rewards, asked of whole networks and not of rules. For each
candidate, from one block of the runtime's layout downwards, pairs of networks are priced by the table: widths on the
candidate's grid but off the next coarser one, and the same widths rounded up to that. The finer grid is accepted if the
share of time it saves is at least 0.28 of the share of MACs it saves; the first refusal ends the descent. (Below the
step where kernels fall back to a slower layout the narrower network is even slower.) The table holds measured networks
on all of these grids, and predicts pairs without the noise of timing them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec
from amcsearch.costs import (
    COLUMNS,
    GRAPH,
    NO_KERNEL,
    WHOLE,
    Anchors,
    CacheOverflow,
    CalibrationRecord,
    ChannelGrid,
    DriftRecord,
    GridStep,
    LatencyModel,
    LatencyTable,
    Macs,
    NetworkEntry,
    Observation,
    Provenance,
    RowKey,
    Sigma,
    fingerprint,
    make_rows,
    row_key,
    weight_mib,
)
from amcsearch.measure.build.attribution import ATTRIBUTION
from amcsearch.measure.build.calibration import Calibration, calibrate, observe
from amcsearch.measure.build.maintenance import carried, merged, prediction_errors, with_accuracy
from amcsearch.measure.build.measured import MeasuredVariant, joined_variants
from amcsearch.measure.build.whole_runs import fit_whole_runs
from amcsearch.measure.kit.kit_results import KitResult
from amcsearch.measure.plan.variants import neighbour_pairs
from amcsearch.runtime import CPU, is_profiled

__all__ = ["accepted_multiple", "channel_grid", "grid_steps", "table_from_results", "table_of"]

LEAST_VARIANTS: Final = 4
LEAST_TRIED: Final = 16  # coarsest multiple tried where whole runs show no wider block
PAIRS: Final = 48
# useful and useless steps of five reference networks lie on either side: 0.32 and more, 0.24 and less
LEAST_YIELD: Final = 0.28
_Learnt = tuple[NetworkEntry, list[Observation], list[MeasuredVariant]]  # of which variants, last
NO_BLOCK: Final = 8  # coarsest multiple tried where the runtime has no blocked layout: a register of floats
RULE: Final = "the finest grid whose saved share of time is at least 0.28 of its saved share of MACs, on whole networks"


def accepted_multiple(coarsest: int, steps: Iterable[GridStep]) -> int:
    """The finest multiple reached before the first step in which fewer MACs did not turn into less time."""
    multiple = coarsest
    for step in steps:
        if step.time_saved < LEAST_YIELD * step.macs_saved:
            break
        multiple = step.multiple
    return multiple


def grid_steps(model: LatencyModel, network: NetworkSpec, coarsest: int, seed: int = 0) -> list[GridStep]:
    """Price every step from ``coarsest`` down to 1; steps that the network's groups cannot tell apart are left out."""
    rng = np.random.default_rng(seed)
    steps = []
    multiple = coarsest // 2
    while multiple >= 1:
        policies = [policy for pair in neighbour_pairs(network, PAIRS, multiple, rng) for policy in pair]
        if policies:
            variants = [network.with_channels(policy).layers for policy in policies]
            ms = model.predict_all(variants).reshape(-1, 2)
            macs = np.array([sum(map(Macs().layer_cost, layers)) for layers in variants]).reshape(-1, 2)
            saved = 1.0 - np.stack([macs[:, 0] / macs[:, 1], ms[:, 0] / ms[:, 1]])
            steps.append(GridStep(multiple, *(float(np.median(row)) for row in saved)))
        multiple //= 2
    return steps


def channel_grid(model: LatencyModel, network: NetworkSpec, block: int) -> tuple[int, ChannelGrid]:
    """The multiple of channels that the device rewards, and why.

    Args:
        model: of the network.
        network: its dense shapes.
        block: channels in a block of the runtime's layout, 0 if it has none.
    """
    coarsest = block or NO_BLOCK
    steps = grid_steps(model, network, coarsest)
    return accepted_multiple(coarsest, steps), ChannelGrid(rule=RULE, tried=tuple(steps))


def _records(
    network: str, observations: Sequence[Observation], factors: Mapping[str, float]
) -> Iterator[Mapping[str, object]]:
    """One row a layer shape and kernel: means over the observations of these shapes, times factors by kernel."""
    alike: dict[RowKey, list[Observation]] = defaultdict(list)
    for observation in observations:
        alike[row_key(observation.layer)].append(observation)
    for key, members in alike.items():
        for kernel, measured in _measured(members, factors):
            yield dict(zip(COLUMNS, (network, *key, kernel, *measured), strict=True))


def _measured(
    alike: Sequence[Observation], factors: Mapping[str, float]
) -> Iterator[tuple[str, tuple[float, float | None, float | None, int, str]]]:
    """Each kernel of observations of one layer shape: count, mean and median absolute deviation of ms, samples, source.

    A kernel that was never timed has neither of both.
    """
    n, kernels = len(alike), dict.fromkeys(kernel for observation in alike for kernel in observation.kernels)
    if not kernels:
        yield NO_KERNEL, (0.0, 0.0, 0.0, n, "profile")
    for kernel in kernels:
        runs = [observation.kernels[kernel] for observation in alike if kernel in observation.kernels]
        count = sum(count for count, _ in runs) / n
        timed = np.array([factors.get(kernel, 1.0) * ms for _, ms in runs if ms is not None])
        if len(timed):
            spread = float(np.median(np.abs(timed - np.median(timed))))
            yield kernel, (count, float(timed.mean()), spread, n, "runs" if kernel.startswith(WHOLE) else "profile")
        else:
            yield kernel, (count, None, None, n, GRAPH)


def _entry(
    calibration: Calibration, overhead_ms: float, variants: int, network: NetworkSpec, each: int
) -> NetworkEntry:
    """What calibration on so many variants says of a network, whose weights take ``each`` bytes."""
    residuals = calibration.residuals
    return NetworkEntry(
        fingerprint=fingerprint(network),
        weights_mib=sum(weight_mib(layer, each) for layer in network.layers),
        constant_ms=calibration.constant_ms,
        smoothing=calibration.smoothing,
        residency=calibration.overflow,
        sigma=Sigma(floor=calibration.sigma_floor, per_octave=calibration.sigma_octave),
        calibration=CalibrationRecord(
            attribution=ATTRIBUTION,
            profile_scale=calibration.nodes.scale,
            profile_node_ms=calibration.nodes.node_ms,
            factors=calibration.factors,
            call_overhead_ms=overhead_ms,
            variants=variants,
            left_out_mape=float(np.abs(residuals).mean()) if residuals else None,
        ),
    )


def table_of(
    name: str,
    network: NetworkSpec,
    variants: Sequence[MeasuredVariant],
    held_out: Sequence[MeasuredVariant],
    overhead_ms: float,
    provenance: Provenance,
    known: LatencyTable | None = None,
    *,
    is_draft: bool = False,
) -> LatencyTable:
    """Make the table of one network.

    Its predictor is made once: what it predicts of the variants, the grid and the held-out variants is all that is
    asked of it, and a table whose every time is multiplied by one factor predicts that much more.

    Args:
        name: of the network in the table.
        network: its dense shapes.
        variants: what the table is made of; of those without a time only the kernels are used. A runtime without a
            profile has no kernels, and latencies alone speak.
        held_out: variants that took no part, for the table's own accuracy.
        overhead_ms: latency of an empty call.
        provenance: where and how all of it was measured.
        known: a table of the device, which lends what few variants cannot tell: what weights beyond the caches cost,
            and how fast layers are where there is no profile.
        is_draft: whether it only has to predict: it then says neither its channel grid nor its accuracy.

    Raises:
        BadInputError: fewer than four profiled variants, or timed ones of a runtime without a profile.
    """
    profiled = provenance.is_onnx_runtime and is_profiled(provenance.provider or CPU)
    learn = _from_profiles if profiled else _from_whole_runs
    entry, observations, timed = learn(name, network, variants, overhead_ms, provenance, known)
    assert entry.calibration is not None
    rows = make_rows(_records(name, observations, entry.calibration.factors or {}))
    table = LatencyTable(rows, provenance, {name: entry})
    model = table.bind(name)
    factor = _common_factor(model, timed)
    entry = _scaled(entry, factor)
    if not is_draft:
        block = provenance.nchwc_block or 0 if entry.block is None else max(entry.block, LEAST_TRIED)
        multiple, grid = channel_grid(model, network, block)
        errors = prediction_errors(model, held_out, factor)
        entry = replace(entry, channel_multiple=multiple, channel_grid=grid, accuracy=errors)
    return replace(table, rows=table.rows.assign(latency_ms=factor * table.rows["latency_ms"]), networks={name: entry})


def _from_profiles(
    name: str,
    network: NetworkSpec,
    variants: Sequence[MeasuredVariant],
    overhead_ms: float,
    provenance: Provenance,
    known: LatencyTable | None,
) -> _Learnt:
    """What profiled variants say; of others the kernels alone are used, and none of their time."""
    profiled = [variant for variant in variants if variant.passes_ms and variant.kernels]
    _check_count(name, len(profiled), "profiled")
    each, block = provenance.weight_bytes, provenance.nchwc_block or 0
    like = None if known is None else known.settings_for(network).residency
    with threadpool_limits(1, "blas"):  # its systems are small: on a busy host threads only wait for each other
        calibration = calibrate(profiled, overhead_ms, block, weight_bytes=each, like=like)
    observations = [
        observation
        for variant in profiled
        for observation in observe(variant, calibration.nodes, overhead_ms, calibration.overflow, each)
    ]
    observations += [observation for variant in variants if not variant.passes_ms for observation in _lowered(variant)]
    return _entry(calibration, overhead_ms, len(profiled), network, each), observations, profiled


def _from_whole_runs(
    name: str,
    network: NetworkSpec,
    variants: Sequence[MeasuredVariant],
    overhead_ms: float,
    provenance: Provenance,
    known: LatencyTable | None,
) -> _Learnt:
    """What the latencies of variants say, of a runtime without a profile."""
    timed = [variant for variant in variants if variant.passes_ms]
    _check_count(name, len(timed), "timed")
    each = provenance.weight_bytes
    prior = None if known is None else known.bind(network)
    if prior is not None and not prior.predicts(network.layers):
        prior = None
    fit = fit_whole_runs(timed, overhead_ms, weight_bytes=each, prior=prior)
    entry = _entry(fit.calibration, overhead_ms, len(timed), network, each)
    assert entry.calibration is not None
    of_runs = replace(entry.calibration, attribution=None, profile_scale=None, profile_node_ms=None)
    entry = replace(entry, block=fit.steps.layout_block, calibration=of_runs)
    return entry, [observation for of_variant in fit.observations for observation in of_variant], timed


def _check_count(name: str, count: int, kind: str) -> None:
    if count < LEAST_VARIANTS:
        raise BadInputError(
            f"network {name!r}: {count} {kind} variants, a table needs at least {LEAST_VARIANTS}; "
            f"give the measurement more minutes or variants"
        )


def _common_factor(model: LatencyModel, variants: Sequence[MeasuredVariant]) -> float:
    """The factor by which half of a table's own variants are predicted too slow and half too fast.

    Calibration saw predictions of variants that were left out. Those lie further from measurements, err upwards more
    than downwards where a network is small, and so leave the whole some percent too fast.
    """
    predicted = model.predict_all([variant.layers for variant in variants])
    return float(np.median([variant.latency_ms for variant in variants] / predicted))


def _scaled(entry: NetworkEntry, factor: float) -> NetworkEntry:
    """The entry with every time in it multiplied."""
    assert entry.calibration is not None
    return replace(
        entry,
        constant_ms=factor * entry.constant_ms,
        residency=CacheOverflow({knot: factor * slope for knot, slope in entry.residency.slopes.items()}),
        calibration=replace(entry.calibration, common_factor=factor),
    )


def _lowered(variant: MeasuredVariant) -> list[Observation]:
    """Kernels of a variant that was optimised but never timed."""
    by_layer = variant.kernels_by_layer

    def kernels(layer: LayerSpec) -> dict[str, tuple[float, float | None]]:
        return {kernel: (float(len(at)), None) for kernel, at in by_layer.get(layer.name, {}).items()}

    return [Observation(layer, kernels(layer)) for layer in variant.layers]


def table_from_results(
    results: Iterable[KitResult],
    known: Sequence[LatencyTable] = (),
    prior: LatencyTable | None = None,
    *,
    is_draft: bool = False,
) -> LatencyTable:
    """Make one table of all networks in results of one device, beside those of tables that are there already.

    Variants of a network in several results count together, brought to the speed of the first by its dense network.

    Args:
        results: of the device.
        known: tables of the device.
        prior: a table of another device, which answers where the results are silent: see ``carried``.
        is_draft: as of ``table_of``.

    Raises:
        BadInputError: no result, two devices, or too few variants of a network.
    """
    parts: dict[str, list[KitResult]] = defaultdict(list)
    for result in results:
        for name in result.networks:
            parts[name].append(result)
    tables = list(known)
    for name, measured in parts.items():
        last, whole = measured[-1], joined_variants(measured, name)
        lent = None if prior is None else carried(prior, whole.network, whole.building, last.provenance)
        table = table_of(name, *whole, last.overhead_ms, last.provenance, lent, is_draft=is_draft)
        drift = DriftRecord(disturbed_share=last.drift.disturbed_share, largest=last.drift.largest)
        entry = replace(table.networks[name], drift=drift, notes=last.notes, timestamp=last.provenance.timestamp)
        if lent is None:
            tables.append(table.with_entry(name, entry))
            continue
        entry = replace(entry, anchors=_origin(whole.building, lent))
        both = merged([lent, table.with_entry(name, entry)])
        tables.append(both if is_draft else with_accuracy(both, name, whole.held_out))
    return merged(tables)


def _origin(runs: Sequence[MeasuredVariant], lent: LatencyTable) -> Anchors | None:
    """What says that another device's rows answer beside a network's own."""
    carried_by = next(iter(lent.networks.values())).anchors
    return carried_by and replace(carried_by, count=sum(bool(run.passes_ms) for run in runs), factors=None)
