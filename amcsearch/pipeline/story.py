"""The story of a search: network → device → ranking → search → finalists → fine-tuning → verification → report."""

from typing import Any

from torch import nn

from amcsearch.config import Config
from amcsearch.core import Trial, TrialState
from amcsearch.pipeline.agents import run_agents
from amcsearch.pipeline.delivery import finetune, measurer, verify
from amcsearch.pipeline.finalists import Finalist, choose, measure_finalists
from amcsearch.pipeline.goals import goal_of, naming_the_target, propose, without_search_budget
from amcsearch.pipeline.job import Job, assemble
from amcsearch.pipeline.observer import Observer, Phases
from amcsearch.pipeline.rounds import earlier_rounds, shares_of_training, with_rounds
from amcsearch.pipeline.summary import describe_proposal, describe_search, summarise
from amcsearch.reporting.page import render
from amcsearch.runs import RunFolder

__all__ = ["prune", "search"]


def search(
    config: Config,
    run: RunFolder,
    observer: Observer,
    *,
    workers: int = 1,
    storage: str | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Do the main job and return what ``summary.json`` holds.

    What the run folder already stores is taken up again, so a killed run resumes.

    Raises:
        BadInputError: as the rooms it passes through.
        InfeasibleBudgetError: no policy meets the budget.
    """
    phases = Phases(observer, run.append_log)
    job = assemble(config, phases, strict=strict)
    with phases("search", f"Searching with {config.search.agent}"):
        study, baseline = run_agents(job, run, observer, workers, storage)
    with phases("finalists", "Measuring the best policies beside the dense network"):
        trials = study.front if config.search.objectives else study.trials
        limit_ms = job.device.feasible.budget.limits.get("latency_ms")
        finalists = measure_finalists(
            trials, config.search.finalists, config.budget.get("latency_ms"), limit_ms, measurer(job)
        )
    networks = _finetuned(job, phases, finalists)
    return _deliver(job, run, phases, finalists, networks, describe_search(study, baseline))


def prune(config: Config, run: RunFolder, observer: Observer) -> dict[str, Any]:
    """Do what ``config.prune`` says: apply a policy, reach a cost, or keep the accuracy; then deliver as a search does.

    Raises:
        BadInputError: as ``search``, no goal, a policy that does not fit the network, or too few epochs for the rounds.
        InfeasibleBudgetError: no policy meets the target.
    """
    phases = Phases(observer, run.append_log)
    goal = goal_of(config)
    shares_of_training(config)  # too few epochs are refused before anything is trained
    with naming_the_target(config):
        job = assemble(without_search_budget(config), phases)
    job, rounds = earlier_rounds(job, run, phases)
    with phases("goal", goal):
        found = propose(job, run, observer)
    with phases("finalists", "Evaluating and measuring the policy"):
        cost, evaluation = job.device.grid.cost(found.policy), job.evaluator.evaluate(found.policy)
        trial = Trial(0, found.agent, config.seed, TrialState.COMPLETE, found.policy, evaluation, cost, 0.0)
        if config.prune.keep_accuracy is None:  # which lists the trials of its own study
            run.write_trials([trial])
            run.write_pareto([trial])
        finalists = measure_finalists([trial], 1, job.config.budget.get("latency_ms"), None, measurer(job))
    networks = _finetuned(job, phases, finalists)
    found = with_rounds(found, rounds, job, networks)
    return _deliver(job, run, phases, finalists, networks, describe_proposal(found))


def _finetuned(job: Job, phases: Phases, finalists: list[Finalist]) -> tuple[nn.Module, nn.Module]:
    """The network of the chosen policy as pruned, and fine-tuned."""
    with phases("finetune", "Fine-tuning the chosen policy"):
        pruned = job.evaluator.pruned(choose(finalists).trial.policy)
        return pruned, finetune(job, pruned, phases.observer)


def _deliver(
    job: Job,
    run: RunFolder,
    phases: Phases,
    finalists: list[Finalist],
    networks: tuple[nn.Module, nn.Module],
    origin: dict[str, Any],
) -> dict[str, Any]:
    chosen = choose(finalists)
    with phases("verify", "Exporting, measuring and reading the test split"):
        outcome = verify(job, run, *networks, chosen)
    summary = summarise(job, origin, finalists, outcome, phases.seconds)
    run.write_policy(chosen.trial.policy)
    run.write_summary(summary)
    run.write_report(render(run))
    return summary
