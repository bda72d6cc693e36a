"""Checks of a latency table against networks measured now, and what it learns from a few of them.

A table of another device or setting is a prior: the anchors make a table of this machine of it. In a table of this
machine, a network that the table holds is brought up to date by factors (``anchored``). One that it does not hold is
added with the profiles of its few runs: they correct what other networks' rows say of layers like its own. Which
kernels its layers become is read from the runtime's optimised graphs of more variants, which takes no run.
"""

import hashlib
import json
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from amcsearch.config import AUTO, LEAST_FRESH, TABLES, Config, read_latency_table
from amcsearch.core import BadInputError, NetworkSpec
from amcsearch.costs import Accuracy, LatencyModel, LatencyTable
from amcsearch.jobs.measurements import Measurements, request_of
from amcsearch.jobs.measuring import device_provenance
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.runtimes import check_provider, has_profiles, other_runtime, runtime_of
from amcsearch.jobs.tables import measured_here, subject_of
from amcsearch.jobs.workload import cache_folder
from amcsearch.measure import (
    KitPlan,
    KitResult,
    MeasuredSubject,
    MeasuredVariant,
    anchored,
    joined_variants,
    measurement_plan,
    merged,
    prediction_errors,
    table_from_results,
    table_of,
    with_accuracy,
)
from amcsearch.runs import HERE
from amcsearch.runtime import COMPARED, CPU, differences

__all__ = ["FRESH", "READ", "TableCheck", "check_table", "is_of_machine", "machine_folder", "other_setting"]

FRESH: Final = 24  # variants measured against predictions
READ: Final = 40  # variants of a new network whose optimised graphs are read


