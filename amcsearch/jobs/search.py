"""The main job: search a pruning policy within the budget, and deliver the smaller network.

workload → device → ranking → search → finalists → fine-tuning → verification → report. The configured agent and its
baseline go through one door, at equal evaluations.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np

from amcsearch.config import EXACT, Config, check_contract, check_priced, label, make, pick
from amcsearch.core import BadInputError, Cost, Evaluation, PruningPolicy, Trial, TrialState, counted, settings_kept
from amcsearch.evaluation import Engine, Evaluator, Executor, pickled
from amcsearch.jobs.delivery import Exports, measure_finalists
from amcsearch.jobs.device import Device
from amcsearch.jobs.finalist_training import train_finalists
from amcsearch.jobs.measuring import is_awaited
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.result import SearchResult, deliver
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.summary import Origin, describe_search
from amcsearch.jobs.task import check_objectives
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload
from amcsearch.runs import RunFolder
from amcsearch.search import (
    AGENTS,
    REWARDS,
    Agent,
    LayerwiseEnv,
    OptunaAgent,
    Reward,
    RewardContext,
    Study,
    bind,
    removal_errors,
    starting_policies,
    storage_url,
    unseen,
    with_parameters,
)
from amcsearch.training import StateFile

__all__ = [
    "check_fits",
    "made_agent",
    "make_agents",
    "make_env",
    "make_reward",
    "met_by_dense",
    "new_study",
    "run_agent",
    "search",
    "search_evaluator",
    "warn_of_idle_workers",
]

ALONE: Final = Engine()


def check_fits(config: Config, workload: Workload, device: Device, engine: Engine = ALONE) -> None:
    """Refuse objectives or a policy to start from that do not fit, and rewards and workers that cannot do their part.

    Raises:
        BadInputError: as ``check_objectives``, ``PruningPolicy.read``, ``NetworkSpec.kept_array``, ``bind`` and
            ``pickled``.
    """
    check_objectives(config, workload.task)
    if config.search.start not in (None, EXACT):
        workload.trace.network.kept_array(PruningPolicy.read(Path(config.search.start)))
    bind(make_reward(config), {}, RewardContext(device.dense, 1.0, device.feasible.budget, workload.task.metric))
    if engine.workers > 1:
        pickled(workload.model)


def met_by_dense(config: Config, device: Device) -> tuple[str, ...]:
    """Say that the dense network is within every limit, where a search has no other objective."""
    is_priced = 0 < len(device.limits) == len(config.limits)  # a plan may lack the table of one
    if config.search.objectives is not None or not is_priced or any(each.value < each.dense for each in device.limits):
        return ()
    asked = " and ".join(f"{limit.asked.key} = {limit.asked.written}" for limit in device.limits)
    return (f"{asked}: the dense network meets that already, and nothing has to be pruned; ask for less, such as 0.5x",)


def _begin(config: Config, engine: Engine, observer: Observer, workload: Workload, device: Device) -> None:
    """Do ``check_fits``, and say what a search need not be asked for."""
    check_fits(config, workload, device, engine)
    for text in met_by_dense(config, device):
        observer.warn(text)


def fills_workers(agent: Agent, *, stops: bool) -> bool:
    """Whether an agent keeps all workers busy whatever ``search.batch`` is (``Study.ahead``)."""
    return getattr(agent, "fills_workers", False) and not stops


def warn_of_idle_workers(
    config: Config, executor: Executor, agents: Mapping[str, Agent], observer: Observer, *, stops: bool
) -> None:
    """Say which agents, by name, propose fewer policies at a time than the executor evaluates."""
    capacity, batch = executor.capacity, config.search.batch
    learning = [name for name, agent in agents.items() if not fills_workers(agent, stops=stops)]
    if capacity > batch and learning:
        observer.warn(
            f"{capacity - batch} of {capacity} workers stay idle in the search of {', '.join(learning)}: search.batch "
            f"= {batch} is how many policies an agent keeps under way, which decides what it finds; raise it, for "
            f"example to {2 * capacity}"
        )


def search_evaluator(job: Job, observer: Observer) -> tuple[Evaluator, bool]:
    """Return what evaluates the policies of a search, and whether it may stop early; says so where it cannot."""
    confidence = job.config.search.stop_confidence
    if confidence is None:
        return job.evaluator, False
    try:
        if job.config.search.objectives is not None:
            raise BadInputError("search.objectives name several, and no policy has to beat one alone")
        if job.config.search.reward.name not in REWARDS:
            raise BadInputError("a reward of your own need not rise with the metric alone")
        return job.evaluator.stopping(confidence), True
    except BadInputError as error:
        observer.warn(f"search.stop_confidence = {confidence:g} is ignored, every evaluation goes to its end: {error}")
        return job.evaluator, False


def _run_agents(
    job: Job, run: RunFolder, observer: Observer, engine: Engine, storage: str | None
) -> tuple[Sequence[Trial], Origin]:
    """Run the agent, then the baseline; every trial is stored before the next begins.

    Returns:
        The trials that finalists are chosen from, and how they came about: those of the agent, or of the baseline
        where no policy of the agent has a finite loss. Nothing here holds a study or what evaluates any longer: a
        training that follows needs their memory.

    Raises:
        BadInputError: an unknown agent, reward or parameter, an agent that evaluates nothing, or storage that cannot
            be used.
    """
    evaluator, stops = search_evaluator(job, observer)
    executor = engine.executor(evaluator, observer.warn)
    studies: list[Study] = []
    try:
        agents = make_agents(job.config, job.given)
        warn_of_idle_workers(job.config, executor, dict(agents), observer, stops=stops)
        for i, (name, agent) in enumerate(agents):
            study = new_study(job, executor, name, job.config.seed, storage or run.study_db, observer, stops=stops)
            studies.append(study)
            run_agent(job, study, agent, observer, is_baseline=i > 0)
    finally:
        executor.close()
        if studies:
            run.write_trials(trial for study in studies for trial in study.trials)
            run.write_pareto(_delivering(studies)[0].front)
    study, *others = _delivering(studies)
    if study is not studies[0]:
        found_none = counted(len(studies[0].trials), "evaluation")
        study.note(
            f"{studies[0].agent} found no policy with a finite loss in {found_none}: the best policy of the baseline, "
            f"{study.agent}, is delivered; the network gives NaN or infinity for many policies, so guard the operation "
            "that does, raise the budget, or take another search.agent"
        )
        observer.warn(study.notes[-1])
    trials = study.front if job.config.search.objectives else study.trials
    return trials, describe_search(study, next(iter(others), None))


def _delivering(studies: Sequence[Study]) -> Sequence[Study]:
    """The studies of the agent and its baseline, the baseline first where it alone has a policy to deliver."""
    has_any = [any(trial.state is TrialState.COMPLETE for trial in study.trials) for study in studies]
    return studies[::-1] if has_any == [False, True] else studies


def run_agent(job: Job, study: Study, agent: Agent, observer: Observer, *, is_baseline: bool = False) -> None:
    """Let an agent spend a study's evaluations, after the policies to start from; say how many it leaves.

    A baseline does without those of ``search.start: exact``, for it shows what a search is worth. For each of
    ``search.further_trials`` the agent runs again, with a seed of its own, and goes on from the trials before.

    Raises:
        BadInputError: it evaluated nothing, or as ``Agent.run``.
    """
    name = study.agent
    _start(job, study, is_baseline=is_baseline)
    begun = len(study.trials)
    with settings_kept(name):
        agent.run(study, study.seed)
        for number, trials in enumerate(job.config.search.further_trials, 1):
            study.extend(trials)
            agent.run(study, int(np.random.SeedSequence([study.seed, number]).generate_state(1)[0] // 2))
    is_idle = len(study.trials) == begun and study.remaining > 0
    if not study.trials or (is_idle and _has_new(study)):
        raise BadInputError(
            f"search.agent = {name!r} evaluated no policy; call study.evaluate in its run until study.remaining is 0"
        )
    if study.remaining:
        keys = "search.trials" + " and search.further_trials" * bool(job.config.search.further_trials)
        why = "expected nothing better" if _has_new(study) else "had no new policy left"
        study.note(
            f"{name} ended after {counted(len(study.trials), 'evaluation')}, {study.remaining} fewer than {keys}: it "
            f"{why} (the space has {study.space.size}, not all within the budget)"
        )
        observer.warn(study.notes[-1])


def _has_new(study: Study) -> bool:
    """Whether a policy within the budget is left that the study has not evaluated."""
    return unseen(study, study.feasible.largest_uniform(), np.random.default_rng(study.seed)) is not None


def _start(job: Job, study: Study, *, is_baseline: bool) -> None:
    """Evaluate first the exact programme's policies, which a baseline does without, or the configured policy.

    That one is rounded to the channel grid and brought within the budget.
    """
    if job.config.search.start == EXACT and not is_baseline:
        study.evaluate(starting_policies(study))
    if job.config.search.start in (None, EXACT):
        return
    network = job.workload.trace.network
    start = PruningPolicy.read(Path(job.config.search.start))
    policy = network.policy(study.feasible.repair(study.space.nearest_counts(network.kept_array(start))))
    if policy != start:
        study.note(f"search.start was moved into the budget and onto the device's channel grid: {policy.to_json()}")
    study.evaluate([policy])


def make_agents(config: Config, given: InMemory) -> list[tuple[str, Agent]]:
    """Make the agent, unless it is in memory, and its baseline, each with the name that its trials carry.

    Raises:
        BadInputError: as ``config.make``, or several objectives for an agent of one.
    """
    section = config.search
    keys = ("search.agent", "search.agent_params") if given.agent is None else ("agent", "agent")
    agents = [(label(section.agent), made_agent(config, given.agent or section.agent, section.agent_params, keys))]
    if section.baseline is not None and section.baseline != section.agent:
        baseline = made_agent(config, section.baseline, {}, ("search.baseline", "search.baseline"))
        agents.append((label(section.baseline), baseline))
    return agents


def made_agent(config: Config, given: str | Agent, params: Mapping[str, object], keys: tuple[str, str]) -> Agent:
    """Make an agent by its name, or take one that is in memory; ``keys`` name it and its parameters in errors.

    Raises:
        BadInputError: as ``config.make`` and ``check_contract``, or several objectives for an agent of one.
    """
    if not isinstance(given, str):
        check_contract(given, Agent, keys[0])
    agent = make(AGENTS, given, params, keys, Agent) if isinstance(given, str) else given
    if isinstance(agent, OptunaAgent):
        agent.check_objectives(config.search.objectives or ())
    return agent


def make_reward(config: Config, given: InMemory | None = None) -> Reward:
    """Make the configured reward: a function with its parameters, or an object of a class of the user's own.

    Raises:
        BadInputError: as ``config.make`` and ``with_parameters``, and with ``given`` as ``check_priced``.
    """
    if given is not None:
        has_table, has_profile = given.table is not None, given.profile is not None
        check_priced(config, config.limits, table=has_table, profile=has_profile, reward=True)
    section = config.search.reward
    if section.name in REWARDS:
        return with_parameters(section.name, section.params)
    key = "search.reward.name"
    function, params = pick(REWARDS, section.name, key), section.params
    if inspect.isclass(function):
        registry: Mapping[str, Callable[..., Reward]] = {}
        function, params = make(registry, section.name, params, (key, "search.reward.params"), Reward), {}
    try:
        return with_parameters(function, params)
    except BadInputError as error:
        raise BadInputError(f"{key} = {section.name!r}: {error}") from error


def _bound_reward(job: Job) -> Callable[[Evaluation, Cost], float]:
    """Return the configured reward of an evaluation and a cost, beside the job's dense network and budget."""
    context = RewardContext(job.device.dense, job.dense.metric, job.device.feasible.budget, job.workload.task.metric)
    return bind(make_reward(job.config), {}, context)


