"""Finish a run whose device is not here: the kit that measures its networks there, and what the kit measured.

A measurement is taken where it is of this run's kit, by the hash of its plan and models, and of the configured setting.
The finalist that the measurement chooses is delivered: as it is where the prediction chose the same, else fine-tuned
first. A run of ``sparsify`` has one network, which stays as it is. The result file is only read, and a copy stays in
the run folder, so that nothing is lost where a run breaks off.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from amcsearch.config import Config
from amcsearch.core import RESUME, BadInputError, Evaluation, PruningPolicy, Trial, TrialState, read_bytes
from amcsearch.jobs.delivery import Exports, Finalist, choose, finalist_name, measured_overshoot
from amcsearch.jobs.loading import smaller_network
from amcsearch.jobs.measuring import DELIVERED, FLOAT32, measuring_device
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.result import SearchResult, SparsifyResult, deliver
from amcsearch.jobs.setup import assemble
from amcsearch.jobs.summary import Origin, with_measurement, with_sparse_measurement
from amcsearch.jobs.workload import CONFIGURED, InMemory
from amcsearch.measure import KitResult, check_kit_file, check_speed, kit_plan, paired_latencies, read_results
from amcsearch.reporting import render
from amcsearch.runs import (
    OFFLINE,
    FinalistSummary,
    MeasuringDevice,
    RunFolder,
    SparsifySummary,
    Summary,
    replacing,
    verify_commands,
)
from amcsearch.runtime import CPU, PairedLatency, full_provider_name

__all__ = ["VerifyKit", "check_result", "verify", "write_verify_kit"]

MOST_BYTES: Final = 2**29  # of a kit
_NOTE: Final = "measurement: "
"""Begins each warning about a result file, which the next result replaces."""


@dataclass(frozen=True)
class VerifyKit:
    """The kit of a run that was written: its path and size, how many networks it measures, and what to do with it."""

    kit: Path
    bytes: int
    models: int
    run: str
    then: str


def write_verify_kit(run: RunFolder, out: Path) -> VerifyKit:
    """Write the file that measures a run's networks beside the dense one on the device.

    Raises:
        BadInputError: a run that has not finished or was measured already, or a file that cannot be written.
    """
    summary = _awaiting(run)
    plan = kit_plan(run.verify_pyz)
    check_kit_file(out)
    content = read_bytes(run.verify_pyz, "kit", MOST_BYTES)
    with replacing(out) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o755)
    command = f"python3 {out.name} -o result.jsonl"
    if "setting" not in plan.plan and summary.device is not None:  # a kit of before plans carried it
        command += f" --threads {summary.device.threads}"
    return VerifyKit(out, len(content), len(plan.entries), command, verify_commands(run.path)[1])


def _awaiting(run: RunFolder) -> Summary | SparsifySummary:
    """The summary of a run that an absent device measures.

    Raises:
        BadInputError: the run has not finished, or another device measured it.
    """
    if not run.summary_json.is_file():
        raise BadInputError(f"run {run.path} has not finished: there is nothing to measure yet; resume it first")
    summary = run.read_summary()
    device, is_sparse = summary.device, isinstance(summary, SparsifySummary)
    if device is None or not (is_sparse or device.location == OFFLINE):
        where = "" if device is None else f" on {device.label}"
        begin = "was to be measured by no device" if is_sparse else f"was measured{where}"
        raise BadInputError(
            f"run {run.path} {begin}; to have another device measure it, run its command again with "
            "--resume --set device.location=offline"
        )
    if not run.verify_pyz.is_file():
        raise BadInputError(f"run {run.path} has lost {run.verify_pyz.name}; run its command again with {RESUME}")
    return summary


def check_result(run: RunFolder, path: Path) -> KitResult:
    """Read a result and check that it measures this run's kit.

    Raises:
        BadInputError: a file that is damaged or cut off too early, of a table kit, or of another kit.
    """
    plan = kit_plan(run.verify_pyz)
    with _naming_torn_line(path):
        result = _only(read_results([path]), path)
        paired_latencies(result, [], str(path))
    if result.plan_hash != plan.hash:
        raise BadInputError(
            f"{path} was measured with another kit ({result.plan_hash[:12]}) than that of run {run.path} "
            f"({plan.hash[:12]}); measure with this one: {verify_commands(run.path)[0]}"
        )
    return result


@contextmanager
def _naming_torn_line(path: Path) -> Iterator[None]:
    """Say of a result that is not enough for a verdict that its file was cut off, where it was."""
    try:
        yield
    except BadInputError as error:
        content = read_bytes(path, "kit result", MOST_BYTES)
        if not content or content.endswith(b"\n"):
            raise
        line = content.count(b"\n") + 1
        raise BadInputError(
            f"{path}: line {line}, the last, is torn: the file was cut off; copy it again from the "
            f"device. What is left is not enough for a verdict: {error}"
        ) from error


def _only(results: Sequence[KitResult], path: Path) -> KitResult:
    if len(results) != 1:
        raise BadInputError(f"{path} holds results of {len(results)} kits, expected those of one")
    return results[0]


def verify(
    config: Config, run: RunFolder, result: Path, observer: Observer, given: InMemory = CONFIGURED
) -> SearchResult | SparsifyResult:
    """Take what a run's kit measured: choose the finalist, fine-tune it where it is another, and report.

    Args:
        config: of the run.
        run: taken for writing.
        result: the file that the kit wrote on the device.
        observer: sees phases.
        given: the network and the data, where the run was made with these in memory.

    Raises:
        BadInputError: as ``write_verify_kit`` and ``check_result``, another setting than the configured one, times that
            no device can reach, or a network that is needed and not there.
    """
    phases = Phases(observer, run.append_log)
    summary = _without_notes(_awaiting(run))
    awaited = summary.device
    with phases("measurement", f"Reading {result}"):
        made = check_result(run, result)
        _check_setting(config, made, str(result))
        with _naming_torn_line(result):
            latencies, in_float32 = _latencies(config, summary, made, str(result))
        content = read_bytes(result, "result", MOST_BYTES)
        with replacing(run.measured_jsonl) as temporary:
            temporary.write_bytes(content)
    again = f"measure it on an idle device: {verify_commands(run.path)[0]}"
    measured: Summary | SparsifySummary
    if isinstance(summary, SparsifySummary):
        device = _device(config.device.location, made, awaited)
        measured = with_sparse_measurement(summary, latencies[DELIVERED], device, in_float32, again)
    else:
        summary = _with_choice(config, run, phases, given, summary, latencies)
        device = _device(OFFLINE, made, awaited)
        measured = with_measurement(summary, latencies, device, in_float32, again)
    noted = tuple(dict.fromkeys((*measured.warnings, *_notes(measured, made))))
    run.write_summary(replace(measured, warnings=noted))
    run.write_report(render(run))
    kind = SparsifyResult if isinstance(measured, SparsifySummary) else SearchResult
    return kind(run, lambda: smaller_network(run, given.model, "auto"))


def _check_setting(config: Config, made: KitResult, place: str) -> None:
    """Refuse a result of another setting than the configured one.

    Raises:
        BadInputError: names both values, and the cure.
    """
    device, where, provider = config.device, made.provenance, full_provider_name(config.device.provider)
    cures = {
        "threads": f"run the kit with --threads {device.threads}",
        "provider": f"run the kit with --provider {provider}",
    }
    compared = {
        "runtime": (device.runtime, where.runtime_name),
        "provider": (provider, where.provider or CPU),
        **{name: (getattr(device, name), getattr(where, name)) for name in ("threads", "batch", "dtype")},
    }
    for name, (wanted, measured) in compared.items():
        if measured != wanted:
            cure = cures.get(name, "bring a result of this run's kit")
            raise BadInputError(f"{place} was measured with {name} = {measured}, device.{name} is {wanted}; {cure}")


def _latencies(
    config: Config, summary: Summary | SparsifySummary, made: KitResult, place: str
) -> tuple[dict[str, PairedLatency], PairedLatency | None]:
    """Latencies by name, and that of the dense network in float32 where the device computes in another data type.

    Raises:
        BadInputError: a network that was not timed, or impossible times.
    """
    finalists = () if isinstance(summary, SparsifySummary) else summary.finalists
    names = [finalist_name(finalist.trial) for finalist in finalists] or [DELIVERED]
    latencies = paired_latencies(made, names, place)
    for latency in latencies:
        check_speed(latency, summary.dense.cost.get("macs", 0.0), config.device.batch, place)
    quantised = config.device.dtype != "float32"
    in_float32 = paired_latencies(made, [FLOAT32], place)[0] if quantised else None
    return dict(zip(names, latencies, strict=True)), in_float32


def _with_choice(
    config: Config,
    run: RunFolder,
    phases: Phases,
    given: InMemory,
    summary: Summary,
    latencies: Mapping[str, PairedLatency],
) -> Summary:
    """The summary of the network that the measurement chooses, which is delivered where the prediction chose another.

    Raises:
        BadInputError: as ``_deliver_other``.
    """
    finalists = [_finalist(summary, each, latencies[finalist_name(each.trial)]) for each in summary.finalists]
    if _is_delivered(summary, choose(finalists).trial.policy):
        return summary
    return _deliver_other(config, run, phases, given, summary, finalists)


def _finalist(summary: Summary, stored: FinalistSummary, latency: PairedLatency) -> Finalist:
    """A finalist as the run stored it, with its measured share of the latency limit."""
    limits = (limit.as_limit for limit in summary.judged.limits if limit.cost == "latency_ms")
    entry, cost = summary.budget.get("latency_ms"), summary.dense.cost
    predicted = {} if stored.latency_ms_predicted is None else {"latency_ms": stored.latency_ms_predicted}
    trial = Trial(
        stored.trial,
        summary.agent,
        summary.seed,
        TrialState.COMPLETE,
        stored.policy,
        Evaluation(stored.metric, 0.0, 0.0),
        type(cost)(predicted),
        stored.reward,
        summary.metric,
    )
    overshoot = measured_overshoot(trial, next(limits, None), None if entry is None else entry.limit, latency)
    trained = None if stored.metric_trained is None else Evaluation(stored.metric_trained, 0.0, 0.0)
    return Finalist(trial, latency, overshoot, trained, stored.reward_trained, stored.epochs_trained, stored.round)


def _is_delivered(summary: Summary, policy: PruningPolicy) -> bool:
    chosen = summary.chosen
    return chosen is not None and chosen.policy == policy


def _deliver_other(
    config: Config,
    run: RunFolder,
    phases: Phases,
    given: InMemory,
    summary: Summary,
    finalists: Sequence[Finalist],
) -> Summary:
    """Deliver the finalist that the measurement chooses in place of the predicted one; return the run's new summary.

    Raises:
        BadInputError: the network is not there, or as ``assemble`` and ``deliver``.
    """
    chosen = choose(finalists)
    if config.model.factory is None and given.model is None:
        raise BadInputError(
            f"the measurement chooses trial {chosen.trial.number} in place of the predicted one, which has to be "
            f"fine-tuned; hand over the network and its data: amcsearch.verify({str(run.path)!r}, RESULT, model, data)"
        )
    phases.observer.phase(f"Delivering trial {chosen.trial.number}, which the measurement chooses")
    job = assemble(config, config.limits, phases, given, run=run)
    known = set(summary.judged.texts)
    notes = tuple(text for text in summary.warnings if text not in known)
    origin = Origin(summary.agent, summary.baseline, summary.evaluations, (), summary.goal)
    priced = [_priced(each, job.device.grid.cost(each.trial.policy)) for each in finalists]
    exports = Exports(job)
    job = exports.cut([chosen.trial.policy])
    deliver(job, run, phases, priced, exports, origin, is_measured=True)
    delivered = run.read_summary()
    assert isinstance(delivered, Summary)
    warnings = tuple(dict.fromkeys((*delivered.warnings, *notes)))
    return replace(delivered, warnings=warnings, seconds=_added(summary.seconds, delivered.seconds))


def _priced(finalist: Finalist, cost: Mapping[str, float]) -> Finalist:
    return replace(finalist, trial=replace(finalist.trial, cost=type(finalist.trial.cost)(cost)))


def _added(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {name: before.get(name, 0.0) + now.get(name, 0.0) for name in dict.fromkeys((*before, *now))}


def _without_notes(summary: Summary | SparsifySummary) -> Summary | SparsifySummary:
    """The summary without the warnings about an earlier result file."""
    return replace(summary, warnings=tuple(text for text in summary.warnings if not text.startswith(_NOTE)))


def _device(location: str, made: KitResult, awaited: MeasuringDevice | None) -> MeasuringDevice:
    """The device that measured, and the one that the latency was predicted for."""
    device = measuring_device(location, made.provenance)
    expected = None if awaited is None else awaited.name if awaited.is_awaited else awaited.predicted_for
    return replace(device, predicted_for=expected)


def _notes(measured: Summary | SparsifySummary, made: KitResult) -> list[str]:
    """What should be known of the measurement, and where the device is not the one of the latency table."""
    notes, device = list(made.notes), measured.device
    planned = int(made.plan["passes"]) * sum(model.timed for model in made.models)
    timed = sum(made.coverage.timed)
    if timed < planned:
        notes.append(
            f"{timed} of {planned} planned timings are in the result; copy it again from the device, or run the kit "
            "there again with the same -o, it goes on where it stopped"
        )
    is_predicted = measured.dense.cost.latency_ms is not None
    if is_predicted and device is not None and device.predicted_for not in (None, device.name):
        notes.append(
            f"latency was predicted for {device.predicted_for} and measured on {device.name}; make a table of that "
            "one: amcsearch table kit"
        )
    return [_NOTE + note for note in notes]
