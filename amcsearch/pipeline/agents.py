"""The configured agent and its baseline, run through one door at equal evaluations."""

from pathlib import Path
from typing import Any

from amcsearch.config import Config, build, config_hash, pick
from amcsearch.core import PruningPolicy
from amcsearch.evaluation.executors import Executor, ProcessExecutor, SerialExecutor
from amcsearch.pipeline.job import Job
from amcsearch.pipeline.observer import Observer
from amcsearch.runs import RunFolder
from amcsearch.search import SEARCHERS
from amcsearch.search.reward import RewardContext, bind
from amcsearch.search.study import Study

__all__ = ["run_agents"]


def run_agents(
    job: Job, run: RunFolder, observer: Observer, workers: int, storage: str | None
) -> tuple[Study, Study | None]:
    """Run the agent, then the baseline; every trial is stored before the next begins.

    Raises:
        BadInputError: an unknown agent, reward or parameter, or storage that cannot be used.
    """
    executor: Executor = SerialExecutor(job.evaluator) if workers == 1 else ProcessExecutor(job.evaluator, workers)
    studies: list[Study] = []
    try:
        for agent, params in _agents(job.config):
            searcher = build(pick(SEARCHERS, agent, "search.agent"), params, "search.agent_params")
            study = _study(job, executor, agent, storage or run.storage_url, observer)
            studies.append(study)
            _start(job, study)
            searcher.run(study, job.config.seed)
    finally:
        executor.close()
        if studies:
            run.write_trials(trial for study in studies for trial in study.trials)
            run.write_pareto(studies[0].front)
    return studies[0], studies[1] if len(studies) > 1 else None


def _start(job: Job, study: Study) -> None:
    """Evaluate the configured policy first, within the budget."""
    if job.config.search.start is None:
        return
    network = job.network.trace.network
    asked = PruningPolicy.read(Path(job.config.search.start))
    policy = network.policy(study.feasible.repair(network.kept_array(asked)))
    if policy != asked:
        study.note(f"search.start was moved into the budget and onto the device's channel grid: {policy.to_json()}")
    study.evaluate([policy])


def _agents(config: Config) -> list[tuple[str, dict[str, Any]]]:
    agents: list[tuple[str, dict[str, Any]]] = [(config.search.agent, dict(config.search.agent_params))]
    if config.search.baseline is not None and config.search.baseline != config.search.agent:
        agents.append((config.search.baseline, {}))
    return agents


def _study(job: Job, executor: Executor, agent: str, storage: str, observer: Observer) -> Study:
    config, device = job.config, job.device
    context = RewardContext(device.dense, job.dense.accuracy, device.feasible.budget)
    return Study(
        job.network.trace.network,
        device.space,
        device.grid,
        device.feasible,
        executor,
        bind(config.search.reward.name, config.search.reward.params, context),
        agent=agent,
        seed=config.seed,
        trials=config.search.trials,
        storage=storage,
        name=config.name,
        progress=observer.trial,
        objectives=config.search.objectives,
        batch=config.search.batch,
        fingerprint=config_hash(config),
    )