def make_env(config: Config, observer: Observer, given: InMemory = CONFIGURED, *, strict: bool = False) -> LayerwiseEnv:
    """Return the search as an environment; a policy is evaluated once, and a broken one has the worst metric.

    Raises:
        BadInputError, InfeasibleBudgetError: as ``search``.
    """
    make_reward(config, given)
    phases = Phases(observer, lambda _: None)
    job = assemble(config, config.limits, phases, given, check=partial(check_fits, config), strict=strict)
    reward, worst = _bound_reward(job), job.workload.task.metric.worst

    @cache
    def episode_reward(policy: PruningPolicy) -> float:
        evaluation = job.evaluator.evaluate(policy)
        is_broken = not math.isfinite(evaluation.loss + evaluation.metric)
        evaluation = replace(evaluation, metric=worst) if is_broken else evaluation
        return reward(evaluation, job.device.grid.cost(policy))

    return LayerwiseEnv(job.workload.trace.network, job.device.feasible, episode_reward)


def new_study(
    job: Job,
    executor: Executor,
    agent: str,
    seed: int,
    storage: Path | str,
    observer: Observer,
    *,
    stops: bool = False,
) -> Study:
    """Return the study of an agent under a seed, with the configured reward; ``stops`` as of ``Study``.

    Raises:
        BadInputError: as ``Study``.
    """
    config, device = job.config, job.device
    return Study(
        job.workload.trace.network,
        device.space,
        device.grid,
        device.feasible,
        executor,
        _bound_reward(job),
        agent=agent,
        seed=seed,
        trials=config.search.trials,
        storage=storage,
        name=config.name,
        progress=observer.trial,
        objectives=config.search.objectives,
        batch=config.search.batch,
        fingerprint=job.fingerprint,
        evaluates=job.evaluates,
        metric=job.workload.task.metric,
        errors=None if job.errors is None else removal_errors(device.space, job.errors),
        stops=stops,
        warn=observer.warn,
    )


