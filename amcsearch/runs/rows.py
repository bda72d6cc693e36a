"""Trials as rows: the columns of ``trials.csv`` and ``pareto.csv``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pandas as pd

from amcsearch.core import COST_NAMES, BadInputError, Trial

__all__ = ["TRIAL_COLUMNS", "read_trials", "trial_rows"]

TRIAL_COLUMNS: Final = (
    *("number", "agent", "seed", "state", "reward", "accuracy", "loss"),
    *COST_NAMES,
    *("seconds", "policy"),
)


def trial_rows(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row a trial with ``TRIAL_COLUMNS`` and a column for every further cost, after the four.

    A cost without a model is empty.
    """
    trials = list(trials)
    further = dict.fromkeys(name for trial in trials for name in trial.cost.further)
    after = TRIAL_COLUMNS.index(COST_NAMES[-1]) + 1
    columns = [*TRIAL_COLUMNS[:after], *further, *TRIAL_COLUMNS[after:]]
    return pd.DataFrame([{**_row(trial), **trial.cost.further} for trial in trials], columns=columns)


def read_trials(path: Path) -> pd.DataFrame:
    """Return the rows of ``trials.csv`` or ``pareto.csv``.

    Raises:
        BadInputError: the file cannot be read, or lacks columns.
    """
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' parser and encoding errors are ValueErrors
        raise BadInputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    missing = sorted(set(TRIAL_COLUMNS) - set(rows.columns))
    if missing:
        raise BadInputError(f"cannot read {path}: it lacks the columns {', '.join(missing)}")
    return rows


def _row(trial: Trial) -> dict[str, Any]:
    evaluation = trial.evaluation
    values = (
        *(trial.number, trial.agent, trial.seed, trial.state.value, trial.reward),
        *(evaluation.accuracy, evaluation.loss),
        *(trial.cost.get(name) for name in COST_NAMES),
        *(evaluation.seconds, trial.policy.to_json()),
    )
    return dict(zip(TRIAL_COLUMNS, values, strict=True))
