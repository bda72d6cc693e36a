"""What a run found, as plain values: the content of ``summary.json``."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amcsearch.core import COST_NAMES, Cost, PruningPolicy
from amcsearch.jobs.delivery import Finalist, Outcome
from amcsearch.jobs.prune.target_cost import Proposal
from amcsearch.jobs.setup import Job
from amcsearch.search import Study

__all__ = ["describe_proposal", "describe_search", "summarise"]


def describe_search(study: Study, baseline: Study | None) -> dict[str, Any]:
    """Return who searched, and how much it spent."""
    return {
        "agent": study.agent,
        "baseline": baseline.agent if baseline else None,
        "evaluations": len(study.trials),
        "notes": study.notes,
    }


def describe_proposal(found: Proposal) -> dict[str, Any]:
    """Return how ``prune`` came to its policy, and what was asked and achieved."""
    return {
        "agent": found.agent,
        "baseline": None,
        "evaluations": found.evaluations,
        "notes": list(found.notes),
        "goal": dict(found.goal),
    }


def summarise(
    job: Job,
    origin: dict[str, Any],
    finalists: Sequence[Finalist],
    outcome: Outcome,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the model blocks of dense, pruned and fine-tuned, and how they came about.

    ``origin`` says who proposed the policy: ``agent``, ``baseline``, ``evaluations``, ``notes`` and, if it was
    ``prune``, the ``goal``.
    """
    trial, latency = outcome.chosen.trial, outcome.latency
    return {
        **_blocks(job, outcome),
        "dtype": job.config.device.dtype,
        "latency_ratio": _interval(latency.ratio, latency.ratio_low, latency.ratio_high),
        "budget": {
            limit.cost: {"asked": limit.written, "limit": limit.value, "predicted": trial.cost[limit.cost]}
            for limit in job.device.limits
        },
        "dense_search_accuracy": job.dense.accuracy,
        "table": _table(job),
        "versions": _versions(),
        "onnx_max_abs_diff": outcome.onnx_max_abs_diff,
        "agent": origin["agent"],
        "baseline": origin["baseline"],
        "goal": origin.get("goal"),
        "seed": job.config.seed,
        "evaluations": origin["evaluations"],
        "seconds": {**seconds, "total": sum(seconds.values())},
        "finalists": [_finalist(finalist, finalist is outcome.chosen) for finalist in finalists],
        "network": [
            {"group": group.name, "channels": group.channels, "kept": trial.policy[group.name]}
            for group in job.workload.trace.network.groups
        ],
        "skipped": [asdict(skipped) for skipped in job.workload.trace.skipped],
        "channel_multiple": job.device.channel_multiple,
        "widths_left_out": job.device.widths_left_out,
        "warnings": [*job.device.warnings, *_missed(outcome, job), *_similarity(job), *origin["notes"]],
    }


def _table(job: Job) -> dict[str, Any] | None:
    if job.device.table is None or job.config.device.table is None:
        return None
    table = job.device.table
    return {"name": Path(job.config.device.table).name, "network": table.network, "accuracy": table.accuracy}


def _sigma_ms(job: Job, policy: PruningPolicy) -> float | None:
    """Standard deviation of a policy's predicted latency in ms, None without a table."""
    if job.device.table is None:
        return None
    return job.device.table.uncertainty(job.workload.trace.network.with_channels(policy).layers)


def _versions() -> dict[str, str]:
    names = ("amcsearch", "torch", "onnxruntime", "optuna", "stable-baselines3", "torch-pruning")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _interval(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def _blocks(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Dense, pruned and fine-tuned; ``accuracy_int8`` is that of the ONNX models where they compute in int8."""
    trial, latency = outcome.chosen.trial, outcome.latency
    dense_ms = _interval(latency.dense_ms, latency.dense_low, latency.dense_high)
    pruned_ms = _interval(latency.pruned_ms, latency.pruned_low, latency.pruned_high)
    dense = (job.device.dense, _sigma_ms(job, job.workload.trace.network.dense), dense_ms)
    pruned = (trial.cost, _sigma_ms(job, trial.policy), pruned_ms)
    found = {
        "dense": _block(outcome.accuracy["dense"], *dense),
        "pruned": _block(outcome.accuracy["pruned"], *pruned),
        "finetuned": _block(outcome.accuracy["finetuned"], *pruned),
    }
    for name, accuracy in outcome.delivered.items():
        found[name][f"accuracy_{job.config.device.dtype}"] = accuracy
    return found


def _block(accuracy: float, cost: Cost, sigma_ms: float | None, latency_ms: dict[str, float]) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        **{name: cost.get(name) for name in COST_NAMES if name != "latency_ms"},
        **cost.further,
        "latency_ms_predicted": cost.latency_ms,
        "latency_ms_predicted_sigma": sigma_ms,
        "latency_ms_measured": latency_ms,
    }


def _finalist(finalist: Finalist, chosen: bool) -> dict[str, Any]:
    trial, latency = finalist.trial, finalist.latency
    return {
        "trial": trial.number,
        "chosen": chosen,
        "policy": dict(trial.policy),
        "accuracy": trial.evaluation.accuracy,
        "reward": trial.reward,
        "latency_ms_predicted": trial.cost.latency_ms,
        "latency_ms_measured": _interval(latency.pruned_ms, latency.pruned_low, latency.pruned_high),
        "latency_ratio": _interval(latency.ratio, latency.ratio_low, latency.ratio_high),
    }


def _similarity(job: Job) -> list[str]:
    if job.config.data.targets == "given":
        return []
    return ["accuracy is the mean cosine to the dense network's outputs (data.targets: dense)"]


def _missed(outcome: Outcome, job: Job) -> list[str]:
    limit = job.device.limit("latency_ms")
    if limit is None or outcome.chosen.overshoot <= 1.0:
        return []
    return [
        f"no finalist met latency_ms = {limit.written} as measured: the closest took "
        f"{outcome.chosen.overshoot:.3f} of the limit; measure a latency table on this machine and search again"
    ]
