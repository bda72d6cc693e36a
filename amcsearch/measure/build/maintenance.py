"""Tables that exist: how well they predict, several as one, and one brought up to date by a few whole runs.

A machine drifts by 10 % within an hour, another device differs in every kernel, a network that was never measured in
what its layers do to each other. A few whole runs (anchors) tell most of it: fitted are one factor a kernel family, the
constant and what weights cost beyond the caches,

    T_v ≈ Σ_f factor_f · sum_vf + b + r · joint_v,     relative error, bounded, all drawn towards ONE common factor

which is the median of measured by predicted. Few anchors move little but that factor, least of all where the table is
of this device and network: its kernels drift together.

A table of another device is a prior: its rows, carried over by such factors, answer where the runs' own profiles are
silent. Factors alone err by more: one CPU is not the other times a number a kernel.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec
from amcsearch.costs import (
    Accuracy,
    Anchors,
    CacheOverflow,
    LatencyModel,
    LatencyTable,
    NetworkEntry,
    Provenance,
    fingerprint,
    joined_rows,
    weight_mib,
)
from amcsearch.measure.build.measured import MeasuredVariant
from amcsearch.runtime import COMPARED, differences

__all__ = ["accuracy", "anchored", "carried", "merged", "prediction_errors", "with_accuracy"]

LEAST_ANCHORS: Final = 3
PULL: Final = 0.7  # a factor twice the common one costs as much as one anchor wrong by this share
PULL_AT_HOME: Final = 3.0  # the same on the device and for the network that were measured
WIDEST: Final = 4.0  # a factor stays within this of the common one
_MEASURED: Final = ("count", "latency_ms", "mad_ms", "samples", "source")


def accuracy(predicted: NDArray[np.float64], passes_ms: Sequence[Sequence[float]]) -> Accuracy:
    """Errors of predictions (V,) in ms against measurements, one or more passes for each.

    The truth is the median of the passes.
    """
    from scipy.stats import spearmanr  # half a second of imports that no search needs

    truth = np.array([np.median(passes) for passes in passes_ms])
    twice = [passes[0] / passes[-1] - 1.0 for passes in passes_ms if len(passes) > 1]
    signed = predicted / truth - 1.0
    error = np.abs(signed)
    return Accuracy(
        variants=len(truth),
        mape=float(error.mean()),
        median=float(np.median(error)),
        worst=float(error.max()),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        bias=float(signed.mean()),
        spearman=float(spearmanr(predicted, truth)[0]) if len(truth) > 2 else None,
        noise_mape=float(np.abs(twice).mean()) if twice else None,
    )


def prediction_errors(model: LatencyModel, variants: Sequence[MeasuredVariant], factor: float = 1.0) -> Accuracy | None:
    """Accuracy of a model, times a factor, on variants that took no part in its table; None without any timed one.

    Raises:
        BadInputError: layers that nothing in the table is like.
    """
    timed = [variant for variant in variants if variant.passes_ms]
    if not timed:
        return None
    predicted = factor * model.predict_all([variant.layers for variant in timed])
    return accuracy(predicted, [variant.passes_ms for variant in timed])


def with_accuracy(table: LatencyTable, name: str, held_out: Sequence[MeasuredVariant]) -> LatencyTable:
    """The table with its errors on variants of a network written into it."""
    errors = prediction_errors(table.bind(name), held_out)
    return table.with_entry(name, replace(table.networks[name], accuracy=errors))


def merged(tables: Sequence[LatencyTable]) -> LatencyTable:
    """One table of several networks on one device; of a network in several, the last table's rows count.

    Raises:
        BadInputError: no table, or tables of different devices or settings; names what differs.
    """
    if not tables:
        raise BadInputError("no latency tables to merge; give at least one")
    first = tables[0]
    for other in tables[1:]:
        differing = differences(first.provenance, other.provenance)
        if differing:
            raise BadInputError(
                f"latency tables of two devices or settings cannot be merged: {differing[0]}; "
                f"keep one table a device and setting ({', '.join(COMPARED.values())})"
            )
    last = {name: table for table in tables for name in table.networks}
    rows = joined_rows(table.rows[table.rows["network"] == name] for name, table in last.items())
    return replace(first, rows=rows, networks={name: table.networks[name] for name, table in last.items()})


def anchored(
    table: LatencyTable,
    name: str,
    network: NetworkSpec,
    anchors: Sequence[MeasuredVariant],
    provenance: Provenance | None = None,
    model: LatencyModel | None = None,
) -> LatencyTable:
    """A table that agrees with whole runs of one network.

    Args:
        table: of any networks and device.
        name: under which the network is, or will be, in the table.
        network: its dense shapes.
        anchors: whole runs of it, five or more; profiles are not used.
        provenance: of the anchors, if the table is carried to their device; other networks are then left out.
        model: the table bound to the network, where that was done before.

    Raises:
        BadInputError: fewer than three anchors, layers that nothing in the table is like, or a device whose runtime
            works in other blocks of channels.
    """
    _check_block(table.provenance, provenance)
    timed = [variant for variant in anchors if variant.passes_ms]
    if len(timed) < LEAST_ANCHORS:
        raise BadInputError(f"network {name!r}: {len(timed)} anchors were timed, at least {LEAST_ANCHORS} are needed")
    model = table.bind(network) if model is None else model
    at_home = model.network is not None and provenance is None
    factors, constant_ms, joint = _fit(model, timed, PULL_AT_HOME if at_home else PULL)
    entry = replace(
        model.entry,
        fingerprint=fingerprint(network),
        weights_mib=sum(weight_mib(layer, table.provenance.weight_bytes) for layer in network.layers),
        accuracy=None,
        constant_ms=constant_ms,
        residency=CacheOverflow({knot: joint * slope for knot, slope in model.entry.residency.slopes.items()}),
        anchors=Anchors(
            count=len(timed),
            factors=factors,
            timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
            from_cpu=table.provenance.cpu,
        ),
    )
    rows = table.rows[table.rows["network"] == model.network] if model.network else table.rows
    rows = rows.assign(
        network=name, latency_ms=rows["latency_ms"] * rows["kernel"].map(lambda kernel: factors.get(kernel, 1.0))
    )
    if not model.network:  # rows of several networks become one network's: the first of equal shapes stays
        rows = rows.drop_duplicates([column for column in rows.columns if column not in _MEASURED])
    return LatencyTable(rows, provenance or table.provenance, {name: entry})


def carried(
    source: LatencyTable, network: NetworkSpec, anchors: Sequence[MeasuredVariant], provenance: Provenance
) -> LatencyTable | None:
    """Every row of another device's table at the speed of this one, as one network that says where it is from.

    None where the source says nothing of the network: it lacks layers, or
    is of another data type or of other blocks of channels.

    Args:
        source: of another device or setting.
        network: dense shapes of a network that was run here.
        anchors: its runs, three or more.
        provenance: of the runs.
    """
    of_source = source.provenance
    timed = [variant for variant in anchors if variant.passes_ms]
    differs = any(
        None not in pair and pair[0] != pair[1]
        for pair in ((of_source.dtype, provenance.dtype), (of_source.nchwc_block, provenance.nchwc_block))
    )
    if differs or len(timed) < LEAST_ANCHORS:
        return None
    model = source.bind(network)
    try:
        factors, constant_ms, joint = _fit(model, timed, PULL)
    except BadInputError:
        return None
    common = float(np.median(list(factors.values())))
    origin = Anchors(
        count=len(timed), factors=factors, timestamp=provenance.timestamp, from_cpu=of_source.cpu or "another device"
    )

    rows = source.rows.assign(
        network=f"from {origin.from_cpu}",
        latency_ms=source.rows["latency_ms"] * source.rows["kernel"].map(lambda kernel: factors.get(kernel, common)),
    )
    rows = rows.drop_duplicates([column for column in rows.columns if column not in _MEASURED])
    slopes = {knot: joint * slope for knot, slope in model.entry.residency.slopes.items()}
    entry = NetworkEntry(
        constant_ms=constant_ms,
        smoothing=model.entry.smoothing,
        residency=CacheOverflow(slopes),
        sigma=model.entry.sigma,
        channel_multiple=model.entry.channel_multiple,
        anchors=origin,
    )
    return LatencyTable(rows, provenance, {f"from {origin.from_cpu}": entry})


def _check_block(ours: Provenance, theirs: Provenance | None) -> None:
    """Refuse to carry kernels to where the runtime cuts channels differently: their steps lie at other widths."""
    blocks = (ours.nchwc_block, None if theirs is None else theirs.nchwc_block)
    if None not in blocks and blocks[0] != blocks[1]:
        raise BadInputError(
            f"the table is of a runtime that works in blocks of {blocks[0]} channels, the anchors' device in blocks of "
            f"{blocks[1]}: factors cannot carry it over; measure variants there with a kit and build a table of them"
        )


def _fit(
    model: LatencyModel, anchors: Sequence[MeasuredVariant], strength: float
) -> tuple[dict[str, float], float, float]:
    """Factors by kernel family, constant in ms, and factor of what weights cost beyond the caches."""
    from scipy.optimize import lsq_linear  # half a second of imports that no search needs

    kernels = [[kernel for layer in v.layers for kernel in model.kernel_latencies(layer)] for v in anchors]
    families = sorted({kernel.kernel for of_anchor in kernels for kernel in of_anchor})
    sums = np.array([[sum(k.ms for k in of_anchor if k.kernel == name) for name in families] for of_anchor in kernels])
    amounts = np.array([np.sum([model.amounts(layer) for layer in v.layers], axis=0) for v in anchors])
    joint = model.joint(amounts)
    whole = np.array([variant.latency_ms for variant in anchors])
    common = float(np.median(whole / (sums.sum(axis=1) + joint + model.constant)))
    design = np.column_stack([sums, np.full(len(whole), model.constant), joint]) / whole[:, None]
    used = design.any(axis=0)
    pull = strength / common * np.eye(design.shape[1])
    fitted = lsq_linear(
        np.concatenate([design, pull]),
        np.concatenate([np.ones(len(whole)), np.full(len(pull), strength)]),
        bounds=(common / WIDEST, common * WIDEST),
    ).x
    fitted[~used] = common
    factors = {name: float(factor) for name, factor in zip(families, fitted, strict=False)}
    return factors, float(fitted[-2] * model.constant), float(fitted[-1])
