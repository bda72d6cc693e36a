"""Durable trials: one Optuna study for each (name, agent, seed) in one database, which optuna-dashboard opens.

A finished trial is written once, in one transaction: there are no running trials that a killed run could leave behind
(Optuna's ask/tell has no heartbeat). States map to Optuna's: complete, probe to PRUNED (no value, so a policy over
budget is never shown as the best), failed to FAIL. Everything else of a trial is in its user attributes.
"""

import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from amcsearch.core import (
    ACCURACY,
    BadInputError,
    Cost,
    Evaluation,
    Metric,
    PruningPolicy,
    Trial,
    TrialState,
    check_file,
)
from amcsearch.runs import StoredDocument

__all__ = ["REWARD", "TrialStore", "direction", "objective", "storage_url"]

MOST_BYTES: Final = 2**34
"""Of a SQLite file: millions of trials."""
LOCK_TIMEOUT_S: Final = 5.0
"""How long a statement waits for another process that holds a SQLite file."""

REWARD: Final = ("reward",)
"""What a study without named objectives maximises."""

_OPTUNA_STATE: Final = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.PROBE: optuna.trial.TrialState.PRUNED,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
}


def direction(name: str, metric: Metric) -> Literal["minimize", "maximize"]:
    """``maximize`` for the reward and a metric that is better when higher, ``minimize`` for the rest: every cost."""
    return "maximize" if name in REWARD or (name == metric.name and metric.higher_is_better) else "minimize"


def objective(trial: Trial, name: str, metric: Metric) -> float:
    """Value of ``reward``, the metric or a cost of a trial, in its natural unit."""
    if name == "reward":
        return trial.reward
    return trial.evaluation.metric if name == metric.name else trial.cost[name]


_STUDY_TABLES: Final = frozenset(
    {"studies", "study_user_attributes", "trials", "trial_user_attributes", "version_info"}
)
"""Tables of every version of Optuna's storage."""


def storage_url(storage: Path | str) -> URL:
    """Return the address of a database; the name of a file may hold any character.

    Raises:
        BadInputError: a text that is no URL, or a file that this SQLAlchemy cannot address.
    """
    if not isinstance(storage, Path):
        try:
            return make_url(storage)
        except (ArgumentError, ValueError) as error:
            raise BadInputError(
                f"study storage {storage} cannot be used: it is no URL; name one such as sqlite:////tmp/study.db"
            ) from error
    url = URL.create("sqlite", database=str(storage.absolute()))
    if make_url(url.render_as_string()) != url:  # before SQLAlchemy 2.1
        raise BadInputError(f"study storage {storage} cannot be used: its name holds `?` or `%`; name another --out")
    return url


def _check_owner(url: URL) -> None:
    """Refuse what is no file, another program's SQLite file, and one that lost tables, before any is added."""
    file = url.database or ""
    if url.get_backend_name() != "sqlite" or file in ("", ":memory:") or file.startswith("file:"):
        return
    path = Path(file).absolute()
    if not path.exists():
        return
    check_file(path, "study storage", MOST_BYTES)
    if not path.stat().st_size:
        return
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT_S)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = sorted(tables & _STUDY_TABLES)
        has_rows = any(database.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in known)
    lost = sorted(_STUDY_TABLES - tables)
    if lost and has_rows:  # Optuna would make them anew, and the trials would be gone without a word
        raise BadInputError(
            f"study storage {path} is damaged: it lacks the tables {', '.join(lost)}; restore it, or name another "
            "--storage or --out"
        )
    tables = {name for name in tables if not name.startswith("sqlite_")}
    if tables and not tables >= _STUDY_TABLES and not tables <= _tables_of_optuna():
        raise BadInputError(
            f"study storage {path} is the database of another program (its tables: {', '.join(sorted(tables)[:5])}); "
            "name another --storage or --out"
        )


def _tables_of_optuna() -> set[str]:
    """The tables that a new storage has: a killed run may have made some of them."""
    storage = optuna.storages.RDBStorage("sqlite:///:memory:")
    return {*inspect(storage.engine).get_table_names(), "alembic_version"}


