"""Do cheap evaluations order policies as fine-tuning does? Rank correlations over the same policies of one budget.

    OMP_NUM_THREADS=1 python benchmarks/rungs.py [CONFIG] [--policies 60] [--budget 0.2x] [--epochs 10] [--csv FILE]

Without a configuration the network is the little one of ``benchmarks/ladder.py``. The policies use 85 to 100 % of the
budget: the exact allocation of ``obc``'s errors, the uniform one, optima of these errors times random factors, and
random ones. Each is judged on the search split in six ways:

    additive      the sum of the errors that obc knows for every group, without an evaluation
    analytic      as ``refitted``, on --pictures of the split: the squared distance of the outputs to the dense ones
    refitted      channels removed, readers refitted by least squares; batch norms follow from the inputs' moments
    recalibrated  the same with batch norms recalibrated: what a search evaluates
    short         after the fine-tuning of a search's finalists
    long          after --epochs of it

Rank correlations are Spearman's. ``regret`` is what the best policy of each way lacks to the best one after the long
fine-tuning. Judged by the loss, which tells more policies apart than the accuracy of a few hundred samples.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ladder import Silent, little_job
from numpy.typing import NDArray
from scipy.stats import spearmanr

from amcsearch.config.loading import load
from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation import Evaluator
from amcsearch.graph import duplicate, first_tensor
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import judged_batches
from amcsearch.search import Allocator, removal_errors
from amcsearch.training.loop import evaluate

WAYS = ("additive", "analytic", "refitted", "recalibrated", "short", "long")
LEAST = 0.85  # share of the budget that a policy uses
Judge = Callable[[PruningPolicy], tuple[float, float]]


def job_of(options: argparse.Namespace) -> Job:
    """Return the job of the configuration, or of the little network, with the budget."""
    if options.config is None:
        job = little_job()
        config = job.config.model_copy(update={"budget": {"macs": options.budget}})
    else:
        config = load(
            options.config,
            ["device.table=x86_epyc_avx512", f"budget={{macs: {options.budget}}}", "selection={selector: obc}"],
        )
        job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    return replace(job, config=config, device=load_device(config, job.workload, config.limits))


def chosen_policies(job: Job, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return kept counts (P, G) near the budget, and the sums of their errors (P,)."""
    assert job.errors is not None
    device, rng = job.device, np.random.default_rng(job.config.seed)
    errors, allocator = removal_errors(device.space, job.errors), Allocator(device.feasible)
    rows = [allocator.best(errors), device.feasible.largest_uniform()]
    while len(rows) < count:
        factors = np.exp(rng.uniform(-math.log(4.0), math.log(4.0), len(errors)))
        drawn = [allocator.best([f * e for f, e in zip(factors, errors, strict=True)])]
        random = device.space.random(4096, rng)
        used = device.feasible.overshoot(random)
        drawn += list(random[(used >= LEAST) & (used <= 1.0)][:2])
        rows += [row for row in drawn if not any((row == other).all() for other in rows)]
    kept = np.stack(rows[:count])
    at = [np.searchsorted(choices, kept[:, g]) for g, choices in enumerate(device.space.choices)]
    return kept, np.sum([error[i] for error, i in zip(errors, at, strict=True)], axis=0)


def analytic_judge(job: Job, pictures: int) -> Judge:
    """Return what judges by the distance to the dense outputs on some samples, without a recalibration."""
    evaluator = job.evaluator.without_recalibration()
    rows = np.linspace(0, evaluator.search.samples - 1, pictures).round().astype(int).tolist()
    (batch,) = evaluator.search.chosen(rows).batched(pictures)

    @torch.inference_mode()
    def judge(policy: PruningPolicy) -> tuple[float, float]:
        distance = float((first_tensor(batch.through(evaluator.pruned(policy))) - dense).square().mean())
        return distance, -distance

    with torch.inference_mode():
        dense = first_tensor(batch.through(evaluator.model))
    return judge


def judges(job: Job, epochs: int, pictures: int) -> dict[str, Judge]:
    """Return what gives loss and metric on the search split in each way but the first."""
    task, batches = job.workload.task, judged_batches(job.config, job.workload, "search")
    finetune = job.config.recovery.finetune
    assert finetune is not None

    def evaluated(evaluator: Evaluator) -> Judge:
        def judge(policy: PruningPolicy) -> tuple[float, float]:
            evaluation = evaluator.evaluate(policy)
            return evaluation.loss, evaluation.metric

        return judge

    def tuned(count: int) -> Judge:
        recipe = finetune.model_copy(update={"epochs": count})

        def judge(policy: PruningPolicy) -> tuple[float, float]:
            model = duplicate(job.evaluator.pruned(policy))
            fine_tune(job.config, recipe, job.workload, model, Silent(), given=job.given)
            return evaluate(model, batches, task)

        return judge

    return {
        "analytic": analytic_judge(job, pictures),
        "refitted": evaluated(job.evaluator.without_recalibration()),
        "recalibrated": evaluated(job.evaluator),
        "short": tuned(max(1, epochs // 5)),
        "long": tuned(epochs),
    }


def main() -> None:
    """Judge the policies, write the table and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--budget", default="0.2x", help="share of the dense MACs")
    parser.add_argument("--epochs", type=int, default=10, help="of the long fine-tuning; the short one takes a fifth")
    parser.add_argument("--pictures", type=int, default=32, help="that the analytic way looks at")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    job = job_of(options)
    kept, additive = chosen_policies(job, options.policies)
    policies = [job.workload.trace.network.policy(row) for row in kept]
    losses, metrics, seconds = {"additive": additive}, {"additive": -additive}, {"additive": 0.0}
    for name, judge in judges(job, options.epochs, options.pictures).items():
        begun = time.perf_counter()
        judged = np.array([judge(policy) for policy in policies])
        losses[name], metrics[name] = judged[:, 0], judged[:, 1]
        seconds[name] = (time.perf_counter() - begun) / len(policies)
    report(losses, metrics, seconds)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["policy", "additive", *(f"{name}_{what}" for what in ("loss", "metric") for name in WAYS[1:])]
            )
            for i, policy in enumerate(policies):
                values = [table[name][i] for table in (losses, metrics) for name in WAYS[1:]]
                writer.writerow([policy.to_json(), additive[i], *values])


def report(
    losses: dict[str, NDArray[np.float64]], metrics: dict[str, NDArray[np.float64]], seconds: dict[str, float]
) -> None:
    """Print Spearman's correlation of every pair of ways, seconds a policy, and what the best of each lacks."""
    print(f"{len(losses['long'])} policies")
    print(f"| judged by | {' | '.join(WAYS)} | regret, loss | regret, points | seconds a policy |")
    print("|---" * (len(WAYS) + 4) + "|")
    for name in WAYS:
        correlations = [spearmanr(losses[name], losses[other])[0] for other in WAYS]
        best = int(np.argmin(losses[name]))
        lost = losses["long"][best] - losses["long"].min()
        points = 100.0 * (metrics["long"].max() - metrics["long"][best])
        told = " | ".join(f"{value:.2f}" for value in correlations)
        print(f"| {name} | {told} | {lost:.3f} | {points:.1f} | {seconds[name]:.3g} |")


if __name__ == "__main__":
    main()
