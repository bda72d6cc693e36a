"""Agents compared on one network, device and budget: equal evaluations and equal seconds, over several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, get_type_hints

import numpy as np

from amcsearch.config import Config, check_list, check_once, check_seeds, label
from amcsearch.core import RESUME, BadInputError, parse_json, read_text
from amcsearch.evaluation import Engine
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.search import (
    check_fits,
    made_agent,
    make_reward,
    new_study,
    run_agent,
    search_evaluator,
    warn_of_idle_workers,
)
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import CONFIGURED, InMemory
from amcsearch.reporting import comparison_picture
from amcsearch.runs import Document, MetricRecord, RunFolder, expanded, read_as
from amcsearch.search import (
    Agent,
    AgentRun,
    Mean,
    equal_seconds,
    hypervolumes,
    mean_over_seeds,
    paired_difference,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CURVE_COLUMNS", "RUN_COLUMNS", "AgentComparison", "Comparison", "compare"]

_PLAIN: Final = ("uniform", "random")  # what others are held to: they begin without the exact programme's policies
RUN_COLUMNS: Final = (
    *("agent", "seed", "evaluations", "best_reward", "metric", "seconds", "reward_at_equal_seconds", "hypervolume"),
    *("evaluations_to_reference", "policy"),
)
CURVE_COLUMNS: Final = ("agent", "seed", "evaluation", "seconds", "best_reward")


@dataclass(frozen=True)
class AgentComparison(Document):
    """One agent over all seeds; a ``Mean`` has the half width of its 95 % interval.

    ``best_reward`` is that of all evaluations, ``metric`` that of the same trial, ``reward_at_equal_seconds`` the best
    within ``Comparison.seconds``. ``difference`` is ``best_reward`` less the reference's, seed by seed; None for the
    reference itself. Of the seeds, ``reached_reference`` found the reference's final best reward, after
    ``evaluations_to_reference`` evaluations in the mean, None where none did.
    """

    agent: str
    evaluations: float
    best_reward: Mean
    metric: Mean
    seconds: Mean
    reward_at_equal_seconds: Mean
    hypervolume: Mean
    difference: Mean | None
    reached_reference: int
    evaluations_to_reference: float | None


@dataclass(frozen=True, eq=False)
class Comparison(Document):
    """Agents side by side; the first is the reference.

    ``selection`` says what chose channels for all of them, and why where nobody chose it. ``seconds`` are the equal
    ones, of evaluations and of the agent itself: those of the fastest agent.
    ``objectives`` are those of the hypervolume. ``files`` are the paths written, by what they are. ``runs`` has one row
    a search with ``RUN_COLUMNS``, ``curves`` one an evaluation with ``CURVE_COLUMNS``.
    """

    agents: tuple[AgentComparison, ...]
    seeds: tuple[int, ...]
    trials: int
    metric: MetricRecord
    selection: str
    seconds: float
    objectives: tuple[str, ...]
    files: Mapping[str, str]
    runs: "pd.DataFrame"
    curves: "pd.DataFrame"

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read what ``compare`` left in a folder.

        Raises:
            BadInputError: no comparison there, or a damaged one.
        """
        import pandas as pd  # for the hints of this class

        run = RunFolder(expanded(folder))
        if not run.comparison_json.exists():
            raise BadInputError(
                f"{run.path} holds no comparison; make one with amcsearch compare CONFIG --agents … -o {run.path}"
            )
        try:
            text, name = read_text(run.comparison_json), run.comparison_json.name
            values = read_as(Mapping[str, object], parse_json(text, name), name)
            runs, curves = _rows(run.comparison_csv, RUN_COLUMNS), _rows(run.curves_csv, CURVE_COLUMNS)
            rows: dict[str, Any] = {"agents": _agents_of(runs), "files": _files(run), "runs": runs, "curves": curves}
            kinds = {key: kind for key, kind in get_type_hints(cls, localns={"pd": pd}).items() if key not in rows}
            return cls(**rows, **{key: read_as(kind, values.get(key), f"{name}: {key}") for key, kind in kinds.items()})
        except (ValueError, OSError) as error:  # BadInputError among them
            raise BadInputError(f"{run.path} is damaged ({error}); compare again with {RESUME}") from error

    def to_json(self) -> dict[str, Any]:
        """Return all but the rows, which are in the files."""
        values = super().to_json()
        return {key: value for key, value in values.items() if key not in ("runs", "curves")}


