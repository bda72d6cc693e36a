"""What a run folder holds, finished or not: missing and damaged files are named, never fatal."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amcsearch.core import ACCURACY, COST_NAMES, METRICS, BadInputError, Metric
from amcsearch.runs import (
    STOPPED_COLUMNS,
    TRIAL_COLUMNS,
    ConfigFile,
    RunFolder,
    SparsifySummary,
    Summary,
    metric_column,
    read_trials,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "read_record"]


@dataclass(frozen=True)
class Record:
    """The files of a run as values; None or empty where a file is missing or damaged. ``problems`` says which and why.

    ``name`` is the folder's, ``judged_by`` the metric of a run without a result.
    """

    name: str
    config: ConfigFile
    result: Summary | SparsifySummary | None
    trials: "pd.DataFrame"
    front: "pd.DataFrame"
    onnx_bytes: int | None
    judged_by: Metric | None
    problems: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name of the configuration, or else of the folder."""
        return self.config.name or self.name

    @property
    def summary(self) -> Summary | None:
        """The result of a search or of ``prune``."""
        return self.result if isinstance(self.result, Summary) else None

    @property
    def sparse(self) -> SparsifySummary | None:
        """The result of pruning while training."""
        return self.result if isinstance(self.result, SparsifySummary) else None

    @property
    def agent(self) -> str:
        """Who searched: from the summary, or else the first agent of the trials."""
        if self.summary is not None:
            return self.summary.agent
        return str(self.trials["agent"].iloc[0]) if len(self.trials) else ""

    @property
    def metric(self) -> Metric:
        """What the task judges by: from the summary, as the run began, or else by the column of the trials."""
        if self.result is not None:
            return self.result.metric
        if self.judged_by is not None:
            return self.judged_by
        name = metric_column(self.trials.columns)
        try:
            return METRICS[name] if name in METRICS else Metric(name)
        except BadInputError:
            return ACCURACY

    @property
    def evaluations(self) -> int:
        """Policies the agent evaluated, its baseline's apart."""
        if self.summary is not None:
            return self.summary.evaluations
        return int((self.trials["agent"] == self.agent).sum())

    @property
    def further_costs(self) -> list[str]:
        """The user's own costs, each a column of the trials."""
        known = {*TRIAL_COLUMNS, *STOPPED_COLUMNS, *COST_NAMES, metric_column(self.trials.columns)}
        return [str(name) for name in self.trials.columns if name not in known and str(name).isidentifier()]


def read_record(run: RunFolder) -> Record:
    """Read what there is."""
    problems: list[str] = []
    config, result = _config(run, problems), _result(run, problems)
    if isinstance(result, SparsifySummary):  # which tries no policies
        trials, front = _no_rows(), _no_rows()
    else:
        trials, front = (_rows(path, problems) for path in (run.trials_csv, run.pareto_csv))
    return Record(
        run.path.resolve().name,
        config,
        result,
        trials,
        front,
        run.pruned_onnx.stat().st_size if run.pruned_onnx.is_file() else None,
        _judged_by(run, problems) if result is None else None,
        tuple(problems),
    )


def _judged_by(run: RunFolder, problems: list[str]) -> Metric | None:
    try:
        return run.read_metric()
    except BadInputError as error:
        problems.append(str(error))
    return None


def _config(run: RunFolder, problems: list[str]) -> ConfigFile:
    try:
        if _is_there(run.config_yaml, problems):
            return run.read_config()
    except BadInputError as error:
        problems.append(str(error))
    return ConfigFile("")


def _result(run: RunFolder, problems: list[str]) -> Summary | SparsifySummary | None:
    try:
        if _is_there(run.summary_json, problems):
            return run.read_summary()
    except BadInputError as error:
        problems.append(str(error))
    return None


def _is_there(path: Path, problems: list[str]) -> bool:
    if not path.exists():
        problems.append(f"{path.name} is not there")
    return path.exists()


def _no_rows() -> "pd.DataFrame":
    import pandas as pd  # a third of a second that most processes need not wait

    return pd.DataFrame(columns=list(TRIAL_COLUMNS))


def _rows(path: Path, problems: list[str]) -> "pd.DataFrame":
    if not _is_there(path, problems) or not path.stat().st_size:
        return _no_rows()
    try:
        rows = read_trials(path)
    except BadInputError as error:
        problems.append(f"{path.name} is damaged ({error})")
        return _no_rows()
    return rows.replace([np.inf, -np.inf], np.nan)
