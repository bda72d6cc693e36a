"""Fill the typed summary of a search or of ``prune``, and add to one what an absent device measured."""

import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from amcsearch.core import Cost, PruningPolicy
from amcsearch.jobs.delivery import Finalist, Outcome, finalist_name
from amcsearch.jobs.device import PricedLimit, table_name, table_summary
from amcsearch.jobs.prune.target_cost import Proposal
from amcsearch.jobs.setup import Job
from amcsearch.runs import (
    HERE,
    OFFLINE,
    BudgetEntry,
    DeliveredMetric,
    FinalistSummary,
    Goal,
    GroupWidth,
    Interval,
    LimitVerdict,
    Measurement,
    MeasuringDevice,
    ModelBlock,
    Prediction,
    RunFolder,
    SkippedLayer,
    SparseLatency,
    SparsifySummary,
    Summary,
    Verdict,
    table_commands,
    verify_commands,
)
from amcsearch.runtime import PairedLatency
from amcsearch.search import Study

__all__ = [
    "Origin",
    "describe_proposal",
    "describe_search",
    "summarise",
    "with_measurement",
    "with_sparse_measurement",
]


@dataclass(frozen=True)
class Origin:
    """Who proposed a policy after how many evaluations, beside which baseline; the goal, if it was ``prune``'s.

    ``training`` is the line of ``fine_tune``.
    """

    agent: str
    baseline: str | None
    evaluations: int
    notes: tuple[str, ...]
    goal: Goal | None = None
    training: str = ""


def describe_search(study: Study, baseline: Study | None) -> Origin:
    """Return who searched, and how much it spent."""
    return Origin(study.agent, baseline.agent if baseline else None, len(study.trials), tuple(study.notes))


def describe_proposal(proposal: Proposal) -> Origin:
    """Return how ``prune`` came to its policy, and what was asked and achieved."""
    return Origin(proposal.agent, None, proposal.evaluations, proposal.notes, proposal.goal)


def summarise(
    job: Job,
    origin: Origin,
    finalists: Sequence[Finalist],
    outcome: Outcome,
    seconds: Mapping[str, float],
    run: RunFolder,
) -> Summary:
    """Return the model blocks of dense, pruned and fine-tuned, and how they came about; ``seconds`` by phase."""
    trial, trace, device = outcome.chosen.trial, job.workload.trace, job.device
    blocks, verdict = _blocks(job, outcome), _verdict(job, outcome, run)
    return Summary(
        **blocks,
        dtype=job.config.device.dtype,
        float32_ms=_pruned_ms(outcome.in_float32),
        latency_ratio=_ratio(outcome.latency),
        device=outcome.device,
        budget={limit.cost: BudgetEntry(limit.written, limit.value, trial.cost[limit.cost]) for limit in device.limits},
        dense_search_metric=job.dense.metric,
        table=table_summary(job.device.table, Path(table_name(job.config, job.device.origin)).name, job.device.origin),
        versions=_versions(),
        onnx_max_abs_diff=outcome.files[0].max_abs_diff,
        selection=job.selection,
        agent=origin.agent,
        baseline=origin.baseline,
        goal=origin.goal,
        training=origin.training,
        seed=job.config.seed,
        evaluations=origin.evaluations,
        seconds=dict(seconds),
        finalists=tuple(_finalist(finalist, finalist is outcome.chosen) for finalist in finalists),
        network=tuple(GroupWidth(g.name, g.channels, trial.policy[g.name]) for g in trace.network.groups),
        skipped=tuple(SkippedLayer(skipped.name, skipped.reason) for skipped in trace.skipped),
        channel_multiple=device.channel_multiple,
        widths_left_out=device.widths_left_out,
        recalibrated=job.evaluator.recalibrates,
        warnings=(*job.workload.warnings, *device.warnings, *verdict.texts, *_similarity(job), *origin.notes),
        verdict=verdict,
        files=outcome.files,
        metric=job.workload.task.metric,
    )


def _limit_verdict(limit: PricedLimit, cost: Cost, made: Measurement | None, run: RunFolder) -> LimitVerdict:
    """Judge a limit by the costs of the delivered network: latency as measured, all else as predicted."""
    predicted, dense = cost[limit.cost] * limit.unit, limit.dense * limit.unit
    if limit.cost == "latency_ms" and made is None:
        again = f"measure it on the device: {verify_commands(run.path)[0]}"
        return LimitVerdict.unmeasured(limit.asked, predicted, dense, again)
    if limit.cost == "latency_ms" and made is not None:
        return LimitVerdict.by_measurement(limit.asked, predicted, dense, made)
    return LimitVerdict.by_prediction(limit.asked, predicted, dense)


