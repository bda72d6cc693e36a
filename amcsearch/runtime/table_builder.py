"""Build a latency table from whole, really pruned networks measured on this machine.

Random variants of the network, on the device's channel grid and off it, are timed as a whole and profiled in place;
profiles are used for shares only (see ``calibration``). Isolated layers are not measured: their sums err by tens of
percent, because a layer alone pays reorders and a call of its own.

Prediction: ``constant`` + Σ ``layer_cost``. The table's own accuracy is measured on variants that took no part in it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.costs.latency_table import COLUMNS, LatencyTable, RowKey, make_rows, row_key
from amcsearch.graph.slices import Trace
from amcsearch.runtime.calibration import accuracy, fit_line, fit_nodes, shares
from amcsearch.runtime.channel_grid import GridStep, measure_grid
from amcsearch.runtime.measuring import MeasuredVariant, Progress, batched, call_overhead_ms, measure_variants
from amcsearch.runtime.session import provenance
from amcsearch.runtime.variants import random_policies, smallest

__all__ = ["build_table", "held_out_policies", "table_of", "training_policies"]

VARIANTS = 48
ON_GRID = 0.75  # of the variants; a sixth lies on the next finer grid, the rest anywhere
FINER = 1 / 6
HELD_OUT = 3  # one held-out variant for so many that build the table
LEAST_HELD_OUT = 12


def training_policies(trace: Trace, variants: int, multiple: int, rng: np.random.Generator) -> list[PruningPolicy]:
    """The variants a table is made of, besides the dense network: the smallest, and random ones on and off the grid."""
    network = trace.network
    if not network.groups:
        return []
    finer = round(FINER * variants) if multiple > 1 else 0
    off = variants - round(ON_GRID * variants) - finer if multiple > 2 else 0
    drawn = [smallest(network, multiple)]
    drawn += random_policies(network, variants - finer - off - 2, multiple, rng)
    drawn += random_policies(network, finer, max(1, multiple // 2), rng)
    return drawn + random_policies(network, off, 1, rng)


def held_out_policies(trace: Trace, variants: int, multiple: int, rng: np.random.Generator) -> list[PruningPolicy]:
    """Variants on the grid, as a search would propose them, that take no part in the table."""
    n = max(LEAST_HELD_OUT, variants // HELD_OUT)
    return random_policies(trace.network, n, multiple, rng) if trace.network.groups else []


def _records(samples: Mapping[RowKey, Sequence[float]], scale: float) -> list[dict[str, Any]]:
    records = []
    for key, values in samples.items():
        ms = scale * np.array(values)
        mad = float(np.median(np.abs(ms - np.median(ms))))
        measured = (float(ms.mean()), mad, len(values), "profile")
        records.append(dict(zip(COLUMNS, (*key, *measured), strict=True)))
    return records


def _sums(table: LatencyTable, variants: Sequence[MeasuredVariant]) -> NDArray[np.float64]:
    return np.array([sum(table.layer_cost(layer) for layer in v.layers) for v in variants])


def table_of(variants: Sequence[MeasuredVariant], overhead_ms: float, source: Mapping[str, Any]) -> LatencyTable:
    """Make the table from measured variants; ``source`` is its provenance.

    ``info["calibration"]`` holds ``constant_ms``; ``scale`` and ``node_ms``, which turned profiled into true time; and
    ``sum_scale``, by which sums of rows were brought to whole runs. All are folded into the rows already.
    """
    nodes = fit_nodes(variants, overhead_ms)
    samples: dict[RowKey, list[float]] = defaultdict(list)
    for variant in variants:
        times = shares(variant, nodes, overhead_ms)
        for layer in variant.layers:
            samples[row_key(layer)].append(times[layer.name])
    info = {"provenance": dict(source), "calibration": {"constant_ms": 0.0}}
    whole = np.array([variant.latency_ms for variant in variants])
    scale, constant_ms = fit_line(_sums(LatencyTable(make_rows(_records(samples, 1.0)), info), variants), whole)
    calibration = {
        "constant_ms": constant_ms,
        "scale": nodes.scale,
        "node_ms": nodes.node_ms,
        "sum_scale": scale,
        "call_overhead_ms": overhead_ms,
        "variants": len(variants),
    }
    return LatencyTable(make_rows(_records(samples, scale)), info | {"calibration": calibration})


def _accuracy(table: LatencyTable, held_out: Sequence[MeasuredVariant]) -> dict[str, Any] | None:
    if not held_out:
        return None
    predicted = table.constant + _sums(table, held_out)
    passes = (np.array([v.first_ms for v in held_out]), np.array([v.second_ms for v in held_out]))
    return dict(accuracy(predicted, *passes))


def _grid_info(multiple: int, steps: Sequence[GridStep]) -> dict[str, Any]:
    tried = [{"multiple": s.multiple, "macs_saved": s.macs_saved, "time_saved": s.time_saved} for s in steps]
    rule = "the finest grid whose saved share of time is at least 0.28 of its saved share of MACs, on whole networks"
    return {"channel_multiple": multiple, "channel_grid": {"rule": rule, "tried": tried}}


def build_table(
    model: nn.Module,
    trace: Trace,
    example: Tensor,
    *,
    batch: int = 1,
    threads: int = 1,
    variants: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure a latency table of a network on this machine (about a second a variant for ResNet-20).

    Args:
        model, trace: the dense network and its channel groups.
        example: one input (1, …), repeated to ``batch``.
        batch: inputs a call.
        threads: threads inside an operator.
        variants: networks that build the table, 48 if None; a third as many more are held out to measure its accuracy.
        seed: of all choices; times differ from run to run, choices do not.
        progress: see ``Progress``.

    Raises:
        BadInputError: fewer than 4 variants or 1 input a call, or a module that cannot be exported.
    """
    variants = VARIANTS if variants is None else variants
    if variants < 4 or batch < 1:
        raise BadInputError(f"latency table: variants = {variants} (at least 4), batch = {batch} (at least 1)")
    rng = np.random.default_rng(seed)
    x = batched(example, batch)
    multiple, steps = measure_grid(model, trace, x, threads=threads, rng=rng)
    building = training_policies(trace, variants, multiple, rng)
    policies = building + held_out_policies(trace, variants, multiple, rng)
    measured = measure_variants(model, trace, x, policies, threads=threads, rng=rng, progress=progress)
    cut = 1 + len(building)  # the dense network comes first
    table = table_of(measured[:cut], call_overhead_ms(threads), provenance(threads, batch))
    extra = _grid_info(multiple, steps) | {"accuracy": _accuracy(table, measured[cut:])}
    return LatencyTable(table.rows, table.info | extra)
