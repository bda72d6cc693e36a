"""The folder of one run: every file whole or absent, one process at a time, resumable after any death.

Files are written beside their place, synced and renamed, so that a run killed at any moment leaves either the old file
or the new one. The lock is the kernel's (``flock``): it dies with its process. ``log.jsonl`` alone grows in place, a
synced line at a time; a line torn by a kill is ended before the next.
"""

import json
import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from amcsearch.core import OUT, RESUME, BadInputError, Metric, PruningPolicy, Trial, parse_json, read_bytes, read_text
from amcsearch.runs.documents import ConfigFile, MetricRecord, first_difference, items_of, lines_of, plain
from amcsearch.runs.files import (
    append_line,
    check_in_place,
    check_replaceable,
    replacing,
    sweep,
    take_lock,
    writing,
)
from amcsearch.runs.rows import trial_rows
from amcsearch.runs.sparsify_summary import SparsifySummary
from amcsearch.runs.summary import Summary

__all__ = ["RunFolder"]

_FILES: Final = (
    *("config.yaml", "study.db", "trials.csv", "pareto.csv", "policy.json", "pruned.safetensors", "pruned.onnx"),
    *("summary.json", "report.html", "log.jsonl", "densities.csv", "masks.safetensors", "pruned.pt2"),
    *("example.safetensors", "identity.json", "comparison.csv", "curves.csv", "comparison.svg", "comparison.json"),
    *("errors.json", "front.csv", "front.json", "verify.pyz", "measured.jsonl", "pruned.pte"),
)
_STUDY: Final = ("study.db", "study.db-journal", "study.db-wal", "study.db-shm")
_IN_PLACE: Final = (*_STUDY, "log.jsonl")  # not by renaming
_LEFT_BEFORE: Final = re.compile(  # partial files of earlier versions
    r"\.(config|trials|pareto|policy|pruned|summary|report|densities)\.[0-9]+\.[a-z]+"
    r"|.+\.(pt|safetensors)(\.[0-9a-f]+)?\.partial"
)
_LOCK: Final = ".lock"
_BEFORE_WORK: Final = ("log.jsonl", "identity.json", "config.yaml", *_STUDY)
"""Files that a run writes before it has computed anything; the study counts once it holds a trial."""