def _verdict(job: Job, outcome: Outcome, run: RunFolder) -> Verdict:
    """The verdict by the final measurement of the delivered file; by predictions where there is none yet."""
    trial = outcome.chosen.trial
    latency, sigma_ms = outcome.latency, _sigma_ms(job, trial.policy)
    predicted = _prediction(
        trial.cost, sigma_ms, job.device.dense, _unpriced(trial.policy.values()) + _table_cure(job, run)
    )
    location = job.config.device.location
    made = None if latency is None else _made(latency, predicted, _again(job, run), location)
    judged = (_limit_verdict(limit, trial.cost, made, run) for limit in job.device.limits)
    return Verdict.of(judged, outcome.files, made)


def _prediction(cost: Cost, sigma_ms: float | None, dense: Cost, cure: str) -> Prediction | None:
    """What a table says of a network's latency beside the dense one's, None without a table."""
    if cost.latency_ms is None or sigma_ms is None or dense.latency_ms is None:
        return None
    return Prediction(cost.latency_ms, sigma_ms, dense.latency_ms, cure)


def _made(latency: PairedLatency, predicted: Prediction | None, again: str, location: str) -> Measurement:
    latency_ms = Interval(latency.pruned_ms, latency.pruned_low, latency.pruned_high)
    ratio = Interval(latency.ratio, latency.ratio_low, latency.ratio_high)
    made = Measurement(latency_ms, ratio, latency.rounds, latency.disturbed, predicted, again)
    if location == HERE:
        return made
    return replace(made, table=f"measure a latency table on the device: {table_commands(location)}")


def _again(job: Job, run: RunFolder) -> str:
    """How to measure the policy once the host is idle: a command, or a call where the network is in memory.

    The call names no file: the folder of a run that is not saved goes with its result.
    """
    # the kit of a device elsewhere has its own number of rounds
    patience = ", or raise device.patience_s" if job.config.device.location == HERE else ""
    call = "amcsearch.prune(model, data, policy=result.policy) with the same task and settings"
    return f"measure it on an idle machine: {run.prune_command if job.given.model is None else call}{patience}"


def _table_cure(job: Job, run: RunFolder) -> str:
    """How to make the latency table better: a command, or a call where the network is in memory."""
    if job.given.model is not None or job.given.table is not None:
        return "measure it again: amcsearch.measure_latency_table(model, example, known=table)"
    if job.config.device.location != HERE:
        return f"measure it again: {table_commands(job.config.device.location)}"
    folder = shlex.quote(table_name(job.config, job.device.origin))
    check = f"amcsearch table check {folder} {shlex.quote(str(run.config_yaml))} --anchors 10 --write"
    return f"bring it up to date: {check}"


def _unpriced(kept_counts: Iterable[int]) -> str:
    """What no table says of a policy with these kept counts, to stand before how to make the table better."""
    return "" if all(kept_counts) else "no table prices the constants that its vanished blocks leave; "


def _sigma_ms(job: Job, policy: PruningPolicy) -> float | None:
    """Standard deviation of a policy's predicted latency in ms, None without a table."""
    if job.device.table is None:
        return None
    return job.device.table.uncertainty(job.workload.trace.network.with_channels(policy).layers)


def _versions() -> dict[str, str]:
    names = ("amcsearch", "torch", "onnxruntime", "optuna", "stable-baselines3")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _ratio(latency: PairedLatency | None) -> Interval | None:
    return None if latency is None else Interval(latency.ratio, latency.ratio_low, latency.ratio_high)


def _pruned_ms(latency: PairedLatency | None) -> Interval | None:
    return None if latency is None else Interval(latency.pruned_ms, latency.pruned_low, latency.pruned_high)


def _dense_ms(latency: PairedLatency | None) -> Interval | None:
    return None if latency is None else Interval(latency.dense_ms, latency.dense_low, latency.dense_high)


