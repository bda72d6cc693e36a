"""A run folder that is asked for: begun, or taken up."""

from collections.abc import Callable
from pathlib import Path

from amcsearch.config import Config
from amcsearch.config.loading import load
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.request import in_folder
from amcsearch.jobs.workload import CONFIGURED, InMemory
from amcsearch.runs import RunFolder


class Phases(Observer):
    """Keeps what it is told of phases."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def phase(self, text: str) -> None:
        self.texts.append(text)


def folder_of(config: Config, run: RunFolder, /, *, observer: Observer, given: InMemory) -> Path:
    """A job that does nothing."""
    del config, observer, given
    return run.path


def test_resume_without_a_run_begins_one_and_says_so_once(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, folder = load(write_config()), tmp_path / "run"
    for told in ([f"Nothing to resume in {folder}: a new run begins"], []):
        phases = Phases()
        assert in_folder(config, folder, True, folder_of, phases, CONFIGURED) == folder
        assert phases.texts == told


def test_a_new_run_that_resumes_nothing_says_nothing(write_config: Callable[..., Path], tmp_path: Path) -> None:
    phases = Phases()
    in_folder(load(write_config()), tmp_path / "run", False, folder_of, phases, CONFIGURED)
    assert phases.texts == []
