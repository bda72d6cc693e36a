"""Bring a table up to date, or carry it to another network or device, by a few whole runs.

A machine drifts by 10 % within an hour, another device differs in every kernel, a network that was never measured in
what its layers do to each other. A few whole runs (anchors) tell most of it: fitted are one factor a kernel family, the
constant and the residency,

    T_v ≈ Σ_f factor_f · sum_vf + b + r · joint_v,     relative error, bounded, all drawn towards ONE common factor

which is the median of measured by predicted. Few anchors move little but that factor, least of all where the table is
of this device and network: its kernels drift together.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from scipy.optimize import lsq_linear

from amcsearch.core import BadInputError, NetworkSpec
from amcsearch.costs import LatencyTable, bytes_a_weight, fingerprint, weight_mib
from amcsearch.measure.build.measured import MeasuredVariant

__all__ = ["anchored"]

LEAST_ANCHORS: Final = 3
PULL: Final = 0.7  # a factor twice the common one costs as much as one anchor wrong by this share
PULL_AT_HOME: Final = 3.0  # the same on the device and for the network that were measured
WIDEST: Final = 4.0  # a factor stays within this of the common one


def anchored(
    table: LatencyTable,
    name: str,
    network: NetworkSpec,
    anchors: Sequence[MeasuredVariant],
    provenance: Mapping[str, Any] | None = None,
) -> LatencyTable:
    """A table that agrees with whole runs of one network.

    Args:
        table: of any networks and device.
        name: under which the network is, or will be, in the table.
        network: its dense shapes.
        anchors: whole runs of it, five or more; profiles are not used.
        provenance: of the anchors, if the table is carried to their device; other networks are then left out.

    Raises:
        BadInputError: fewer than three anchors, layers that nothing in the table is like, or a device whose runtime
            works in other blocks of channels.
    """
    _check_block(table.provenance, provenance or {})
    timed = [variant for variant in anchors if variant.passes_ms]
    if len(timed) < LEAST_ANCHORS:
        raise BadInputError(f"network {name!r}: {len(timed)} anchors were timed, at least {LEAST_ANCHORS} are needed")
    bound = table.for_network(network)
    at_home = bound.network is not None and provenance is None
    factors, constant_ms, joint = _fit(bound, timed, PULL_AT_HOME if at_home else PULL)
    slopes = {knot: joint * slope for knot, slope in dict(bound.entry.get("residency") or {}).items()}
    mib = sum(weight_mib(layer, bytes_a_weight(table.provenance)) for layer in network.layers)
    entry = {**bound.entry, "fingerprint": fingerprint(network), "weights_mib": mib, "accuracy": None}
    entry |= {"constant_ms": constant_ms, "residency": slopes}
    entry["anchors"] = {
        "count": len(timed),
        "factors": dict(factors),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_cpu": table.provenance.get("cpu"),
    }
    own = table.rows[table.rows["network"] == bound.network] if bound.network else table.rows
    rows = own.assign(
        network=name, latency_ms=own["latency_ms"] * own["kernel"].map(lambda kernel: factors.get(kernel, 1.0))
    )
    if not bound.network:  # rows of several networks become one network's: the first of equal shapes stays
        rows = rows.drop_duplicates([column for column in rows.columns if column not in _MEASURED])
    found = {"provenance": dict(provenance or table.provenance), "networks": {name: entry}}
    return LatencyTable(rows, found)


def _check_block(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to carry kernels to where the runtime cuts channels differently: their steps lie at other widths."""
    blocks = (own.get("nchwc_block"), theirs.get("nchwc_block"))
    if None not in blocks and blocks[0] != blocks[1]:
        raise BadInputError(
            f"the table is of a runtime that works in blocks of {blocks[0]} channels, the anchors' device in blocks of "
            f"{blocks[1]}: factors cannot carry it over; measure variants there with a kit and build a table of them"
        )


_MEASURED: Final = ("count", "latency_ms", "mad_ms", "samples", "source")


def _fit(
    table: LatencyTable, anchors: Sequence[MeasuredVariant], strength: float
) -> tuple[dict[str, float], float, float]:
    """Factors by kernel family, constant in ms, and factor of residency."""
    times = [[time for layer in v.layers for time in table.kernel_times(layer)] for v in anchors]
    families = sorted({time.kernel for own in times for time in own})
    sums = np.array([[sum(t.ms for t in own if t.kernel == name) for name in families] for own in times])
    amounts = np.array([np.sum([table.amounts(layer) for layer in v.layers], axis=0) for v in anchors])
    joint = table.joint(amounts)
    whole = np.array([variant.latency_ms for variant in anchors])
    common = float(np.median(whole / (sums.sum(axis=1) + joint + table.constant)))
    design = np.column_stack([sums, np.full(len(whole), table.constant), joint]) / whole[:, None]
    used = design.any(axis=0)
    pull = strength / common * np.eye(design.shape[1])
    found = lsq_linear(
        np.concatenate([design, pull]),
        np.concatenate([np.ones(len(whole)), np.full(len(pull), strength)]),
        bounds=(common / WIDEST, common * WIDEST),
    ).x
    found[~used] = common
    factors = {name: float(factor) for name, factor in zip(families, found, strict=False)}
    return factors, float(found[-2] * table.constant), float(found[-1])
