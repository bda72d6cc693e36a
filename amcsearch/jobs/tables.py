"""Latency tables of configured networks: plan, measure and build."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

from amcsearch.config import Config
from amcsearch.core import BadInputError, LayerKind, NetworkSpec
from amcsearch.costs import LatencyModel, LatencyTable
from amcsearch.jobs.measurements import Measurements, request_of
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.workload import CONFIGURED, InMemory, load_network
from amcsearch.measure import (
    LEAST_VARIANTS,
    KitPlan,
    KitResult,
    MeasuredSubject,
    anchored,
    check_kit_file,
    measure_here,
    measured_variants,
    measurement_plan,
    merged,
    read_results,
    table_from_results,
    with_accuracy,
    write_kit,
)
from amcsearch.runtime import differences, provenance

__all__ = [
    "Kit",
    "build_table",
    "check_measuring",
    "check_setting",
    "known_share",
    "make_kit",
    "measure_table",
    "measured_here",
    "needed_variants",
    "subject_of",
]

VARIANTS: Final = 72
Bind = Callable[[NetworkSpec], LatencyModel]
STAGES: Final = (2 / 3, 1 / 3)  # of the variants: first drawn at random, then where the table is least sure


def subject_of(config: Config, given: InMemory = CONFIGURED) -> MeasuredSubject:
    """The network as its factory makes it: its time does not depend on training."""
    network = load_network(config, given)
    inputs = list(network.example.inputs.values())
    rows = [layer.in_channels for layer in network.trace.network.layers if layer.kind is LayerKind.EMBEDDING]
    tokens = min(rows, default=max(int(x.max()) for x in inputs) + 1)  # every embedding must have a row for every token
    high = None if any(x.is_floating_point() for x in inputs) else tokens
    return MeasuredSubject(config.name, network.model, network.trace, network.example.chosen([0]), high)


def known_share(model: LatencyModel, network: NetworkSpec) -> float:
    """Share of a dense network's predicted time in layers whose like the table holds; 0 where it cannot predict."""
    try:
        cost = {layer.name: model.layer_cost(layer) for layer in network.layers}
    except BadInputError:
        return 0.0
    known = sum(cost[layer.name] for layer in network.layers if model.knows(layer))
    return known / max(sum(cost.values()), 1e-12)


def needed_variants(share_known: float, variants: int = VARIANTS) -> int:
    """Variants a network needs beside a table that knows a share of it: a third where all its layers are known."""
    return max(LEAST_VARIANTS, round(variants * (1.0 - 2.0 / 3.0 * share_known)))


def _same_setting(configs: Sequence[Config]) -> Config:
    names = sorted(config.name for config in configs)
    if len({*names}) < len(names):
        raise BadInputError(f"table kit: the networks {names} must have different names")
    for config in configs[1:]:
        for key in ("batch", "threads", "dtype"):
            ours, theirs = getattr(configs[0].device, key), getattr(config.device, key)
            if ours != theirs:
                raise BadInputError(
                    f"device.{key} is {ours} in {configs[0].name} and {theirs} in {config.name}; "
                    f"a table has one setting: make one table for each"
                )
    return configs[0]


@dataclass(frozen=True)
class Kit:
    """A device kit that was written: its path, size, the networks and how many models it measures, how to run it."""

    kit: Path
    bytes: int
    networks: tuple[str, ...]
    models: int
    run: str


def make_kit(
    configs: Sequence[Config],
    out: Path,
    observer: Observer,
    *,
    variants: int = VARIANTS,
    anchors: int = 0,
    table: LatencyTable | None = None,
) -> Kit:
    """Write the device kit of configurations' networks.

    Raises:
        BadInputError: counts out of range, networks that cannot be exported, settings that differ, or a file that
            cannot be written.
    """
    if 0 < variants < LEAST_VARIANTS or min(variants, anchors) < 0:
        raise BadInputError(
            f"table kit: variants = {variants} (0, or at least {LEAST_VARIANTS}), anchors = {anchors} (at least 0)"
        )
    first = _same_setting(configs)
    check_kit_file(out)
    observer.phase("Tracing the networks")
    subjects = [subject_of(config) for config in configs]
    observer.phase("Preparing pruned variants")
    plan = measurement_plan(
        subjects,
        variants=variants,
        anchors=anchors,
        batch=first.device.batch,
        dtype=first.device.dtype,
        seed=first.seed,
        bind=None if table is None else table.bind,
        progress=observer.progress,
    )
    write_kit(plan, out)
    return Kit(
        kit=out,
        bytes=out.stat().st_size,
        networks=tuple(subject.name for subject in subjects),
        models=len(plan.models),
        run=f"python3 {out.name} -o result.jsonl --threads {first.device.threads}",
    )


def build_table(
    paths: Sequence[Path], known: LatencyTable | None = None, source: LatencyTable | None = None
) -> LatencyTable:
    """Make a table of kits' results.

    Args:
        paths: result files of one device.
        known: the table they extend.
        source: a table of another device; the results' anchors carry it to theirs.

    Raises:
        BadInputError: results or tables that do not fit together.
    """
    results = read_results(paths)
    if source is None:
        return table_from_results(results, [known] if known is not None else [])
    tables = [_carried(source, result, name) for result in results for name in result.networks]
    return merged([*([known] if known is not None else []), *tables])


