"""Latency tables from whole, really pruned networks: kernel rows, their calibration, and their own accuracy.

Isolated layers are not measured: their sums err by tens of percent, because a layer alone pays reorders and a call of
its own. See ``calibration`` for how profiles and whole runs become rows that add up.

Which multiple of channels does this device reward? Asked of whole networks, not of rules.

For each candidate, from one block of the runtime's layout downwards, pairs of networks are priced by the table: widths
on the candidate's grid but off the next coarser one, and the same widths rounded up to that. The finer grid is accepted
if the share of time it saves is at least 0.28 of the share of MACs it saves; the first refusal ends the descent. (Below
the step where kernels fall back to a slower layout the narrower network is even slower.) The table holds measured
networks on all of these grids, and predicts pairs without the noise of timing them.

From what kits measured to latency tables.

A pass's latency is the median of its samples in the rounds in which the network's reference was within 5 % of its quiet
level, as for finalists (``verify``): what the user will see when nobody else uses the machine. Fastest samples predict
equally well, and read some percent too low. A pass with less than half as many quiet rounds as the variant's quietest
one does not count: the few it has were hardly quiet throughout. Without any, the fastest sample of each pass stands in.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec, PruningPolicy
from amcsearch.costs import (
    COLUMNS,
    COMPARED,
    GRAPH,
    NO_KERNEL,
    LatencyTable,
    Macs,
    Observation,
    Residency,
    RowKey,
    bytes_a_weight,
    fingerprint,
    joined_rows,
    make_rows,
    row_key,
    weight_mib,
)
from amcsearch.measure.build.attribution import kernel_runs
from amcsearch.measure.build.calibration import Calibration, calibrate, observe
from amcsearch.measure.build.measured import KernelRun, MeasuredVariant
from amcsearch.measure.kit.kit_results import KitResult, ModelResult, TimedPass
from amcsearch.measure.plan.measurement_plan import described_networks
from amcsearch.measure.plan.network_record import network_from_record
from amcsearch.measure.plan.roles import HELD_OUT
from amcsearch.measure.plan.variants import neighbour_pairs
from amcsearch.runtime import DISTURBED, QUIET_QUANTILE

__all__ = [
    "GridStep",
    "accepted_multiple",
    "accuracy",
    "grid_info",
    "grid_steps",
    "measured_variants",
    "merged",
    "prediction_errors",
    "table_from_results",
    "table_of",
    "with_accuracy",
    "with_entry",
]

PAIRS = 48
LEAST_YIELD = (
    0.28  # useful and useless steps of five reference networks lie on either side: 0.32 and more, 0.24 and less
)
NO_BLOCK = 8  # coarsest multiple tried where the runtime has no blocked layout: a register of floats


@dataclass(frozen=True, slots=True)
class GridStep:
    """Median over pairs of the shares saved by a grid of ``multiple`` against twice that."""

    multiple: int
    macs_saved: float
    time_saved: float

    @property
    def is_worthwhile(self) -> bool:
        """Whether fewer MACs turned into less time."""
        return self.time_saved >= LEAST_YIELD * self.macs_saved


def accepted_multiple(coarsest: int, steps: list[GridStep]) -> int:
    """The finest multiple reached before the first refusal."""
    multiple = coarsest
    for step in steps:
        if not step.is_worthwhile:
            break
        multiple = step.multiple
    return multiple


def grid_steps(table: LatencyTable, network: NetworkSpec, coarsest: int, seed: int = 0) -> list[GridStep]:
    """Price every step from ``coarsest`` down to 1; steps that the network's groups cannot tell apart are left out."""
    rng = np.random.default_rng(seed)
    steps = []
    multiple = coarsest // 2
    while multiple >= 1:
        policies = [policy for pair in neighbour_pairs(network, PAIRS, multiple, rng) for policy in pair]
        if policies:
            layers = [network.with_channels(policy).layers for policy in policies]
            ms = table.predict_all(layers).reshape(-1, 2)
            macs = np.array([sum(map(Macs().layer_cost, one)) for one in layers]).reshape(-1, 2)
            saved = 1.0 - np.stack([macs[:, 0] / macs[:, 1], ms[:, 0] / ms[:, 1]])
            steps.append(GridStep(multiple, *(float(np.median(row)) for row in saved)))
        multiple //= 2
    return steps


