"""Trials as rows: the columns of ``trials.csv`` and ``pareto.csv``."""

from collections.abc import Iterable
from typing import Any, Final

import pandas as pd

from amcsearch.core import COST_NAMES, Trial

__all__ = ["TRIAL_COLUMNS", "trial_rows"]

TRIAL_COLUMNS: Final = (
    *("number", "agent", "seed", "state", "reward", "accuracy", "loss"),
    *COST_NAMES,
    *("seconds", "policy"),
)


def trial_rows(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row a trial with ``TRIAL_COLUMNS``; a cost without a model is empty."""
    return pd.DataFrame([_row(trial) for trial in trials], columns=list(TRIAL_COLUMNS))


def _row(trial: Trial) -> dict[str, Any]:
    evaluation = trial.evaluation
    values = (
        *(trial.number, trial.agent, trial.seed, trial.state.value, trial.reward),
        *(evaluation.accuracy, evaluation.loss),
        *(trial.cost.get(name) for name in COST_NAMES),
        *(evaluation.seconds, trial.policy.to_json()),
    )
    return dict(zip(TRIAL_COLUMNS, values, strict=True))
