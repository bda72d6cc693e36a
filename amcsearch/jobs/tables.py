"""Latency tables of configured networks: plan, measure and build."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from amcsearch.config import LEAST_VARIANTS, TABLES, Config, check_measuring, read_latency_table
from amcsearch.core import BadInputError, LayerKind, NetworkSpec
from amcsearch.costs import LatencyModel, LatencyTable, Provenance
from amcsearch.jobs.measurements import Measurements, request_of
from amcsearch.jobs.measuring import agent_of, device_provenance
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.runtimes import check_kit, has_profiles, other_runtime
from amcsearch.jobs.workload import CONFIGURED, InMemory, TracedNetwork, load_network
from amcsearch.measure import (
    AgentClient,
    KitPlan,
    KitResult,
    MeasuredSubject,
    check_kit_file,
    held_out_count,
    measure_here,
    measurement_plan,
    read_results,
    table_from_results,
    write_kit,
)
from amcsearch.runs import HERE
from amcsearch.runtime import differences, full_provider_name

__all__ = [
    "Kit",
    "build_table",
    "check_setting",
    "default_variants",
    "known_share",
    "make_kit",
    "measure_table",
    "measured_count",
    "measured_here",
    "needed_variants",
    "prior_of",
    "subject_from",
    "subject_of",
    "wanted_variants",
]

VARIANTS: Final = 72
WHOLE_RUNS: Final = 1.5  # as many variants where there is no profile: each says one number
LEAST_KNOWN: Final = 0.5  # share of a network's time that a prior must know: its other layers would be guesses
Bind = Callable[[NetworkSpec], LatencyModel]
STAGES: Final = (2 / 3, 1 / 3)  # of the variants: first drawn at random, then where the table is least sure


def subject_of(config: Config, given: InMemory = CONFIGURED) -> MeasuredSubject:
    """The network as its factory makes it: its time does not depend on training."""
    return subject_from(config.name, load_network(config, given))


def subject_from(name: str, network: TracedNetwork) -> MeasuredSubject:
    """A network that is loaded already, under a name in the table."""
    inputs = list(network.example.inputs.values())
    rows = [layer.in_channels for layer in network.trace.network.layers if layer.kind is LayerKind.EMBEDDING]
    tokens = min(rows, default=max(int(x.max()) for x in inputs) + 1)  # every embedding must have a row for every token
    high = None if any(x.is_floating_point() for x in inputs) else tokens
    return MeasuredSubject(name, network.model, network.trace, network.example.chosen([0]), high)


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
        for key in ("batch", "threads", "dtype", "runtime", "provider"):
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
    check_kit(first)
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
        opset=first.device.export.opset,
        seed=first.seed,
        bind=None if table is None else table.bind,
        progress=observer.progress,
    )
    write_kit(_with_setting(plan, first), out)
    return Kit(
        kit=out,
        bytes=out.stat().st_size,
        networks=tuple(subject.name for subject in subjects),
        models=len(plan.models),
        run=f"python3 {out.name} -o result.jsonl",
    )


def _with_setting(plan: KitPlan, config: Config) -> KitPlan:
    """The plan with the configured threads and provider, which the device then takes."""
    return replace(plan, threads=config.device.threads, provider=full_provider_name(config.device.provider))


def build_table(
    paths: Sequence[Path], known: LatencyTable | None = None, source: LatencyTable | None = None
) -> LatencyTable:
    """Make a table of kits' results.

    Args:
        paths: result files of one device.
        known: the table they extend.
        source: a table of another device; it answers where the results are silent, at the speed that they say.

    Raises:
        BadInputError: results or tables that do not fit together.
    """
    return table_from_results(read_results(paths), [known] if known is not None else [], source)


def measured_here(
    plan: KitPlan, config: Config, observer: Observer, minutes: float | None = None, out: Path | None = None
) -> KitResult:
    """Run a plan as the kit would on a device: on this machine, or by the agent that ``device.location`` names.

    Args:
        plan: what to measure.
        config: has the setting.
        observer: sees phases and progress.
        minutes: bound of the measuring, None for none.
        out: result file, begun or gone on with; None keeps nothing.

    Raises:
        BadInputError: as ``measure_here``, ``agent_of`` and ``AgentClient.measure``.
    """
    device = config.device
    agent = agent_of(config)
    setting = f"{device.threads} thread(s), batch {device.batch}, {device.dtype}"
    observer.phase(f"Measuring on {'this machine' if agent is None else agent.device}, {setting}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.jsonl" if out is None else out
        if agent is None:
            given = (plan, path, device.threads, device.provider, minutes, observer.progress)
            measure_here(*given, runtime=other_runtime(config))
        elif not _has_measured(agent, path):
            agent.measure(_with_setting(plan, config), path, minutes, observer.progress)
        return read_results([path])[0]


def _has_measured(agent: AgentClient, path: Path) -> bool:
    """Whether a file holds the whole result of an agent's device, from a run that was broken off later."""
    if not path.exists():
        return False
    result = read_results([path])[0]
    return not result.coverage.left_out and not differences(result.provenance, agent.provenance())