def grid_info(table: LatencyTable, network: NetworkSpec) -> dict[str, Any]:
    """What a table says of its channel grid: ``channel_multiple`` and ``channel_grid`` (the rule and every step)."""
    coarsest = int(table.provenance.get("nchwc_block") or NO_BLOCK)
    steps = grid_steps(table, network, coarsest)
    tried = [{"multiple": s.multiple, "macs_saved": s.macs_saved, "time_saved": s.time_saved} for s in steps]
    rule = "the finest grid whose saved share of time is at least 0.28 of its saved share of MACs, on whole networks"
    return {
        "channel_multiple": accepted_multiple(coarsest, steps),
        "channel_grid": {"rule": rule, "tried": tried},
    }


LEAST_VARIANTS = 4


def _records(network: str, observations: Sequence[Observation], factors: Mapping[str, float]) -> list[dict[str, Any]]:
    counts: dict[RowKey, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    samples: dict[tuple[RowKey, str], list[float]] = defaultdict(list)
    places: dict[RowKey, int] = defaultdict(int)
    for one in observations:
        key = row_key(one.layer)
        places[key] += 1
        for kernel, (count, ms) in one.kernels.items():
            counts[key][kernel] += count
            samples[key, kernel] += [] if ms is None else [factors.get(kernel, 1.0) * ms]
    found = []
    for key, n in places.items():
        for kernel, count in (counts[key] or {NO_KERNEL: 0.0}).items():
            times = np.array(samples.get((key, kernel), [0.0] if kernel == NO_KERNEL else []))
            measured = (count / n, *_middle(times), n, "profile" if len(times) else GRAPH)
            found.append(dict(zip(COLUMNS, (network, *key, kernel, *measured), strict=True)))
    return found


def _middle(times: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Mean, and median absolute deviation, of what was timed; None of nothing."""
    if not len(times):
        return None, None
    return float(times.mean()), float(np.median(np.abs(times - np.median(times))))


def _calibration_info(calibration: Calibration, overhead_ms: float, variants: int) -> dict[str, Any]:
    return {
        "constant_ms": calibration.constant_ms,
        "smoothing": calibration.smoothing,
        "residency": dict(calibration.residency.slopes),
        "sigma": {"floor": calibration.sigma_floor, "per_octave": calibration.sigma_octave},
        "calibration": {
            "profile_scale": calibration.nodes.scale,
            "profile_node_ms": calibration.nodes.node_ms,
            "factors": dict(calibration.factors),
            "call_overhead_ms": overhead_ms,
            "variants": variants,
            "left_out_mape": float(np.abs(calibration.residuals).mean()) if calibration.residuals else None,
        },
    }


def prediction_errors(table: LatencyTable, variants: Sequence[MeasuredVariant]) -> dict[str, Any] | None:
    """Accuracy of a table on variants that took no part in it, None without any; see ``accuracy``."""
    timed = [variant for variant in variants if variant.passes_ms]
    if not timed:
        return None
    predicted = table.predict_all([variant.layers for variant in timed])
    return accuracy(predicted, [variant.passes_ms for variant in timed])


def accuracy(predicted: NDArray[np.float64], passes_ms: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Errors of predictions (V,) against measurements, one or more passes for each, as shares.

    ``mape`` is the mean, ``median`` the median absolute relative error, ``within_5`` and ``within_10`` the shares of
    variants within 5 and 10 %; ``noise_mape`` is the error of the first pass taken as prediction of the last, where
    there are two: no table can be expected to do better. The truth is the median of the passes.
    """
    truth = np.array([np.median(passes) for passes in passes_ms])
    twice = [passes[0] / passes[-1] - 1.0 for passes in passes_ms if len(passes) > 1]
    signed = predicted / truth - 1.0
    error = np.abs(signed)
    return {
        "variants": len(truth),
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "worst": float(error.max()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
        "bias": float(signed.mean()),
        "spearman": float(spearmanr(predicted, truth)[0]) if len(truth) > 2 else None,
        "noise_mape": float(np.abs(twice).mean()) if twice else None,
    }


def table_of(
    name: str,
    network: NetworkSpec,
    variants: Sequence[MeasuredVariant],
    held_out: Sequence[MeasuredVariant],
    overhead_ms: float,
    provenance: Mapping[str, Any],
    known: LatencyTable | None = None,
) -> LatencyTable:
    """Make the table of one network.

    Args:
        name: of the network in the table.
        network: its dense shapes.
        variants: what the table is made of; of those without a time only the kernels are used.
        held_out: variants that took no part, for the table's own accuracy.
        overhead_ms: latency of an empty call.
        provenance: where and how all of it was measured.
        known: a table of the device, which lends the residency that few variants cannot tell.

    Raises:
        BadInputError: fewer than four profiled variants.
    """
    profiled = [variant for variant in variants if variant.passes_ms and variant.kernels]
    if len(profiled) < LEAST_VARIANTS:
        raise BadInputError(
            f"network {name!r}: {len(profiled)} profiled variants, a table needs at least {LEAST_VARIANTS}; "
            f"give the measurement more minutes or variants"
        )
    weight_bytes = bytes_a_weight(provenance)
    block = int(provenance.get("nchwc_block") or 0)
    like = None if known is None else Residency.from_mapping(known.for_network(network).entry.get("residency"))
    calibration = calibrate(profiled, overhead_ms, block, weight_bytes=weight_bytes, like=like)
    seen = [
        one
        for variant in profiled
        for one in observe(variant, calibration.nodes, overhead_ms, calibration.residency, weight_bytes)
    ]
    seen += [one for variant in variants if not variant.passes_ms for one in _lowered(variant)]
    mib = sum(weight_mib(layer, weight_bytes) for layer in network.layers)
    entry = {"fingerprint": fingerprint(network), "weights_mib": mib}
    entry |= _calibration_info(calibration, overhead_ms, len(profiled))
    rows = make_rows(_records(name, seen, calibration.factors))
    table = _centred(LatencyTable(rows, {"provenance": dict(provenance), "networks": {name: entry}}), name, profiled)
    more = grid_info(table, network) | {"accuracy": prediction_errors(table, held_out)}
    return with_entry(table, name, more)


def _centred(table: LatencyTable, name: str, variants: Sequence[MeasuredVariant]) -> LatencyTable:
    """The table times one factor, by which half of its own variants are predicted too slow and half too fast.

    Calibration saw predictions of variants that were left out. Those lie further from measurements, err upwards more
    than downwards where a network is small, and so leave the whole some percent too fast.
    """
    predicted = table.predict_all([variant.layers for variant in variants])
    factor = float(np.median([variant.latency_ms for variant in variants] / predicted))
    entry = dict(table.networks[name])
    entry["constant_ms"] *= factor
    entry["residency"] = {knot: factor * slope for knot, slope in entry["residency"].items()}
    entry["calibration"] = {**entry["calibration"], "common_factor": factor}
    rows = table.rows.assign(latency_ms=factor * table.rows["latency_ms"])
    return LatencyTable(rows, {**table.info, "networks": {name: entry}})


def with_accuracy(table: LatencyTable, name: str, held_out: Sequence[MeasuredVariant]) -> LatencyTable:
    """The table with its errors on variants of a network written into it."""
    bound = LatencyTable(table.rows, table.info, name)
    return with_entry(table, name, {"accuracy": prediction_errors(bound, held_out)})


def with_entry(table: LatencyTable, name: str, more: Mapping[str, Any]) -> LatencyTable:
    """The table with more said of a network."""
    networks = {**table.networks, name: {**table.networks[name], **more}}
    return LatencyTable(table.rows, {**table.info, "networks": networks})


def _lowered(variant: MeasuredVariant) -> list[Observation]:
    """Kernels of a variant that was optimised but never timed."""
    by_layer = variant.kernels_by_layer

    def kernels(layer: LayerSpec) -> dict[str, tuple[float, float | None]]:
        return {kernel: (float(len(at)), None) for kernel, at in by_layer.get(layer.name, {}).items()}

    return [Observation(layer, kernels(layer)) for layer in variant.layers]


def merged(tables: Sequence[LatencyTable]) -> LatencyTable:
    """One table of several networks on one device; of a network in several, the last table's rows count.

    Raises:
        BadInputError: no table, or tables of different devices or settings; names what differs.
    """
    if not tables:
        raise BadInputError("no latency tables to merge; give at least one")
    first = tables[0]
    for other in tables[1:]:
        differences = first.mismatches(other.provenance)
        if differences:
            raise BadInputError(
                f"latency tables of two devices or settings cannot be merged: {differences[0]}; "
                f"keep one table a device and setting ({', '.join(COMPARED.values())})"
            )
    last = {name: table for table in tables for name in table.networks}
    rows = joined_rows(table.rows[table.rows["network"] == name] for name, table in last.items())
    networks = {name: table.networks[name] for name, table in last.items()}
    return LatencyTable(rows, {"provenance": dict(first.provenance), "networks": networks})


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