class _File:
    """A file of the run as an attribute: its path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunFolder", owner: type["RunFolder"]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class _Delivered:
    """The configuration of files that a run delivered, and which files they are."""

    config: str
    files: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, path: Path, config: str) -> Self:
        states = [(path / name).stat() for name in ("summary.json", "pruned.onnx") if (path / name).exists()]
        return cls(config, tuple((state.st_ino, state.st_mtime_ns) for state in states))


@dataclass
class RunFolder(AbstractContextManager["RunFolder"]):
    """A run on disk. ``create`` takes it for writing and holds its lock until ``close``; ``open`` only looks."""

    path: Path
    _lock: IO[bytes] | None = field(default=None, repr=False)
    _made: list[Path] | None = field(default=None, repr=False)
    """Folders that ``create`` made, the deepest first; None where the run goes on with what was there."""
    _delivered: "_Delivered | None" = field(default=None, repr=False)
    """What a finished run had delivered before it went on under another configuration."""

    config_yaml = _File("config.yaml")
    """The whole configuration, every default written out."""
    latency_table = _File("latency_table")
    """The latency table of ``device.table: auto`` as the run began with it: a folder."""
    study_db = _File("study.db")
    """Optuna's storage (SQLite): every evaluation as it was made. ``Study`` takes this path as its storage."""
    trials_csv = _File("trials.csv")
    """Every evaluation, one a row, with ``TRIAL_COLUMNS``; the metric's column bears its name."""
    pareto_csv = _File("pareto.csv")
    """The trials that no other is better than in everything; same columns."""
    policy_json = _File("policy.json")
    """The chosen policy."""
    pruned_safetensors = _File("pruned.safetensors")
    """Weights of the pruned and fine-tuned network."""
    pruned_pt2 = _File("pruned.pt2")
    """The same network as a program of ``torch.export``, which needs neither its source nor this package."""
    example_safetensors = _File("example.safetensors")
    """One sample with every input and output of the network, to trace or export it again."""
    pruned_onnx = _File("pruned.onnx")
    """The pruned and fine-tuned network for ONNX Runtime."""
    densities_csv = _File("densities.csv")
    """What training-time pruning left of every tensor or group."""
    masks_safetensors = _File("masks.safetensors")
    """Which weights, or which units of a group, training-time pruning left in use."""
    training_state = _File(".training.pt")
    """A training on its way, after its last whole epoch."""
    finetuning_state = _File(".finetuning.pt")
    """The same of the fine-tuning."""
    finalists_state = _File(".finalists.pt")
    """What the finalists' short trainings came to, and the one on its way."""
    user_training = _File(".user_training")
    """A folder for what the user's own training keeps, such as checkpoints."""
    summary_json = _File("summary.json")
    """What came of it."""
    report_html = _File("report.html")
    """The page for people."""
    identity_json = _File("identity.json")
    """What was judged and on what: the network and the data of this run, which ``--resume`` compares."""
    trained_safetensors = _File(".trained.safetensors")
    """Weights of the dense network where this run trained it, so that it goes on with no other."""
    verify_pyz = _File("verify.pyz")
    """The kit that measures the finalists on a device which is not here."""
    measured_jsonl = _File("measured.jsonl")
    """What that kit measured, as it was taken."""
    comparison_csv = _File("comparison.csv")
    """Of a comparison of agents: one search a row."""
    curves_csv = _File("curves.csv")
    """The best reward so far of each of them, one evaluation a row."""
    comparison_svg = _File("comparison.svg")
    """Those curves as a picture."""
    comparison_json = _File("comparison.json")
    """Means over seeds, with their intervals."""
    log_jsonl = _File("log.jsonl")
    """What happened when, one JSON object a line."""

    @classmethod
    def create(
        cls,
        path: Path,
        config_text: str,
        config_hash: str,
        *,
        resume: bool,
        deciding: Callable[[str], str] | None = None,
    ) -> Self:
        """Begin a run, or take up an interrupted one with ``resume`` (which also begins one that is not there).

        A run that was stopped before it had computed anything begins anew. So that nothing is left of a run that is
        refused, leaving the context by an error before anything was computed removes what it made.

        Args:
            path: of the folder.
            config_text: the configuration as it will be written.
            config_hash: what tells it apart, with the files that it names.
            resume: go on with what is there.
            deciding: gives the part of a configuration's text that a run which is taken up must share; all by default.

        Raises:
            BadInputError: the folder is in use (names the process), holds a run already, holds the run of another
                configuration, holds other files, or cannot be written.
        """
        with writing(path):
            made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run._lock = take_lock(path / _LOCK)
        try:
            run._begin(ConfigFile(config_text, config_hash), resume, made, deciding or str)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Look at a run, finished or not.

        Raises:
            BadInputError: no folder there, or one that holds no run.
        """
        run = cls(path)
        if not any(os.path.exists(path / name) for name in _FILES):
            raise BadInputError(
                f"{path} is no run folder; name one that `amcsearch search` made, such as runs/NAME-HASH"
            )
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._made is not None and not self._has_results():
            self._remove(self._made)
        before = self._delivered
        if isinstance(error, Exception) and before is not None and before == _Delivered.of(self.path, before.config):
            self.write_text(self.config_yaml, before.config)  # that of the files which are still there
        self.close()

    def close(self) -> None:
        """Give the lock back; looking at the folder stays possible."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _has_results(self) -> bool:
        """Whether anything was computed: a file besides those of every beginning, or a study with a trial."""
        known = {_LOCK, "lost+found", *_BEFORE_WORK, self.latency_table.name}
        return any(name not in known for name in os.listdir(self.path)) or _has_trials(self.study_db)

    def _remove(self, made: Iterable[Path]) -> None:
        with suppress(OSError):  # a folder that was removed or became read-only
            shutil.rmtree(self.latency_table, ignore_errors=True)
            for name in (*_BEFORE_WORK, _LOCK):
                (self.path / name).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()

    def read_config(self) -> ConfigFile:
        """Read ``config.yaml``.

        Raises:
            BadInputError: it cannot be read.
        """
        return ConfigFile.of(read_text(self.config_yaml))

    def delivered(self, suffix: str) -> Path:
        """Give the place of the pruned and fine-tuned network as a file of ``device.runtime``."""
        return self.path / f"pruned{suffix}"

    def round_state(self, number: int) -> Path:
        """The training of one round of pruning, counted from 1, with the cut that it began from."""
        return self.path / f".round-{number}.pt"

    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """Give a temporary path to write a file of the run to: see ``files.replacing``."""
        return replacing(path)

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file of the run, whole or not at all.

        Raises:
            BadInputError: as ``files.replacing``.
        """
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def complete_config(self, config_text: str, config_hash: str, selection: str) -> None:
        """Write the configuration again, with the selection that the network and the data decided on, and why.

        Raises:
            BadInputError: as ``files.replacing``.
        """
        self.write_text(self.config_yaml, ConfigFile(config_text, config_hash, selection=selection).with_head())

    def write_json(self, path: Path, value: Any) -> None:
        """Write plain values (numpy numbers included) as indented JSON; infinite and undefined numbers become null.

        Raises:
            BadInputError: as ``files.replacing``.
        """
        self.write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_policy(self, policy: PruningPolicy) -> None:
        """Write ``policy.json``; raises as ``files.replacing``."""
        self.write_text(self.policy_json, policy.to_json() + "\n")

    @property
    def prune_command(self) -> str:
        """What prunes by the chosen policy again, to be typed in a shell."""
        return shlex.join(["amcsearch", "prune", str(self.config_yaml), "--policy", str(self.policy_json)])

    def write_summary(self, summary: Summary | SparsifySummary) -> None:
        """Write ``summary.json``; raises as ``files.replacing``."""
        self.write_json(self.summary_json, summary)

    def read_summary(self) -> Summary | SparsifySummary:
        """Read ``summary.json``: a ``SparsifySummary`` where the run was one of ``sparsify``.

        Raises:
            BadInputError: the file is not there, is not JSON, or does not hold such a summary.
        """
        text, cure = read_text(self.summary_json), f"let the command that made the run end with {RESUME}"
        try:
            values = items_of(parse_json(text, self.summary_json.name), self.summary_json.name)
            return SparsifySummary.from_json(values) if "sparse" in values else Summary.from_json(values)
        except BadInputError as error:
            raise BadInputError(f"{self.summary_json} is damaged ({error}); {cure}") from error

    def read_metric(self) -> Metric | None:
        """Read what ``identity.json`` says that the run is judged by; None where it does not say it.

        Raises:
            BadInputError: the file is no JSON, or does not hold a metric there.
        """
        if not self.identity_json.exists():
            return None
        where = self.identity_json.name
        values = items_of(parse_json(read_text(self.identity_json), where), where)
        described = values.get("metric")
        return None if described is None else MetricRecord.from_json(described, f"{where}: metric").metric

    def write_report(self, page: str) -> None:
        """Write ``report.html`` unless it is that page already, for the folder may be read-only.

        Raises:
            BadInputError: as ``files.replacing``.
        """
        if not self.report_html.is_file() or read_bytes(self.report_html) != page.encode():
            self.write_text(self.report_html, page)

    def write_trials(self, trials: Iterable[Trial]) -> None:
        """Write ``trials.csv``; raises as ``replacing``."""
        self._write_rows(self.trials_csv, trials)

    def write_pareto(self, front: Iterable[Trial]) -> None:
        """Write ``pareto.csv``; raises as ``replacing``."""
        self._write_rows(self.pareto_csv, front)

    def _write_rows(self, path: Path, trials: Iterable[Trial]) -> None:
        with self.replacing(path) as temporary:
            trial_rows(trials).to_csv(temporary, index=False)

    def append_log(self, record: Mapping[str, object]) -> None:
        """Add one line to ``log.jsonl``, with the time (UTC) first; raises as ``files.append_line``."""
        append_line(self.log_jsonl, {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})

    def _begin(self, config: ConfigFile, resume: bool, made: list[Path], deciding: Callable[[str], str]) -> None:
        for name in _FILES:
            check_replaceable(self.path / name)
        for name in _IN_PLACE:
            check_in_place(self.path / name)
        sweep(self.path)
        is_begun = any((self.path / name).exists() for name in _FILES)
        if is_begun and not resume and not self._has_results():
            shutil.rmtree(self.latency_table, ignore_errors=True)
            for name in _BEFORE_WORK:
                (self.path / name).unlink(missing_ok=True)
            is_begun = False
        if is_begun:
            if not resume:
                raise BadInputError(
                    f"run folder {self.path} holds a run already; continue it with {RESUME} or name another {OUT}"
                )
            self._check_same(config, deciding)
        elif any(not p.name.startswith(".") and p.name != "lost+found" for p in self.path.iterdir()):
            raise BadInputError(f"run folder {self.path} holds other files; name an empty or new {OUT}")
        else:
            self._made = made
        for left in filter(lambda file: _LEFT_BEFORE.fullmatch(file.name), list(self.path.iterdir())):
            left.unlink(missing_ok=True)
        if not self.config_yaml.exists() or lines_of(self.read_config().text) != lines_of(config.text):
            self._replace_config(config)

    def _replace_config(self, config: ConfigFile) -> None:
        for state in (self.finetuning_state, self.finalists_state):
            state.unlink(missing_ok=True)  # it may be of another recipe
        before = self.read_config() if self.config_yaml.exists() else None
        if before is not None:
            config = replace(config, selection=before.selection)
            if self.summary_json.exists():
                self._delivered = _Delivered.of(self.path, before.text)
        self.write_text(self.config_yaml, config.with_head())

    def _check_same(self, config: ConfigFile, deciding: Callable[[str], str]) -> None:
        if not self.config_yaml.exists():  # killed before its first file was whole, or tidied by hand
            return
        before = self.read_config()
        if before.config_hash == config.config_hash:
            return
        was, is_now = deciding(before.text), deciding(config.text)
        if self.identity_json.exists() and lines_of(was) == lines_of(is_now):
            return  # what the configuration names has changed: the job compares it with ``identity.json``
        raise BadInputError(
            f"run folder {self.path} belongs to another configuration: {first_difference(was, is_now)}; restore it, or "
            f"name another {OUT}"
        )


def _has_trials(study_db: Path) -> bool:
    """Whether a study holds a trial; one that cannot be read may."""
    if not os.path.lexists(study_db):
        return False
    try:
        with closing(sqlite3.connect(f"{study_db.absolute().as_uri()}?mode=ro", uri=True)) as study:
            if not study.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
                return False
            return study.execute("SELECT 1 FROM trials LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return True
