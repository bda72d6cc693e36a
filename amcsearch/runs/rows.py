"""Rows on disk: trials (``trials.csv``, ``pareto.csv``) and what training-time pruning left (``densities.csv``)."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import ACCURACY, FIRST_COSTS, MIB, BadInputError, Trial, TrialState, check_csv, read_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DENSITY_COLUMNS",
    "STOPPED_COLUMNS",
    "TRIAL_COLUMNS",
    "metric_column",
    "read_densities",
    "read_points",
    "read_trials",
    "trial_rows",
]

TRIAL_COLUMNS: Final = (
    *("number", "agent", "seed", "state", "reward", "accuracy", "loss"),
    *FIRST_COSTS,
    *("seconds", "policy"),
)

STOPPED_COLUMNS: Final = ("stopped_after", "metric_bound")
"""Samples after which an evaluation stopped, and the best metric that was still possible; absent where none did."""
DENSITY_COLUMNS: Final = ("name", "kept", "total", "density")
_MOST_BYTES: Final = 256 * MIB  # a hundred thousand trials of a hundred groups
_ROUNDING: Final = 1e-3  # of a density as it is written


def trial_rows(trials: Iterable[Trial]) -> "pd.DataFrame":
    """Return one row a trial with ``TRIAL_COLUMNS`` and a column for every further cost, after the four.

    The metric's column bears its name. A cost without a model is empty. ``STOPPED_COLUMNS`` follow where some stopped.
    """
    import pandas as pd  # a third of a second that most processes need not wait

    trials = list(trials)
    further = dict.fromkeys(name for trial in trials for name in trial.cost.further)
    after = TRIAL_COLUMNS.index(FIRST_COSTS[-1]) + 1
    columns = [*TRIAL_COLUMNS[:after], *further, *TRIAL_COLUMNS[after:]]
    if any(trial.evaluation.stopped_after is not None for trial in trials):
        columns += STOPPED_COLUMNS
    rows = pd.DataFrame([{**_row(trial), **trial.cost.further} for trial in trials], columns=columns)
    return rows.rename(columns={ACCURACY.name: trials[0].judged_by.name} if trials else {})


def metric_column(header: Iterable[object]) -> str:
    """Return the name of the metric's column: the one between ``reward`` and ``loss``, where there is one alone."""
    names = [str(name) for name in header]
    if "reward" in names and names.index("reward") + 2 < len(names) and names[names.index("reward") + 2] == "loss":
        return names[names.index("reward") + 1]
    return ACCURACY.name


def read_trials(path: Path) -> "pd.DataFrame":
    """Return the rows of ``trials.csv`` or ``pareto.csv``.

    Raises:
        BadInputError: as ``read_text`` and ``check_csv``, or a value that the column cannot have; names its row.
    """
    where, texts = f"trials {path}", ("agent", "state", "policy")
    fixed = [name for name in TRIAL_COLUMNS if name != ACCURACY.name]
    rows = _read_rows(path, "trials", fixed, texts)
    if metric_column(rows.columns) not in rows:
        raise BadInputError(f"cannot read {where}: it lacks the columns {ACCURACY.name} (a metric, before loss)")
    for name in rows.columns.difference(list(texts)):
        numbers = _numbers(rows, name, where)
        if name in ("number", "seed"):
            _refuse_first(rows, name, ~_is_whole(numbers), "a whole number", where)
    for name in texts:
        _refuse_first(rows, name, rows[name].isna().to_numpy(), "a text", where)
    states = sorted(TrialState)
    _refuse_first(rows, "state", ~rows["state"].isin(states).to_numpy(), f"one of {', '.join(states)}", where)
    return rows


