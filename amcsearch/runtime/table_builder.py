"""Latency tables from whole, really pruned networks: kernel rows, their calibration, and their own accuracy.

Isolated layers are not measured: their sums err by tens of percent, because a layer alone pays reorders and a call of
its own. See ``calibration`` for how profiles and whole runs become rows that add up.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec
from amcsearch.costs.latency_table import (
    COLUMNS,
    COMPARED,
    GRAPH,
    NO_KERNEL,
    LatencyTable,
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
from amcsearch.runtime.calibration import Calibration, calibrate, observe
from amcsearch.runtime.channel_grid import grid_info
from amcsearch.runtime.measured import MeasuredVariant

__all__ = ["accuracy", "merged", "prediction_errors", "table_of", "with_accuracy", "with_entry"]

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