def measure_table(
    config: Config,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    variants: int | None = None,
    known: LatencyTable | None = None,
    minutes: float | None = None,
    measurements: Measurements | None = None,
    subject: MeasuredSubject | None = None,
) -> LatencyTable:
    """Measure a configuration's network on this machine, first at random, then where the table is least sure.

    Where there is no table of this machine yet, a shipped one of another is the prior: it says where to measure, and
    answers where the measurements are silent.

    Args:
        config: names the network and the setting.
        observer: sees phases and progress.
        given: what is in memory.
        variants: that build the table; as many as ``needed_variants`` says if None.
        known: the device's table that is there already; it is extended.
        minutes: bound of the measuring, None for none.
        measurements: where results are kept as they are made; None keeps nothing of a run that is broken off.
        subject: the network where it is loaded already.

    Raises:
        BadInputError: as ``load_workload``, a network that cannot be exported, ``known`` of another device, or
            measurements of another request; or as ``check_measuring``.
    """
    check_measuring(variants, minutes)
    if subject is None:
        observer.phase("Tracing the network")
        subject = subject_of(config, given)
    if known is not None:
        check_setting(known, config)
    with tempfile.TemporaryDirectory() as folder:
        kept = measurements or Measurements(Path(folder) / "measurements", resume=False)
        return _measured_table(config, observer, subject, variants, known, minutes, kept)


def _measured_table(
    config: Config,
    observer: Observer,
    subject: MeasuredSubject,
    variants: int | None,
    known: LatencyTable | None,
    minutes: float | None,
    measurements: Measurements,
) -> LatencyTable:
    network = subject.trace.network
    prior = prior_of(config, network) if known is None else None
    source = known or prior
    bind = None if source is None else cache(source.bind)  # asked here and by the first plan
    most = default_variants(config)
    wanted = variants or wanted_variants(known, prior, network, most)
    if source is not None and wanted < most:
        observer.phase(_fewer(wanted, most, source))
    measurements.begin(request_of("measure", config, subject, known, config.seed, wanted))
    table: LatencyTable | None = None
    results: list[KitResult] = []
    stages = _stages(wanted)
    for stage, count in enumerate(stages, start=1):
        bind_table = bind if table is None else table.bind
        make_plan = partial(_stage_plan, config, observer, subject, count, config.seed + 1000 * (stage - 1), bind_table)
        bound = minutes and minutes * count / wanted
        results += measurements.settled(stage, make_plan, partial(_measure, config, observer), bound, observer)
        observer.phase("Building the table")
        known_tables = [known] if known is not None else []
        table = table_from_results(results, known_tables, prior, is_draft=stage < len(stages))
    assert table is not None
    return table


def default_variants(config: Config) -> int:
    """Variants of a network of which nothing is known: more by a provider that gives no profile of its kernels."""
    return VARIANTS if has_profiles(config) else round(WHOLE_RUNS * VARIANTS)


def wanted_variants(
    known: LatencyTable | None, prior: LatencyTable | None, network: NetworkSpec, variants: int = VARIANTS
) -> int:
    """How many variants to measure of as many as an unknown network needs: another machine's rows count half."""
    here = None if known is None else _of_measured_networks(known)
    shares = [0.0 if here is None else known_share(here.bind(network), network)]
    shares += [0.5 * known_share(table.bind(network), network) for table in (known or prior,) if table is not None]
    return needed_variants(max(shares), variants)


def _of_measured_networks(table: LatencyTable) -> LatencyTable | None:
    """A table without rows that were carried over from another machine."""
    networks = {name: entry for name, entry in table.networks.items() if entry.fingerprint is not None}
    return (
        replace(table, rows=table.rows[table.rows["network"].isin(networks)], networks=networks) if networks else None
    )


def measured_count(variants: int) -> int:
    """Networks that are run for so many variants: the dense one in every stage, and those held out, too."""
    return sum(1 + count + held_out_count(count) for count in _stages(variants))


def _stages(variants: int) -> list[int]:
    counts = [round(share * variants) for share in STAGES]
    return counts if min(counts) >= LEAST_VARIANTS else [variants]


def _fewer(wanted: int, most: int, source: LatencyTable) -> str:
    return f"{wanted} variants instead of {most}: the table of {source.provenance.cpu} knows layers of the network"


def prior_of(config: Config, network: NetworkSpec) -> LatencyTable | None:
    """The shipped table of another machine that knows most of a network; None where none knows half of it.

    Its data type and its blocks of channels must be those of this machine: other kernels say nothing.
    """
    here = device_provenance(config)
    best, most = None, LEAST_KNOWN
    for folder in (path for root in TABLES.shipped_folders for path in sorted(root.iterdir()) if TABLES.is_one(path)):
        table = read_latency_table(folder)
        there = table.provenance
        if _kernels(there) != _kernels(here):
            continue
        share = known_share(table.bind(network), network)
        if share >= most:
            best, most = table, share
    return best


def _kernels(where: Provenance) -> tuple[object, ...]:
    """What decides which kernels run."""
    return where.runtime_name, where.provider, where.dtype, where.nchwc_block


def _stage_plan(
    config: Config, observer: Observer, subject: MeasuredSubject, count: int, seed: int, bind: Bind | None
) -> KitPlan:
    observer.phase("Preparing pruned variants")
    return measurement_plan(
        [subject],
        variants=count,
        batch=config.device.batch,
        dtype=config.device.dtype,
        opset=config.device.export.opset,
        seed=seed,
        bind=bind,
        progress=observer.progress,
        runtime=other_runtime(config),
    )


def _measure(config: Config, observer: Observer, minutes: float | None, plan: KitPlan, out: Path) -> None:
    measured_here(plan, config, observer, minutes, out)


def check_setting(table: LatencyTable, config: Config) -> None:
    """Refuse to measure here into a table of another device or setting.

    Raises:
        BadInputError: names the first difference.
    """
    differing = differences(table.provenance, device_provenance(config))
    if differing:
        who = "this machine" if config.device.location == HERE else f"device {config.device.location}"
        raise BadInputError(
            f"{who} cannot extend the table: {differing[0]}; use its device, and its setting in the "
            "configuration's section device, or measure a table of its own: leave device.table at auto, or name a new "
            "folder"
        )
