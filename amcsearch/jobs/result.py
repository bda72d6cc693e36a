"""From measured finalists to the delivered network: fine-tuning, verification, summary and report."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from amcsearch.jobs.delivery import Exports, Finalist, choose, verify
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job
from amcsearch.jobs.summary import summarise
from amcsearch.reporting import render
from amcsearch.runs import RunFolder

__all__ = ["deliver"]


def deliver(
    job: Job,
    run: RunFolder,
    phases: Phases,
    finalists: Sequence[Finalist],
    exports: Exports,
    origin: dict[str, Any] | Callable[[nn.Module, nn.Module], dict[str, Any]],
) -> dict[str, Any]:
    """Fine-tune the chosen finalist, verify it and write what the run folder keeps; return the summary.

    ``origin`` says who proposed the policy, or makes it from the network as pruned and as fine-tuned.

    Raises:
        BadInputError: the training diverges, or as ``verify``.
    """
    chosen = choose(finalists)
    with phases("finetune", "Fine-tuning the chosen policy"):
        pruned = exports.pruned(chosen.trial.policy)
        tuned = fine_tune(job.config, job.workload, copy.deepcopy(pruned), phases.observer)
    described = origin(pruned, tuned) if callable(origin) else origin
    with phases("verify", "Exporting, measuring and reading the test split"):
        outcome = verify(job, run, exports, tuned, chosen)
    summary = summarise(job, described, finalists, outcome, phases.seconds)
    run.write_policy(chosen.trial.policy)
    run.write_summary(summary)
    run.write_report(render(run))
    return summary
