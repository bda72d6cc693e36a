"""Durable trials: one Optuna study for each (name, agent, seed) in one database, which optuna-dashboard opens.

A finished trial is written once, in one transaction: there are no running trials that a killed run could leave behind
(Optuna's ask/tell has no heartbeat). States map to Optuna's: complete, probe and stopped to PRUNED (no value, so they
are never shown as the best), failed to FAIL. Everything else of a trial is in its user attributes.

A database that is named by its address may be shared by several drivers of one study (``study_rows.Claims``). One on a
server that restarts is asked again for two minutes.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from amcsearch.core import (
    ACCURACY,
    OUT,
    RESUME,
    BadInputError,
    Cost,
    Evaluation,
    Metric,
    PruningPolicy,
    Trial,
    TrialState,
)
from amcsearch.runs import StoredDocument
from amcsearch.search.study_database import Server, check_owner, open_storage, opened_by_one, storage_url
from amcsearch.search.study_rows import Claims, add_trial, can_be_shared

if TYPE_CHECKING:
    from amcsearch.costs import CostGrid

__all__ = ["REWARD", "TrialStore", "direction", "named_objectives", "objective", "priced"]

LEASE_S: Final = 60.0
"""How long a claim on a policy outlives its driver, before another one takes it over."""
_EARLIER: Final = "earlier"  # attributes of a study in the database
_EVALUATES: Final = "evaluates"
REWARD: Final = ("reward",)
"""What a study without named objectives maximises."""

_OPTUNA_STATE: Final = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.STOPPED: optuna.trial.TrialState.PRUNED,
    TrialState.PROBE: optuna.trial.TrialState.PRUNED,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
}


def direction(name: str, metric: Metric) -> Literal["minimize", "maximize"]:
    """``maximize`` for the reward and a metric that is better when higher, ``minimize`` for the rest: every cost."""
    return "maximize" if name in REWARD or (name == metric.name and metric.higher_is_better) else "minimize"


def named_objectives(
    objectives: tuple[str, ...] | None, metric: Metric, costs: Sequence[str]
) -> tuple[str, ...] | None:
    """Return objectives with the metric by its name.

    Raises:
        BadInputError: one is neither the metric nor a cost.
    """
    if objectives is None:
        return None
    named = tuple(metric.name if name == "metric" else name for name in objectives)
    known = (metric.name, *costs)
    if not named or not set(named) <= set(known):
        raise BadInputError(f"search.objectives = {list(objectives)}: name one or more of {list(known)}")
    return named


def objective(trial: Trial, name: str, metric: Metric) -> float:
    """Value of ``reward``, the metric or a cost of a trial, in its natural unit."""
    if name == "reward":
        return trial.reward
    return trial.evaluation.metric if name == metric.name else trial.cost[name]


def priced(trials: list[Trial], grid: "CostGrid") -> list[Trial]:
    """Return stored trials, each of which must have every cost; those of an earlier release get those of memory.

    Raises:
        BadInputError: a trial lacks a cost.
    """
    complete = []
    for trial in trials:
        lacking = [name for name in grid.names if name not in trial.cost]
        if lacking and set(lacking) <= {"model_bytes", "peak_memory_bytes"}:
            complete.append(replace(trial, cost=Cost({**grid.cost(trial.policy), **trial.cost})))
            continue
        if lacking:
            raise BadInputError(
                f"trial {trial.number} in the study storage lacks the costs {lacking}; name another --storage or {OUT}"
            )
        complete.append(trial)
    return complete


class TrialStore:
    """The trials of one (name, agent, seed) in a database.

    ``storage`` is the path of a SQLite file, which this driver alone uses, or Optuna's URL of a database, which several
    drivers may share: each claims a policy for ``lease_s`` seconds, and renews that while it lives. Studies of one
    ``evaluates`` give the same evaluation of a policy, whatever else tells them apart; "" is that of none. ``warn`` is
    told that the database's server is away, which every method waits for.

    Raises:
        BadInputError: the database cannot be opened, is no study database, is another program's, is locked, or holds
            this study for other settings (``fingerprint`` or ``objectives`` differ).
    """

    def __init__(
        self,
        storage: Path | str,
        name: str,
        agent: str,
        seed: int,
        fingerprint: str,
        objectives: Sequence[str] | None,
        metric: Metric = ACCURACY,
        evaluates: str = "",
        lease_s: float = LEASE_S,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = storage_url(storage)
        self._server = Server(url, warn)
        self._shown = str(storage) if isinstance(storage, Path) else self._server.shown
        self._metrics, self._metric = list(objectives or REWARD), metric
        self._context = {"name": name, "fingerprint": fingerprint, "objectives": self._metrics}
        self._evaluates = evaluates
        self._claims: Claims | None = None
        self._told = 0
        is_file, study_name = isinstance(storage, Path), f"{name}/{agent}/{seed}"
        with self._readable_errors():
            check_owner(url)
            self._server.retried(lambda: self._open(study_name, lease_s, is_file=is_file), opens=True)

    def _open(self, study_name: str, lease_s: float, *, is_file: bool) -> None:
        """Open the database and the study, and make what lacks there."""
        url = self._server.url
        with nullcontext() if is_file else opened_by_one(url):
            self._storage = open_storage(url)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=study_name,
                directions=[direction(name, self._metric) for name in self._metrics],
                load_if_exists=True,
            )
            self._check_context()
            if not is_file and can_be_shared(self._storage.engine):
                self._claims = Claims(self._storage.engine, self._study._study_id, lease_s)

    @property
    def is_shared(self) -> bool:
        """Whether other drivers may evaluate policies of this study."""
        return self._claims is not None

    def load(self) -> list[Trial]:
        """Return the stored trials in the order in which they were stored."""
        with self._readable_errors():
            return [_decode(trial, self._metric) for trial in self._trials()]

    def news(self) -> list[Trial]:
        """Return the trials that were stored since it was last asked."""
        with self._readable_errors():
            stored = self._trials()[self._told :]
            self._told += len(stored)
            return [_decode(trial, self._metric) for trial in stored]

    def _trials(self) -> list[FrozenTrial]:
        return self._server.retried(lambda: self._study.get_trials(deepcopy=False))

    def claim(self, policy: PruningPolicy) -> bool:
        """Claim a policy of a shared study; false where another driver evaluates it, or its trial is stored."""
        claims = self._claims
        assert claims is not None
        with self._readable_errors():
            return self._server.retried(lambda: claims.take(policy))

    def release(self) -> None:
        """Give up claims on policies that were not evaluated."""
        if self._claims is not None:
            self._claims.release()

    def siblings(self) -> dict[PruningPolicy, Evaluation]:
        """Return what other agents and seeds measured under the same name and fingerprint."""
        with self._readable_errors():
            return self._server.retried(self._siblings)

    def _siblings(self) -> dict[PruningPolicy, Evaluation]:
        shared = {"name": self._context["name"], "fingerprint": self._context["fingerprint"]}
        evaluations: dict[PruningPolicy, Evaluation] = {}
        for study_name in optuna.get_all_study_names(self._storage):
            if study_name == self._study.study_name or not study_name.startswith(f"{shared['name']}/"):
                continue
            study = optuna.load_study(study_name=study_name, storage=self._storage)
            if shared.items() <= study.user_attrs.get("context", {}).items():
                trials = (_decode(stored, self._metric) for stored in study.get_trials(deepcopy=False))
                evaluations.update((trial.policy, trial.evaluation) for trial in trials if _is_whole(trial))
        return evaluations

    def earlier(self) -> dict[PruningPolicy, Evaluation]:
        """Return what studies of the same ``evaluates`` but another name or fingerprint had stored when this one began.

        What they store later is left out, so that a resumed search is told the same.
        """
        with self._readable_errors():
            return self._server.retried(self._earlier)

    def _earlier(self) -> dict[PruningPolicy, Evaluation]:
        evaluations: dict[PruningPolicy, Evaluation] = {}
        for study_name, count in self._study.user_attrs.get(_EARLIER, {}).items():
            study = optuna.load_study(study_name=study_name, storage=self._storage)
            for stored in study.get_trials(deepcopy=False)[:count]:
                trial = _decode(stored, self._metric)
                if _is_whole(trial):
                    evaluations.setdefault(trial.policy, trial.evaluation)
        return evaluations

    def _note_earlier(self) -> None:
        """Write down the studies of the same ``evaluates`` and how many trials each has now."""
        counts = {}
        for study_name in sorted(optuna.get_all_study_names(self._storage)) if self._evaluates else ():
            study = optuna.load_study(study_name=study_name, storage=self._storage)
            context = study.user_attrs.get("context", {})
            is_sibling = all(context.get(key) == self._context[key] for key in ("name", "fingerprint"))
            if study.user_attrs.get(_EVALUATES) == self._evaluates and not is_sibling:
                counts[study_name] = len(study.get_trials(deepcopy=False))
        self._study.set_user_attr(_EARLIER, counts)
        self._study.set_user_attr(_EVALUATES, self._evaluates)

    def append(self, trial: Trial, channels: Mapping[str, int], values: Sequence[float]) -> bool:
        """Write one finished trial in one transaction; ``channels`` bounds each group's parameter.

        False in a shared study where the trial is already stored, or another driver has taken over the policy.
        """
        distributions: dict[str, BaseDistribution] = {g: IntDistribution(0, n) for g, n in channels.items()}
        finished = create_trial(
            state=_OPTUNA_STATE[trial.state],
            params=dict(trial.policy),
            distributions=distributions,
            values=list(values) if trial.state is TrialState.COMPLETE else None,
            user_attrs=_encode(trial),
        )
        study = self._study._study_id
        with self._readable_errors():
            return self._server.retried(lambda: add_trial(self._storage, study, finished, self._claims)) is not None

    def _check_context(self) -> None:
        stored = self._study.user_attrs.get("context")
        if stored is None:
            self._note_earlier()
            self._study.set_user_attr("context", self._context)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(self._metrics)
            return
        for key, value in self._context.items():
            if stored.get(key) != value:
                raise BadInputError(
                    f"study {self._study.study_name!r} in {self._shown} was started with {key} = {stored.get(key)!r} "
                    f"and cannot go on with {value!r}; restore the earlier settings, or use another {OUT} or --storage"
                )

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except BadInputError:
            raise
        except ModuleNotFoundError as error:
            raise BadInputError(
                f"study storage {self._shown} cannot be used: {error.name} is not installed; type: pip install "
                "'amcsearch[cluster]'"
            ) from error
        except Exception as error:  # a damaged database makes Optuna and its layers raise almost anything
            cure = f"close other programs that hold it, free disk space, or name another --storage or {OUT}"
            if self._server.is_away(error):
                cure = f"start its server and run the same command with {RESUME}, or name another --storage"
            raise BadInputError(
                f"study storage {self._shown} cannot be used: {self._server.reason(error)}; {cure} (trials stored so "
                "far stay there)"
            ) from error


def _is_whole(trial: Trial) -> bool:
    """Whether another study may take its evaluation: what a policy had to beat there is not what it has to here."""
    return trial.state is not TrialState.STOPPED


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are stored as text, which ``float`` reads back."""
    return value if math.isfinite(value) else repr(value)