@dataclass(frozen=True)
class TableCheck:
    """Errors of a table as it is, and after anchors, and the table with what was learnt.

    ``before`` is None where the table cannot predict the network, ``after`` without anchors. ``table`` is this
    machine's; of another machine's without anchors, the one that was checked.
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
    subject: MeasuredSubject | None = None,
    minutes: float | None = None,
) -> TableCheck:
    """Measure fresh variants of a network on this machine against a table's predictions.

    Args:
        table: of this device and setting, or of another, which then says how far it errs here.
        config: names the network.
        observer: sees phases and progress.
        fresh: variants to measure.
        anchors: further variants by which the table is brought up to date, or learns the network, before it is held to
            the fresh ones again.
        seed: of the variants; another one each time if None, so that none of the build's returns.
        measurements: as for ``measure_table``.
        subject: as for ``measure_table``.
        minutes: bound of the measuring, None for none.

    Raises:
        BadInputError: a network that the table cannot predict, fewer than 3 variants or 0 anchors, or measurements of
            another request.
    """
    if fresh < LEAST_FRESH:
        raise BadInputError(f"table check: {fresh} fresh variants, at least {LEAST_FRESH} are needed")
    if anchors < 0:
        raise BadInputError(f"table check: {anchors} anchors, at least 0 are possible")
    _check_kernels(table, config)
    if subject is None:
        observer.phase("Tracing the network")
        subject = subject_of(config)
    model, is_here = table.bind(subject.trace.network), is_of_machine(table, config)
    lowered = _graphs(config) if anchors and not (model.network and is_here) else 0
    results = _measured(config, observer, subject, (fresh, anchors, lowered), seed, measurements, minutes, table)
    network, whole, held_out = joined_variants(results, subject.name)
    before = _errors(model, held_out, needed=not anchors)
    name = model.network or subject.name
    if not is_here:
        if not anchors:
            return TableCheck(before, None, table)
        learnt = _with_prior(results, subject.name, table, held_out)
        return TableCheck(before, learnt.networks[subject.name].accuracy, learnt)
    if not anchors:
        same = table if model.network is None else table.with_entry(name, replace(model.entry, accuracy=before))
        return TableCheck(before, None, same)
    if model.network:
        updated = anchored(table, name, network, whole, model=model)
    else:
        updated = table_of(name, network, whole, [], results[-1].overhead_ms, table.provenance, table)
    checked = with_accuracy(merged([table, updated]), name, held_out)
    return TableCheck(before, checked.networks[name].accuracy, checked)


def _graphs(config: Config) -> int:
    """How many optimised graphs are read of a network that is new; none of a provider that does not show them."""
    return READ if has_profiles(config) else 0


def _check_kernels(table: LatencyTable, config: Config) -> None:
    """Refuse a table of another data type or provider: its kernels say nothing of those that would be measured."""
    check_provider(table, config, "the table")
    there, here = table.provenance.dtype, config.device.dtype
    if there is not None and there != here:
        raise BadInputError(
            f"data type: the table was measured with {there!r}, device.dtype is {here!r}; set device.dtype={there}, or "
            "measure a table of its own with `amcsearch table measure`"
        )


def is_of_machine(table: LatencyTable, config: Config) -> bool:
    """Whether a table is of this machine and the configured setting."""
    return not differences(table.provenance, device_provenance(config))


def machine_folder(config: Config) -> Path:
    """Where this machine's own table lies: in the cache folder, named by machine, runtime, setting and opset.

    Raises:
        BadInputError: the runtime does not work here, or ``device.location`` is another device.
    """
    device, opset = config.device, config.device.export.opset
    if device.location != HERE:
        raise BadInputError(
            f"device.location = {device.location!r} is not this machine, whose own table would be measured; set "
            "device.table to a table of that device, made by `amcsearch table kit` or by `amcsearch table measure "
            "CONFIG -o FOLDER --set device.location=NAME`"
        )
    try:
        here = runtime_of(config).provenance(device.batch, device.dtype)
    except BadInputError as error:
        raise BadInputError(
            f"device.table = {AUTO} measures with the runtime on this machine, which fails: {error}; set device.table "
            "to the folder of a table, or to null"
        ) from error
    provenance = here.as_mapping()
    identity = {**{key: provenance.get(key) for key in COMPARED}, "cores": here.cores, "opset": opset}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    provider = "" if here.provider == CPU else f" {device.provider if here.is_onnx_runtime else here.provider}"
    runtime = f"ort{here.ort_version}" if here.is_onnx_runtime else f"{here.runtime_name}{here.runtime_version}"
    words = f"{here.cpu} {runtime}{provider} {here.threads}t b{here.batch} {here.dtype}"
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower().replace("(r)", "")).strip("-.")[:80]
    return cache_folder() / "tables" / f"{name}-{digest}"


def other_setting(config: Config, network: NetworkSpec) -> str:
    """Say that a table of this machine holds the network, but of another setting, and which; "" where none does."""
    expected, device = machine_folder(config), config.device
    here = runtime_of(config).provenance(device.batch, device.dtype)
    for folder in sorted(expected.parent.glob("*")):
        if folder == expected or not TABLES.is_one(folder):
            continue
        try:
            table = read_latency_table(folder)
        except BadInputError:
            continue
        unlike = differences(table.provenance, here)
        if unlike and table.provenance.cpu == here.cpu and table.name_of(network) is not None:
            return f" in this setting (the one in {folder} is of another, and a table is of one: {'; '.join(unlike)})"
    return ""


def _with_prior(
    results: Sequence[KitResult], name: str, prior: LatencyTable, held_out: Sequence[MeasuredVariant]
) -> LatencyTable:
    """This machine's table of a network, of another machine's table and a few runs."""
    table = table_from_results(results, (), prior)
    if table.networks[name].accuracy is not None:
        return table
    return with_accuracy(table, name, held_out)


def _measured(
    config: Config,
    observer: Observer,
    subject: MeasuredSubject,
    counts: tuple[int, int, int],
    seed: int | None,
    measurements: Measurements | None,
    minutes: float | None,
    table: LatencyTable,
) -> list[KitResult]:
    """Run fresh variants and anchors, and read the graphs of lowered ones: so many of each as ``counts`` says.

    Those that were timed only while the device was slow are measured again.
    """
    if seed is None:
        interrupted = None if measurements is None else measurements.before
        seed = secrets.randbelow(2**31) if interrupted is None else interrupted.seed
    fresh, anchors, lowered = counts
    make_plan = partial(_check_plan, config, observer, subject, fresh, anchors, lowered, seed)
    with tempfile.TemporaryDirectory() as folder:
        kept = measurements or Measurements(Path(folder) / "measurements", resume=False)
        kept.begin(request_of("check", config, subject, table, seed, fresh, anchors))
        return kept.settled(1, make_plan, partial(_measure, config, observer), minutes, observer)


def _measure(config: Config, observer: Observer, minutes: float | None, plan: KitPlan, out: Path) -> None:
    measured_here(plan, config, observer, minutes, out)


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
        opset=config.device.export.opset,
        seed=seed,
        progress=observer.progress,
        runtime=other_runtime(config),
    )


def _errors(model: LatencyModel, held_out: Sequence[MeasuredVariant], *, needed: bool) -> Accuracy | None:
    """Errors of a model, None where it cannot predict the network and that is not ``needed``."""
    try:
        return prediction_errors(model, held_out)
    except BadInputError:
        if needed:
            raise
        return None