def compare(
    config: Config,
    run: RunFolder,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    agents: Sequence[str | Agent],
    seeds: Sequence[int],
    workers: int = 1,
    scheduler: str | None = None,
    strict: bool = False,
) -> Comparison:
    """Run every agent under every seed on one network, ranked once, and put them side by side.

    Each has ``search.trials`` evaluations. A policy is evaluated once; its seconds count for every agent that asks for
    it. What the run folder stores is taken up again, and further agents and seeds join it. Writes ``comparison.csv``,
    ``curves.csv``, ``comparison.svg``, ``comparison.json`` and ``trials.csv``.

    Raises:
        BadInputError: no agent, or one twice; no seed, or one twice; a seed that is negative; or as ``search``.
        InfeasibleBudgetError: no policy meets the budget.
    """
    made = _agents(config, agents)
    check_seeds(seeds)
    make_reward(config, given)
    phases = Phases(observer, run.append_log)
    engine = Engine(workers, scheduler)
    engine.prepare()
    check = partial(check_fits, config, engine=engine)
    job = assemble(config, config.limits, phases, given, run=run, check=check, strict=strict)
    evaluator, stops = search_evaluator(job, observer)
    executor = engine.executor(evaluator, observer.warn)
    searches: list[AgentRun] = []
    try:
        warn_of_idle_workers(config, executor, made, observer, stops=stops)
        for seed in seeds:
            for name, agent in made.items():
                with phases(f"{name}, seed {seed}", f"Searching with {name}, seed {seed}"):
                    study = new_study(job, executor, name, seed, run.study_db, observer, stops=stops)
                    run_agent(job, study, agent, observer, is_baseline=name in _PLAIN)
                    searches.append(AgentRun.of(study))
    finally:
        executor.close()
        if searches:
            run.write_trials(trial for search in searches for trial in search.trials)
    return _written(_compared(job, searches, seeds), run)


def _agents(config: Config, agents: Sequence[str | Agent]) -> dict[str, Agent]:
    """Make the agents, each with the name that its trials carry; ``search.agent_params`` are for ``search.agent``."""
    check_list("agents", agents, "['ddpg', 'random']")
    names = [label(each) if isinstance(each, str) else type(each).__name__ for each in agents]
    check_once("agents", names)
    named: dict[str, Agent] = {}
    for name, each in zip(names, agents, strict=True):
        params = config.search.agent_params if each == config.search.agent else {}
        named[name] = made_agent(config, each, params, ("agents", "search.agent_params"))
    if not named:
        raise BadInputError("agents: none is named, expected one or more, such as dynamic_programming and random")
    return named


def _compared(job: Job, searches: Sequence[AgentRun], seeds: Sequence[int]) -> Comparison:
    import pandas as pd  # a third of a second that most processes need not wait

    metric, limits = job.workload.task.metric, job.device.feasible.budget.limits
    names = job.config.search.objectives or ("metric", *limits)
    objectives = tuple(metric.name if name == "metric" else name for name in names)
    seconds, reference = equal_seconds(searches), searches[0].agent
    goals = {search.seed: float(search.best[-1]) for search in searches if search.agent == reference}
    rows = [
        _row(search, seconds, volume, goals[search.seed])
        for search, volume in zip(searches, hypervolumes(searches, objectives), strict=True)
    ]
    runs = pd.DataFrame(rows, columns=list(RUN_COLUMNS))
    trials = job.config.search.evaluations
    judged = MetricRecord.of(metric)
    curves = _curves(searches)
    return Comparison(
        _agents_of(runs), tuple(seeds), trials, judged, job.selection, seconds, objectives, {}, runs, curves
    )


