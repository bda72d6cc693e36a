"""A latency table against networks measured now, and brought up to date by a few whole runs."""

import secrets
from dataclasses import dataclass
from typing import Any, Final

from amcsearch.config import Config
from amcsearch.core import BadInputError
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.pipeline.observer import Observer
from amcsearch.pipeline.tables import check_setting, measured_here, subject_of
from amcsearch.runtime.anchoring import anchored
from amcsearch.runtime.measurement_plan import measurement_plan
from amcsearch.runtime.table_builder import merged, prediction_errors, with_accuracy
from amcsearch.runtime.table_results import measured_variants

__all__ = ["TableCheck", "check_table"]

FRESH: Final = 24  # variants measured against predictions


@dataclass(frozen=True)
class TableCheck:
    """Errors of a table as it is, and after anchors (None without), and the table with what was learnt."""

    before: dict[str, Any]
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
        anchors: further variants by which the table is brought up to date before it is held to the fresh ones again.
        seed: of the variants; another one each time if None, so that none of the build's returns.

    Raises:
        BadInputError: a table of another device or setting, a network it cannot predict, or fewer than 3 variants.
    """
    if fresh < 3:
        raise BadInputError(f"table check: {fresh} fresh variants, at least 3 are needed")
    check_setting(table, config)
    observer.phase("Tracing the network")
    subject = subject_of(config)
    observer.phase("Preparing pruned variants")
    plan = measurement_plan(
        [subject],
        variants=0,
        held_out=fresh,
        anchors=anchors,
        batch=config.device.batch,
        dtype=config.device.dtype,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        progress=observer.progress,
    )
    network, whole, held_out = measured_variants(measured_here(plan, config, observer), subject.name)
    bound = table.for_network(network)
    before = prediction_errors(bound, held_out)
    assert before is not None
    if not anchors:
        known = bound.network is not None
        return TableCheck(before, None, with_accuracy(table, str(bound.network), held_out) if known else table)
    own = anchored(table, bound.network or subject.name, network, whole)
    after = prediction_errors(own, held_out)
    return TableCheck(before, after, merged([table, with_accuracy(own, str(own.network), held_out)]))
