"""Rows of a study in its database: finished trials, and claims on policies that some driver is evaluating.

Optuna writes a trial with two statements for each parameter and attribute, which takes 27 ms for 20 groups. The same
rows take one statement a table here, in one transaction, and Optuna reads them as its own.

Drivers that share a study claim a policy before they evaluate it. A claim is a row of a table of ours, and holds until
its lease ends by the clock of the database; its driver renews it while it lives. The trial is stored in the transaction
that settles the claim: a driver whose claim another one has taken over stores nothing.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final
from uuid import uuid4

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    StudyModel,
    TrialModel,
    TrialParamModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial
from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.dml import Insert

from amcsearch.core import PruningPolicy

__all__ = ["Claims", "add_trial", "can_be_shared"]

_SETTLED: Final = 1e300
"""The end of a lease that no clock reaches: the trial is stored."""
_CLOCKS: Final = {
    "postgresql": literal_column("extract(epoch from clock_timestamp())", Float),
    "sqlite": literal_column("(julianday('now') - 2440587.5) * 86400.0", Float),
}
_INSERTS: Final[dict[str, Callable[[Table], postgresql.Insert | sqlite.Insert]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
_CLAIMS: Final = Table(
    "amcsearch_claims",
    MetaData(),
    Column("study_id", Integer, primary_key=True),
    Column("policy", String(64), primary_key=True),  # SHA-256 of its JSON text
    Column("owner", String(32), nullable=False),
    Column("lease_end", Float(53), nullable=False),  # seconds since 1970
)


_LOCKED: Final = select(StudyModel.study_id).where(StudyModel.study_id == bindparam("study_id")).with_for_update()
_LAST_NUMBER: Final = (
    select(TrialModel.number)
    .where(TrialModel.study_id == bindparam("study_id"))
    .order_by(TrialModel.trial_id.desc())
    .limit(1)
)
# of tables, not of models: half the processor time of Optuna's sessions
_NEW_TRIAL, _NEW_VALUES, _NEW_PARAMETERS, _NEW_ATTRIBUTES = (
    insert(model.__table__) for model in (TrialModel, TrialValueModel, TrialParamModel, TrialUserAttributeModel)
)


def can_be_shared(engine: Engine) -> bool:
    """Whether several drivers can claim policies of a study in this database."""
    return engine.dialect.name in _CLOCKS and engine.url.database not in (None, "", ":memory:")


def add_trial(storage: RDBStorage, study_id: int, trial: FrozenTrial, claims: "Claims | None" = None) -> int | None:
    """Write a finished trial in one transaction and return its number.

    With ``claims``, None says that this driver's claim on ``policy``, a user attribute, was taken over or is settled.
    """
    with storage.engine.begin() as connection:
        if claims is not None:
            connection.execute(_LOCKED, {"study_id": study_id})  # the others number theirs after this one
            if not claims.settle(connection, trial.user_attrs["policy"]):
                return None
        before = connection.scalar(_LAST_NUMBER, {"study_id": study_id})
        number = 0 if before is None else int(before) + 1
        row = {
            "study_id": study_id,
            "number": number,
            "state": trial.state,
            "datetime_start": trial.datetime_start,
            "datetime_complete": trial.datetime_complete,
        }
        (trial_id,) = connection.execute(_NEW_TRIAL, row).inserted_primary_key  # type: ignore[misc]
        for statement, rows in _rows(trial).items():
            if rows:
                connection.execute(statement, [{"trial_id": trial_id, **values} for values in rows])
        return number


@cache
def _described(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)


def _rows(trial: FrozenTrial) -> dict[Insert, list[dict[str, Any]]]:
    values = [] if trial.state.name != "COMPLETE" else trial.values
    stored = [TrialValueModel.value_to_stored_repr(value) for value in values]
    return {
        _NEW_VALUES: [{"objective": i, "value": value, "value_type": kind} for i, (value, kind) in enumerate(stored)],
        _NEW_PARAMETERS: [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": _described(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
        _NEW_ATTRIBUTES: [{"key": key, "value_json": json.dumps(value)} for key, value in trial.user_attrs.items()],
    }


class Claims:
    """Claims of one driver on policies of one study; ``lease_s`` is how long one outlives its driver."""

    def __init__(self, engine: Engine, study_id: int, lease_s: float) -> None:
        self.owner = uuid4().hex
        self._engine, self._study_id, self._lease_s = engine, study_id, lease_s
        self._now = _CLOCKS[engine.dialect.name]
        self._done = threading.Event()
        self._renewer: threading.Thread | None = None
        _CLAIMS.create(engine, checkfirst=True)

    def take(self, policy: PruningPolicy) -> bool:
        """Claim a policy; false where another driver is evaluating it, or its trial is stored.

        This driver's own claim is renewed. A claim whose lease has ended is taken over.
        """
        row = {
            "study_id": self._study_id,
            "policy": _key(policy.to_json()),
            "owner": self.owner,
            "lease_end": self._now + self._lease_s,
        }
        columns = _CLAIMS.c
        statement = _INSERTS[self._engine.dialect.name](_CLAIMS).values(row)
        taken = statement.on_conflict_do_update(
            index_elements=[columns.study_id, columns.policy],
            set_={"owner": self.owner, "lease_end": self._now + self._lease_s},
            where=(columns.lease_end < self._now) | ((columns.owner == self.owner) & (columns.lease_end < _SETTLED)),
        )
        with self._engine.begin() as connection:
            is_mine = connection.execute(taken.returning(columns.policy)).first() is not None
        if is_mine and self._renewer is None:
            self._done.clear()
            self._renewer = threading.Thread(target=self._renew, name="amcsearch-claims", daemon=True)
            self._renewer.start()
        return is_mine

    def settle(self, connection: Connection, policy: str) -> bool:
        """Mark a policy as stored, in the transaction that stores it; false where it is not this driver's to store."""
        columns = _CLAIMS.c
        result = connection.execute(
            update(_CLAIMS)
            .where(columns.study_id == self._study_id, columns.policy == _key(policy))
            .where(columns.owner == self.owner, columns.lease_end < _SETTLED)
            .values(lease_end=_SETTLED)
        )
        return bool(result.rowcount)

    def release(self) -> None:
        """Give up what is claimed and not stored; others need not wait for the end of the lease."""
        renewer, self._renewer = self._renewer, None
        if renewer is None:
            return
        self._done.set()
        renewer.join()
        with suppress(SQLAlchemyError), self._engine.begin() as connection:  # else the lease ends by itself
            connection.execute(_CLAIMS.delete().where(*self._unsettled()))

    def _unsettled(self) -> tuple[Any, ...]:
        columns = _CLAIMS.c
        return columns.study_id == self._study_id, columns.owner == self.owner, columns.lease_end < _SETTLED

    def _renew(self) -> None:
        while not self._done.wait(self._lease_s / 3):
            with suppress(SQLAlchemyError), self._engine.begin() as connection:  # tried again in a third of the lease
                connection.execute(
                    update(_CLAIMS).where(*self._unsettled()).values(lease_end=self._now + self._lease_s)
                )


def _key(policy: str) -> str:
    return hashlib.sha256(policy.encode()).hexdigest()
