"""A latency table against networks measured now, and brought up to date by a few whole runs.

A network that the table holds is brought up to date by factors (``anchoring``). One that it does not hold is added with
the profiles of its few runs: they correct what other networks' rows say of layers like its own. What kernels its layers
become need not be guessed from those: the runtime's optimised graphs of more variants are read, which takes no run.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from amcsearch.config import Config
from amcsearch.core import BadInputError
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.pipeline.observer import Observer
from amcsearch.pipeline.tables import check_setting, measured_here, subject_of
from amcsearch.runtime.anchoring import anchored
from amcsearch.runtime.measured import MeasuredVariant
from amcsearch.runtime.measurement_plan import measurement_plan
from amcsearch.runtime.table_builder import merged, prediction_errors, table_of, with_accuracy
from amcsearch.runtime.table_results import measured_variants

__all__ = ["TableCheck", "check_table"]

FRESH: Final = 24  # variants measured against predictions
READ: Final = 40  # variants of a new network whose optimised graphs are read


@dataclass(frozen=True)
class TableCheck:
    """Errors of a table as it is, and after anchors, and the table with what was learnt.

    ``before`` is None where the table cannot predict the network, ``after`` without anchors.
    """

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    table: LatencyTable


def check_table(
    table: LatencyTable,
    config: Config,
    observer: Observer,
    *,
    fresh: int = FRESH,
    anchors: int = 0,
    seed: int | None = None,
) -> TableCheck:
    """Measure fresh variants of a network on this machine against a table's predictions.

    Args:
        table: of this device and setting.
        config: names the network.
        observer: sees phases and progress.
        fresh: variants to measure.
        anchors: further variants by which the table is brought up to date, or learns the network, before it is held to
            the fresh ones again.
        seed: of the variants; another one each time if None, so that none of the build's returns.

    Raises:
        BadInputError: a table of another device or setting, a network it cannot predict, or fewer than 3 variants.
    """
    if fresh < 3:
        raise BadInputError(f"table check: {fresh} fresh variants, at least 3 are needed")
    check_setting(table, config)
    observer.phase("Tracing the network")
    subject = subject_of(config)
    bound = table.for_network(subject.trace.network)
    observer.phase("Preparing pruned variants")
    plan = measurement_plan(
        [subject],
        variants=0,
        held_out=fresh,
        anchors=anchors,
        lowered=READ if anchors and not bound.network else 0,
        batch=config.device.batch,
        dtype=config.device.dtype,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        progress=observer.progress,
    )
    result = measured_here(plan, config, observer)
    network, whole, held_out = measured_variants(result, subject.name)
    before = _errors(bound, held_out, needed=not anchors)
    if not anchors:
        return TableCheck(before, None, with_accuracy(table, bound.network, held_out) if bound.network else table)
    if bound.network:
        own = anchored(table, bound.network, network, whole)
    else:
        own = table_of(subject.name, network, whole, [], result.overhead_ms, table.provenance, table)
    found = with_accuracy(merged([table, own]), str(own.network), held_out)
    return TableCheck(before, found.for_network(network).entry["accuracy"], found)


def _errors(table: LatencyTable, held_out: Sequence[MeasuredVariant], *, needed: bool) -> dict[str, Any] | None:
    """Errors of a table, None where it cannot predict the network and that is not ``needed``."""
    try:
        return prediction_errors(table, held_out)
    except BadInputError:
        if needed:
            raise
        return None