def _blocks(job: Job, outcome: Outcome) -> dict[str, ModelBlock]:
    """Dense, pruned and fine-tuned; the last two have the same shapes, and so the same cost."""
    trial, latency = outcome.chosen.trial, outcome.latency

    def block(name: str, cost: Cost, policy: PruningPolicy, measured: Interval | None) -> ModelBlock:
        in_torch, in_file = outcome.metric[name], outcome.delivered.get(name)
        sigma_ms, dtype = _sigma_ms(job, policy), job.config.device.dtype
        if in_file is None:
            return ModelBlock(in_torch, cost, sigma_ms, measured)
        apart = None if dtype == "float32" else DeliveredMetric(dtype, in_file)
        return ModelBlock(in_file, cost, sigma_ms, measured, apart, in_torch)

    measured = _pruned_ms(latency)
    return {
        "dense": block("dense", job.device.dense, job.workload.trace.network.dense, _dense_ms(latency)),
        "pruned": block("pruned", trial.cost, trial.policy, measured),
        "finetuned": block("finetuned", trial.cost, trial.policy, measured),
    }


def _finalist(finalist: Finalist, chosen: bool) -> FinalistSummary:
    trial, latency = finalist.trial, finalist.latency
    return FinalistSummary(
        trial.number,
        chosen,
        trial.policy,
        trial.evaluation.metric,
        trial.reward,
        trial.cost.latency_ms,
        _pruned_ms(latency),
        _ratio(latency),
        None if finalist.trained is None else finalist.trained.metric,
        finalist.trained_reward,
        finalist.trained_epochs,
        finalist.round,
    )


def with_measurement(
    summary: Summary,
    latencies: Mapping[str, PairedLatency],
    device: MeasuringDevice,
    in_float32: PairedLatency | None,
    again: str,
) -> Summary:
    """Return the summary of a delivered network with what its device measured.

    Args:
        summary: of the network whose finalist is chosen there.
        latencies: of the finalists beside the dense network, by ``finalist_name``.
        device: that measured them.
        in_float32: of the dense network in float32, where the device computes in another data type.
        again: how to measure later.
    """
    by_trial = {finalist.trial: latencies[finalist_name(finalist.trial)] for finalist in summary.finalists}
    latency = next(by_trial[finalist.trial] for finalist in summary.finalists if finalist.chosen)
    cure = _unpriced(width.kept for width in summary.network) + f"measure it again: {table_commands(OFFLINE)}"
    block = summary.finetuned
    made = _made(latency, _prediction(block.cost, block.latency_ms_sigma, summary.dense.cost, cure), again, OFFLINE)
    verdict, warnings = _judged_anew(summary, made)
    return replace(
        summary,
        dense=replace(summary.dense, latency_ms=_dense_ms(latency)),
        pruned=replace(summary.pruned, latency_ms=_pruned_ms(latency)),
        finetuned=replace(summary.finetuned, latency_ms=_pruned_ms(latency)),
        float32_ms=_pruned_ms(in_float32),
        latency_ratio=_ratio(latency),
        device=device,
        finalists=tuple(
            replace(
                finalist,
                latency_ms_measured=_pruned_ms(by_trial[finalist.trial]),
                latency_ratio=_ratio(by_trial[finalist.trial]),
            )
            for finalist in summary.finalists
        ),
        warnings=warnings,
        verdict=verdict,
    )


def with_sparse_measurement(
    summary: SparsifySummary,
    latency: PairedLatency,
    device: MeasuringDevice,
    in_float32: PairedLatency | None,
    again: str,
) -> SparsifySummary:
    """Return the summary of a network that was pruned while it trained, with what its device measured.

    Args:
        summary: of the run.
        latency: of the delivered network beside the dense one.
        device: as for ``with_measurement``.
        in_float32: as for ``with_measurement``.
        again: as for ``with_measurement``.
    """
    made = _made(latency, None, again, OFFLINE)
    verdict, warnings = _judged_anew(summary, made)
    dense_ms = Interval(latency.dense_ms, latency.dense_low, latency.dense_high)
    measured = SparseLatency(dense_ms, made.latency_ms, made.ratio, _pruned_ms(in_float32))
    return replace(summary, device=device, latency=measured, warnings=warnings, verdict=verdict)


def _judged_anew(summary: Summary | SparsifySummary, made: Measurement) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict by another measurement, and the warnings with what it says in place of what the last one said."""
    before, dense_ms = summary.judged, summary.dense.cost.latency_ms or 1.0
    verdict = Verdict.of((limit.measured_anew(made, dense_ms) for limit in before.limits), summary.files, made)
    return verdict, (*verdict.texts, *(text for text in summary.warnings if text not in before.texts))


def _similarity(job: Job) -> list[str]:
    if job.config.data.targets == "given":
        return []
    word = job.workload.task.metric.word
    return [f"the targets are the dense network's outputs: {word} says how near the smaller one's are to them"]