def search(
    config: Config,
    run: RunFolder,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    storage: str | None = None,
    strict: bool = False,
) -> SearchResult:
    """Do the main job.

    What the run folder already stores is taken up again, so a killed run resumes. ``workers`` and ``scheduler`` are
    those of ``Engine``.

    Raises:
        BadInputError: as the rooms it passes through.
        InfeasibleBudgetError: no policy meets the budget.
    """
    phases = Phases(observer, run.append_log)
    make_agents(config, given), make_reward(config, given)  # what cannot be made is refused before anything is trained
    if storage is not None:
        storage_url(storage)
    engine = Engine(workers, scheduler)
    engine.prepare()
    check = partial(_begin, config, engine, observer)
    job = assemble(config, config.limits, phases, given, run=run, check=check, strict=strict)
    with phases("search", f"Searching with {label(config.search.agent)}"):
        trials, described = _run_agents(job, run, observer, engine, storage)
    exports = Exports(job)
    step = "Choosing the best policies by prediction" if is_awaited(config) else "Measuring the best policies"
    with phases("finalists", f"{step}, beside the dense network"):
        limit_ms = job.device.feasible.budget.limits.get("latency_ms")
        finalists = measure_finalists(
            trials, config.search.finalists, job.device.limit("latency_ms"), limit_ms, exports.measure
        )
        job = exports.cut(finalist.trial.policy for finalist in finalists)
        file = StateFile(run.finalists_state)
        finalists = train_finalists(job, finalists, exports, _bound_reward(job), observer, file)
    return deliver(job, run, phases, finalists, exports, described)