def _carried(source: LatencyTable, result: KitResult, name: str) -> LatencyTable:
    network, whole, held_out = measured_variants(result, name)
    return with_accuracy(anchored(source, name, network, whole, result.provenance), name, held_out)


def measured_here(
    plan: KitPlan, config: Config, observer: Observer, minutes: float | None = None, out: Path | None = None
) -> KitResult:
    """Run a plan on this machine as the kit would on a device.

    Args:
        plan: what to measure.
        config: has the setting.
        observer: sees phases and progress.
        minutes: bound of the measuring, None for none.
        out: result file, begun or gone on with; None keeps nothing.

    Raises:
        BadInputError: as ``measure_here``.
    """
    device = config.device
    setting = f"{device.threads} thread(s), batch {device.batch}, {device.dtype}"
    observer.phase(f"Measuring on this machine, {setting}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.jsonl" if out is None else out
        measure_here(plan, path, device.threads, minutes=minutes, progress=observer.progress)
        return read_results([path])[0]


def check_measuring(variants: int | None, minutes: float | None) -> None:
    """Refuse what no table can be measured with, before anything is done.

    Raises:
        BadInputError: fewer variants than a table needs, or minutes that are not more than 0.
    """
    if variants is not None and variants < LEAST_VARIANTS:
        raise BadInputError(
            f"table measure: variants = {variants}, must be at least {LEAST_VARIANTS}; leave it out for as many as the "
            "network needs"
        )
    if minutes is not None and not minutes > 0:
        raise BadInputError(f"table measure: minutes = {minutes}, must be more than 0")


def measure_table(
    config: Config,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    variants: int | None = None,
    known: LatencyTable | None = None,
    minutes: float | None = None,
    measurements: Measurements | None = None,
) -> LatencyTable:
    """Measure a configuration's network on this machine, first at random, then where the table is least sure.

    Args:
        config: names the network and the setting.
        observer: sees phases and progress.
        given: what is in memory.
        variants: that build the table; as many as ``needed_variants`` says if None.
        known: the device's table that is there already; it is extended.
        minutes: bound of the measuring, None for none.
        measurements: where results are kept as they are made; None keeps nothing of a run that is broken off.

    Raises:
        BadInputError: as ``load_workload``, a network that cannot be exported, ``known`` of another device, or
            measurements of another request; or as ``check_measuring``.
    """
    check_measuring(variants, minutes)
    if measurements is None:
        with tempfile.TemporaryDirectory() as folder:
            kept = Measurements(Path(folder) / "measurements", resume=False)
            return _measured_table(config, observer, given, variants, known, minutes, kept)
    return _measured_table(config, observer, given, variants, known, minutes, measurements)


def _measured_table(
    config: Config,
    observer: Observer,
    given: InMemory,
    variants: int | None,
    known: LatencyTable | None,
    minutes: float | None,
    measurements: Measurements,
) -> LatencyTable:
    observer.phase("Tracing the network")
    subject = subject_of(config, given)
    if known is not None:
        check_setting(known, config)
    bind = None if known is None else cache(known.bind)  # asked here and by the first plan
    wanted = _wanted(variants, bind, subject.trace.network, observer)
    measurements.begin(request_of("measure", config, subject, known, config.seed, wanted))
    counts = [round(share * wanted) for share in STAGES]
    table, results = None, []
    for stage, count in enumerate(counts if min(counts) >= LEAST_VARIANTS else [wanted]):
        asked = bind if table is None else table.bind
        make_plan = partial(_stage_plan, config, observer, subject, count, config.seed + 1000 * stage, asked)
        bound = minutes and minutes * count / wanted
        results.append(measurements.stage(stage + 1, make_plan, partial(_measure, config, observer, bound)))
        observer.phase("Building the table")
        table = table_from_results(results, [known] if known is not None else [])
    assert table is not None
    return table


def _wanted(variants: int | None, bind: Bind | None, network: NetworkSpec, observer: Observer) -> int:
    """Return how many variants to measure, and say so where a table knows some of the network's layers."""
    share_known = 0.0 if bind is None else known_share(bind(network), network)
    wanted = needed_variants(share_known) if variants is None else variants
    if bind is not None:
        observer.phase(
            f"{wanted} variants instead of {VARIANTS}: {share_known:.0%} of the network's time is in "
            f"layers that the table knows"
        )
    return wanted


def _stage_plan(
    config: Config, observer: Observer, subject: MeasuredSubject, count: int, seed: int, bind: Bind | None
) -> KitPlan:
    observer.phase("Preparing pruned variants")
    return measurement_plan(
        [subject],
        variants=count,
        batch=config.device.batch,
        dtype=config.device.dtype,
        seed=seed,
        bind=bind,
        progress=observer.progress,
    )


def _measure(config: Config, observer: Observer, minutes: float | None, plan: KitPlan, out: Path) -> None:
    measured_here(plan, config, observer, minutes, out)


def check_setting(table: LatencyTable, config: Config) -> None:
    """Refuse to measure here for a table of another device or setting.

    Raises:
        BadInputError: names the first difference.
    """
    device = config.device
    differing = differences(table.provenance, provenance(device.threads, device.batch, device.dtype))
    if differing:
        raise BadInputError(
            f"this machine cannot extend or check the table: {differing[0]}; use its device, and its setting in the "
            "configuration's section device"
        )
