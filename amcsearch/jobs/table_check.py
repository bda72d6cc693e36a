"""Checks of a latency table against networks measured now, and what it learns from a few of them.

A network that the table holds is brought up to date by factors (``anchored``). One that it does not hold is added with
the profiles of its few runs: they correct what other networks' rows say of layers like its own. Which kernels its
layers become is read from the runtime's optimised graphs of more variants, which takes no run.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from amcsearch.config import Config
from amcsearch.core import BadInputError
from amcsearch.costs import Accuracy, LatencyModel, LatencyTable
from amcsearch.jobs.measurements import Measurements, request_of
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.tables import check_setting, measured_here, subject_of
from amcsearch.measure import (
    KitPlan,
    MeasuredSubject,
    MeasuredVariant,
    anchored,
    measured_variants,
    measurement_plan,
    merged,
    prediction_errors,
    table_of,
    with_accuracy,
)

__all__ = ["FRESH", "READ", "TableCheck", "check_table"]

FRESH: Final = 24  # variants measured against predictions
READ: Final = 40  # variants of a new network whose optimised graphs are read


@dataclass(frozen=True)
class TableCheck:
    """Errors of a table as it is, and after anchors, and the table with what was learnt.

    ``before`` is None where the table cannot predict the network, ``after`` without anchors.
    """

    before: Accuracy | None
    after: Accuracy | None
    table: LatencyTable


def check_table(
    table: LatencyTable,
    config: Config,
    observer: Observer,
    *,
    fresh: int = FRESH,
    anchors: int = 0,
    seed: int | None = None,
    measurements: Measurements | None = None,
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
        measurements: as for ``measure_table``.

    Raises:
        BadInputError: a table of another device or setting, a network it cannot predict, fewer than 3 variants or
            0 anchors, or measurements of another request.
    """
    if fresh < 3:
        raise BadInputError(f"table check: {fresh} fresh variants, at least 3 are needed")
    if anchors < 0:
        raise BadInputError(f"table check: {anchors} anchors, at least 0 are possible")
    check_setting(table, config)
    observer.phase("Tracing the network")
    subject = subject_of(config)
    model = table.bind(subject.trace.network)
    lowered = READ if anchors and not model.network else 0
    if seed is None:
        interrupted = None if measurements is None else measurements.before
        seed = secrets.randbelow(2**31) if interrupted is None else interrupted.seed
    make_plan = partial(_check_plan, config, observer, subject, fresh, anchors, lowered, seed)
    if measurements is None:
        result = measured_here(make_plan(), config, observer)
    else:
        measurements.begin(request_of("check", config, subject, table, seed, fresh, anchors))
        result = measurements.stage(1, make_plan, lambda plan, out: measured_here(plan, config, observer, out=out))
    network, whole, held_out = measured_variants(result, subject.name)
    before = _errors(model, held_out, needed=not anchors)
    name = model.network or subject.name
    if not anchors:
        same = table if model.network is None else table.with_entry(name, replace(model.entry, accuracy=before))
        return TableCheck(before, None, same)
    if model.network:
        updated = anchored(table, name, network, whole, model=model)
    else:
        updated = table_of(name, network, whole, [], result.overhead_ms, table.provenance, table)
    checked = with_accuracy(merged([table, updated]), name, held_out)
    return TableCheck(before, checked.networks[name].accuracy, checked)


def _check_plan(
    config: Config,
    observer: Observer,
    subject: MeasuredSubject,
    fresh: int,
    anchors: int,
    lowered: int,
    seed: int,
) -> KitPlan:
    observer.phase("Preparing pruned variants")
    return measurement_plan(
        [subject],
        variants=0,
        held_out=fresh,
        anchors=anchors,
        lowered=lowered,
        batch=config.device.batch,
        dtype=config.device.dtype,
        seed=seed,
        progress=observer.progress,
    )


def _errors(model: LatencyModel, held_out: Sequence[MeasuredVariant], *, needed: bool) -> Accuracy | None:
    """Errors of a model, None where it cannot predict the network and that is not ``needed``."""
    try:
        return prediction_errors(model, held_out)
    except BadInputError:
        if needed:
            raise
        return None