def _encode(trial: Trial) -> dict[str, Any]:
    return {
        "policy": trial.policy.to_json(),
        "agent": trial.agent,
        "seed": trial.seed,
        "state": trial.state.value,
        "reward": _number(trial.reward),
        "metric": _number(trial.evaluation.metric),
        "loss": _number(trial.evaluation.loss),
        "seconds": _number(trial.evaluation.seconds),
        "cost": dict(trial.cost),
        "change_low": trial.evaluation.change_low,
        "change_high": trial.evaluation.change_high,
        "stopped_after": trial.evaluation.stopped_after,
        "metric_bound": trial.evaluation.metric_bound,
    }


@dataclass(frozen=True)
class _StoredTrial(StoredDocument):
    """The user attributes of a trial."""

    policy: str
    agent: str
    seed: int
    state: str
    reward: float | str
    metric: float | str
    loss: float | str
    seconds: float | str
    cost: Mapping[str, float]
    change_low: float | None = None
    change_high: float | None = None
    stopped_after: int | None = None
    metric_bound: float | None = None


def _decode(stored: FrozenTrial, metric: Metric) -> Trial:
    try:
        attributes = stored.user_attrs
        if "metric" not in attributes and "accuracy" in attributes:  # of version 0.1.0
            attributes = {**attributes, "metric": attributes["accuracy"]}
        read = _StoredTrial.from_json(attributes, "it")
        trial = Trial(
            number=stored.number,
            agent=read.agent,
            seed=read.seed,
            state=TrialState(read.state),
            policy=PruningPolicy.from_json(read.policy),
            evaluation=Evaluation(
                *(float(read.metric), float(read.loss), float(read.seconds), read.change_low, read.change_high),
                *(read.stopped_after, read.metric_bound),
            ),
            cost=Cost(read.cost),
            reward=float(read.reward),
            judged_by=metric,
        )
        judged = (trial.reward, trial.evaluation.metric, trial.evaluation.loss)
        if trial.is_informative and not all(map(math.isfinite, judged)):
            raise ValueError(f"it is {trial.state}, and its reward, metric and loss are {judged}")
    except (ValueError, OverflowError) as error:  # BadInputError among them
        raise BadInputError(
            f"trial {stored.number} in the study storage is damaged or was not written by amcsearch ({error}); "
            f"name another --storage or {OUT}"
        ) from error
    return trial