def read_densities(path: Path) -> "pd.DataFrame":
    """Return the rows of ``densities.csv``: name, kept, total, density.

    Raises:
        BadInputError: as ``read_text`` and ``check_csv``, no row, a name twice, a total below 1, a kept count outside
            0 … total, or a density that is not their share; names the row.
    """
    where = f"densities {path}"
    rows = _read_rows(path, "densities", DENSITY_COLUMNS, ("name",))
    if rows.empty:
        raise BadInputError(f"{where} have no row; give those of a sparsify run")
    _refuse_first(rows, "name", rows["name"].isna().to_numpy(), "a text", where)
    _refuse_first(rows, "name", rows["name"].duplicated().to_numpy(), "each name once", where)
    kept, total, density = (_numbers(rows, name, where) for name in DENSITY_COLUMNS[1:])
    _refuse_first(rows, "total", ~_is_whole(total) | (total < 1), "a whole number of at least 1", where)
    _refuse_first(rows, "kept", ~_is_whole(kept) | (kept < 0) | (kept > total), "a whole number, 0 to total", where)
    _refuse_first(rows, "density", ~(np.abs(density - kept / total) <= _ROUNDING), "kept / total", where)
    return rows


def read_points(path: Path, columns: Iterable[str], costs: Iterable[str]) -> "pd.DataFrame":
    """Return the rows of ``front.csv``: texts and numbers in ``columns``, and a number or nothing for each cost.

    Raises:
        BadInputError: as ``read_text`` and ``check_csv``, or a value that the column cannot have; names its row.
    """
    where, texts, costs = f"front {path}", ("device", "along", "policy"), list(costs)
    rows = _read_rows(path, "front", [*columns, *costs], texts)
    for name in (*(column for column in columns if column not in texts), *costs):
        rows[name] = _numbers(rows, name, where)
    for name in texts:
        _refuse_first(rows, name, rows[name].isna().to_numpy(), "a text", where)
    _refuse_first(rows, "error", ~np.isfinite(rows["error"].to_numpy()), "a number", where)
    return rows


def _read_rows(path: Path, label: str, columns: Iterable[str], texts: Iterable[str]) -> "pd.DataFrame":
    import pandas as pd  # a third of a second that most processes need not wait

    text = read_text(path, label, _MOST_BYTES)
    check_csv(text, f"{label} {path}", columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows with more values than columns
            return pd.read_csv(
                io.StringIO(text),
                index_col=False,
                dtype=dict.fromkeys(texts, str),
                keep_default_na=False,  # NA may be a name
                na_values=[""],
            )
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        raise BadInputError(f"cannot read {label} {path}: {error}") from error


def _number(cell: object) -> float:
    """The number in a cell, NaN where there is none."""
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _numbers(rows: "pd.DataFrame", column: str, where: str) -> NDArray[np.float64]:
    """The numbers of a column, NaN where a cell is empty."""
    numbers = np.array([_number(cell) for cell in rows[column].tolist()], dtype=np.float64)
    is_other = np.isnan(numbers) & rows[column].notna().to_numpy()
    _refuse_first(rows, column, is_other | (rows[column].dtype == np.bool_), "a number", where)
    return numbers


def _is_whole(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(numbers) & (numbers == np.round(numbers)), dtype=np.bool_)


def _refuse_first(rows: "pd.DataFrame", column: str, wrong: NDArray[np.bool_], expected: str, where: str) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        raise BadInputError(f"{where}, row {at + 1}: {column} = {rows[column].tolist()[at]!r:.80}, expected {expected}")


def _row(trial: Trial) -> dict[str, Any]:
    evaluation = trial.evaluation
    values = (
        *(trial.number, trial.agent, trial.seed, trial.state.value, trial.reward),
        *(evaluation.metric, evaluation.loss),
        *(trial.cost.get(name) for name in FIRST_COSTS),
        *(evaluation.seconds, trial.policy.to_json()),
    )
    stopped = (evaluation.stopped_after, evaluation.metric_bound)
    return dict(zip((*TRIAL_COLUMNS, *STOPPED_COLUMNS), (*values, *stopped), strict=True))