def _row(search: AgentRun, seconds: float, hypervolume: float, goal: float) -> tuple[object, ...]:
    best = search.best_trial
    return (
        search.agent,
        search.seed,
        len(search.trials),
        float(search.best[-1]),
        np.nan if best is None else best.evaluation.metric,
        float(search.seconds[-1]),
        search.best_after(seconds),
        hypervolume,
        search.evaluations_to(goal),
        "" if best is None else best.policy.to_json(),
    )


def _agents_of(runs: "pd.DataFrame") -> tuple[AgentComparison, ...]:
    """Every agent over its seeds; the first is the reference."""
    groups = [(str(name), group) for name, group in runs.groupby("agent", sort=False)]
    goals = _best(groups[0][1])
    return tuple(_agent(name, group, goals if number else None) for number, (name, group) in enumerate(groups))


def _best(rows: "pd.DataFrame") -> dict[int, float]:
    """The best reward by seed."""
    return {int(seed): float(reward) for seed, reward in zip(rows["seed"], rows["best_reward"], strict=True)}


def _agent(name: str, rows: "pd.DataFrame", goals: Mapping[int, float] | None) -> AgentComparison:
    best = _best(rows)
    reached = rows["evaluations_to_reference"].dropna()
    return AgentComparison(
        agent=name,
        evaluations=float(rows["evaluations"].mean()),
        best_reward=mean_over_seeds(list(best.values())),
        metric=mean_over_seeds(rows["metric"].tolist()),
        seconds=mean_over_seeds(rows["seconds"].tolist()),
        reward_at_equal_seconds=mean_over_seeds(rows["reward_at_equal_seconds"].tolist()),
        hypervolume=mean_over_seeds(rows["hypervolume"].tolist()),
        difference=None if goals is None else paired_difference(best, goals),
        reached_reference=len(reached),
        evaluations_to_reference=float(reached.mean()) if len(reached) else None,
    )


def _curves(searches: Sequence[AgentRun]) -> "pd.DataFrame":
    import pandas as pd  # a third of a second that most processes need not wait

    parts = [
        pd.DataFrame(
            {
                "agent": search.agent,
                "seed": search.seed,
                "evaluation": np.arange(1, len(search.trials) + 1),
                "seconds": search.seconds,
                "best_reward": search.best,
            },
            columns=list(CURVE_COLUMNS),
        )
        for search in searches
    ]
    return pd.concat(parts, ignore_index=True)


def _files(run: RunFolder) -> dict[str, str]:
    files = {
        "runs": run.comparison_csv,
        "curves": run.curves_csv,
        "picture": run.comparison_svg,
        "comparison": run.comparison_json,
        "trials": run.trials_csv,
    }
    return {name: str(path) for name, path in files.items()}


def _rows(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Rows of a file that ``compare`` wrote; an empty policy stays an empty text."""
    import pandas as pd  # a third of a second that most processes need not wait

    text = dict.fromkeys({"agent", "policy"} & set(columns), str)
    rows = pd.read_csv(path, converters=text, float_precision="round_trip")
    if list(rows.columns) != list(columns) or rows.empty:
        content = f"{len(rows)} rows and the columns {list(rows.columns)!r:.100}"
        raise BadInputError(f"{path.name} has {content}, expected rows of {', '.join(columns)}")
    return rows


def _written(comparison: Comparison, run: RunFolder) -> Comparison:
    """Write the files of a comparison and return it with their paths."""
    comparison = replace(comparison, files=_files(run))
    for path, rows in ((run.comparison_csv, comparison.runs), (run.curves_csv, comparison.curves)):
        with run.replacing(path) as temporary:
            rows.to_csv(temporary, index=False)
    run.write_text(run.comparison_svg, comparison_picture(comparison.curves))
    run.write_json(run.comparison_json, comparison)
    return comparison
