"""What a run folder holds, finished or not: missing and damaged files are named, never fatal."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amcsearch.runs import TRIAL_COLUMNS, RunFolder

__all__ = ["Record", "read_record"]


@dataclass(frozen=True)
class Record:
    """The files of a run as values; empty where a file is missing. ``problems`` says which and why."""

    name: str
    config_text: str
    summary: dict[str, Any]
    trials: pd.DataFrame
    front: pd.DataFrame
    onnx_bytes: int | None
    problems: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """The run came to its end."""
        return bool(self.summary.get("finetuned"))

    @property
    def agent(self) -> str:
        """Who searched: from the summary, or else the first agent of the trials."""
        return str(self.summary.get("agent") or (self.trials["agent"].iloc[0] if len(self.trials) else ""))

    @property
    def config_hash(self) -> str | None:
        """Identity of the configuration, from the first line of its file."""
        found = re.match(r"# configuration ([0-9a-f]+)\n", self.config_text)
        return found[1] if found else None

    @property
    def evaluations(self) -> int:
        """Policies the agent evaluated, its baseline's apart."""
        counted = self.summary.get("evaluations")
        return counted if isinstance(counted, int) else int((self.trials["agent"] == self.agent).sum())

    @property
    def budget(self) -> dict[str, float]:
        """Absolute limits by cost name."""
        limits = {}
        for name, entry in _mapping(self.summary.get("budget")).items():
            limit = entry.get("limit") if isinstance(entry, dict) else entry
            if isinstance(limit, int | float):
                limits[name] = float(limit)
        return limits

    @property
    def further_costs(self) -> list[str]:
        """The user's own costs, each a column of the trials."""
        return [str(name) for name in self.trials.columns if name not in TRIAL_COLUMNS and str(name).isidentifier()]

    def block(self, name: str) -> dict[str, Any]:
        """The figures of one network: ``dense``, ``pruned`` or ``finetuned``."""
        return _mapping(self.summary.get(name))

    def entries(self, name: str) -> list[dict[str, Any]]:
        """A list of objects of the summary, such as ``finalists`` or ``network``."""
        found = self.summary.get(name)
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def configured(self, key: str) -> str | None:
        """A top-level plain value of the configuration's text."""
        found = re.search(rf"^{re.escape(key)}: *(\S.*)$", self.config_text, re.MULTILINE)
        return found[1].strip("'\"") if found else None


def read_record(run: RunFolder) -> Record:
    """Read what there is."""
    problems: list[str] = []
    config_text = _text(run.config_yaml, problems)
    summary_text = _text(run.summary_json, problems)
    trials, front = _rows(run.trials_csv, problems), _rows(run.pareto_csv, problems)
    return Record(
        run.path.resolve().name,
        config_text,
        _object(run.summary_json.name, summary_text, problems),
        trials,
        front,
        run.pruned_onnx.stat().st_size if run.pruned_onnx.is_file() else None,
        tuple(problems),
    )


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(f"{path.name} is not there")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
    return ""


def _object(name: str, text: str, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        problems.append(f"{name} is damaged ({error})")
        return {}
    return _mapping(found)


def _rows(path: Path, problems: list[str]) -> pd.DataFrame:
    empty = pd.DataFrame(columns=list(TRIAL_COLUMNS))
    text = _text(path, problems)
    if not text:
        return empty
    try:
        rows = pd.read_csv(path)
    except (ValueError, OSError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return empty
    if set(TRIAL_COLUMNS) - set(rows.columns):
        problems.append(f"{path.name} is damaged (columns are missing)")
        return empty
    numbers = [name for name in rows.columns if name not in ("agent", "state", "policy")]
    rows[numbers] = rows[numbers].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    return rows


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