class TrialStore:
    """The trials of one (name, agent, seed) in a database.

    ``storage`` is the path of a SQLite file, or Optuna's URL of a database.

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
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = storage_url(storage)
        self._shown = str(storage) if isinstance(storage, Path) else url.render_as_string()  # without a password
        self._metrics, self._metric = list(objectives or REWARD), metric
        self._context = {"name": name, "fingerprint": fingerprint, "objectives": self._metrics}
        with self._readable_errors():
            _check_owner(url)
            connect = {"timeout": LOCK_TIMEOUT_S} if url.get_backend_name() == "sqlite" else {}
            text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
            self._storage = optuna.storages.RDBStorage(text, engine_kwargs={"connect_args": connect})
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=f"{name}/{agent}/{seed}",
                directions=[direction(name, metric) for name in self._metrics],
                load_if_exists=True,
            )
            self._check_context()

    def load(self) -> list[Trial]:
        """Return the stored trials in the order of their evaluation."""
        with self._readable_errors():
            return [_decode(stored, self._metric) for stored in self._study.get_trials(deepcopy=False)]

    def siblings(self) -> dict[PruningPolicy, Evaluation]:
        """Return what other agents and seeds measured under the same name and fingerprint."""
        shared = {"name": self._context["name"], "fingerprint": self._context["fingerprint"]}
        evaluations: dict[PruningPolicy, Evaluation] = {}
        with self._readable_errors():
            for study_name in optuna.get_all_study_names(self._storage):
                if study_name == self._study.study_name or not study_name.startswith(f"{shared['name']}/"):
                    continue
                study = optuna.load_study(study_name=study_name, storage=self._storage)
                if shared.items() <= study.user_attrs.get("context", {}).items():
                    trials = (_decode(stored, self._metric) for stored in study.get_trials(deepcopy=False))
                    evaluations.update((trial.policy, trial.evaluation) for trial in trials)
        return evaluations

    def append(self, trial: Trial, channels: Mapping[str, int], values: Sequence[float]) -> None:
        """Write one finished trial in one transaction; ``channels`` bounds each group's parameter."""
        distributions: dict[str, BaseDistribution] = {g: IntDistribution(0, n) for g, n in channels.items()}
        with self._readable_errors():
            self._study.add_trial(
                create_trial(
                    state=_OPTUNA_STATE[trial.state],
                    params=dict(trial.policy),
                    distributions=distributions,
                    values=list(values) if trial.state is TrialState.COMPLETE else None,
                    user_attrs=_encode(trial),
                )
            )

    def _check_context(self) -> None:
        stored = self._study.user_attrs.get("context")
        if stored is None:
            self._study.set_user_attr("context", self._context)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(self._metrics)
            return
        for key, value in self._context.items():
            if stored.get(key) != value:
                raise BadInputError(
                    f"study {self._study.study_name!r} in {self._shown} was started with {key} = {stored.get(key)!r} "
                    f"and cannot go on with {value!r}; restore the earlier settings, or use another --out or --storage"
                )

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except BadInputError:
            raise
        except Exception as error:  # a damaged database makes Optuna and its layers raise almost anything
            cause = error.__cause__ or error
            reason = str(getattr(cause, "orig", None) or cause) or type(cause).__name__
            raise BadInputError(
                f"study storage {self._shown} cannot be used: {reason.splitlines()[0]}; close other programs that hold "
                "it, free disk space, or name another --storage or --out (trials stored so far stay there)"
            ) from error


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
                *(float(read.metric), float(read.loss), float(read.seconds), read.change_low, read.change_high)
            ),
            cost=Cost(read.cost),
            reward=float(read.reward),
            judged_by=metric,
        )
        judged = (trial.reward, trial.evaluation.metric, trial.evaluation.loss)
        if trial.state is TrialState.COMPLETE and not all(map(math.isfinite, judged)):
            raise ValueError(f"it is complete, and its reward, metric and loss are {judged}")
    except (ValueError, OverflowError) as error:  # BadInputError among them
        raise BadInputError(
            f"trial {stored.number} in the study storage is damaged or was not written by amcsearch ({error}); "
            "name another --storage or --out"
        ) from error
    return trial
