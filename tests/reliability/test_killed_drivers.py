"""Searches of a real network by two drivers and their workers, any of which is killed, on either database.

``pytest -n 0 -rP -m slow tests/reliability/test_killed_drivers.py --kills 20 --crash-seed 7`` kills 100 times on each.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from sqlalchemy import create_engine, inspect

from amcsearch.cli import main
from amcsearch.search import study

pytestmark = pytest.mark.slow

LEASE_S = 2.0  # after which the policies of a dead driver are taken over
PATIENCE_S = 1800.0  # a machine under load
DRIVERS = 2
SETTINGS = ("search.agent=nsga2", "search.trials=24", "search.batch=6", "device.channel_multiple=1")
SEARCH = ("--workers", "2", *(word for setting in SETTINGS for word in ("--set", setting)))


def drive(arguments: list[str], log: Path) -> None:
    """Run the command line as a driver."""
    study.TrialStore = partial(study.TrialStore, lease_s=LEASE_S)  # type: ignore[misc,assignment]
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    sys.exit(main(arguments))


@dataclass
class Drivers:
    """The drivers of one search; ``stored`` are its trials in the database when last looked at."""

    config: Path
    folder: Path
    storage: str
    server: Any
    processes: dict[int, BaseProcess] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    stored: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)

    def log(self, number: int) -> Path:
        """What a driver wrote."""
        return self.folder / f"{number}.log"

    def start(self, number: int) -> None:
        """Start a driver, or go on with the folder of one that was killed."""
        options = ["--storage", self.storage, "-o", str(self.folder / str(number)), "--resume"]
        context = multiprocessing.get_context("forkserver")
        arguments = (["search", str(self.config), *SEARCH, *options], self.log(number))
        process = context.Process(target=drive, args=arguments)
        process.start()
        self.processes[number] = process

    def disturb(self, chance: random.Random, most: int) -> None:
        """Kill after every few trials, at most so often, until the search has ended."""
        wanted, deadline = 1, time.monotonic() + PATIENCE_S
        while alive := [number for number, process in self.processes.items() if process.exitcode != 0]:
            assert time.monotonic() < deadline
            self.look()
            driver = chance.choice(alive)
            if len(self.stored) >= wanted and self.kills.total() < most:
                self.kill(chance, driver)
                wanted = len(self.stored) + chance.randint(0, 3)
            self.processes[driver].join(0.1)
            assert self.processes[driver].exitcode in (None, 0), self.log(driver).read_text()[-3000:]

    def kill(self, chance: random.Random, driver: int) -> None:
        """Kill a driver, a process that evaluates, or the database."""
        workers = self.workers()
        victims = ["driver", *(["worker"] if workers else []), *(["database"] if self.server is not None else [])]
        victim = chance.choice(victims)
        if victim == "database":
            self.server.stop(signal.SIGKILL)
            self.server.start()
        elif victim == "worker":
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
        else:
            self.processes[driver].kill()
            self.processes[driver].join()
            self.start(driver)
        self.kills[victim] += 1

    def workers(self) -> list[int]:
        """Processes that the drivers evaluate in: each driver has one that forks them."""
        parents = {int(path.name): parent_of(path) for path in Path("/proc").glob("[0-9]*")}
        drivers = {process.pid for process in self.processes.values()}
        return [child for child, parent in parents.items() if parents.get(parent) in drivers]

    @property
    def is_open(self) -> bool:
        """Whether a driver has made all tables of the database, of which this is the last."""
        return inspect(create_engine(self.storage)).has_table("amcsearch_claims")

    def look(self) -> None:
        """Note what is stored; all that was stored before must be there, as it was."""
        names = optuna.get_all_study_names(self.storage) if self.is_open else []
        studies = [optuna.load_study(study_name=name, storage=self.storage) for name in names]
        trials = [trial for each in studies for trial in each.get_trials(deepcopy=False)]
        stored = {
            (trial.user_attrs["agent"], trial.user_attrs["policy"]): (trial.number, trial.user_attrs["seconds"])
            for trial in trials
        }
        assert len(stored) == len(trials), "a policy is stored twice"
        assert self.stored.items() <= stored.items(), "a stored evaluation is lost, or was made again"
        self.stored = stored

    def close(self) -> None:
        """Kill all drivers; their workers end with them."""
        for process in self.processes.values():
            process.kill()
            process.join()


def parent_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def outcome(folder: Path) -> tuple[pd.DataFrame, bytes]:
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds"), (folder / "policy.json").read_bytes()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_is_stored_outlives_every_kill(kind: str, write_config, request, tmp_path: Path) -> None:
    kills, chance = 5 * request.config.option.kills, random.Random(f"{request.config.option.crash_seed} {kind}")
    config, server = write_config(), request.getfixturevalue("postgresql") if kind == "postgresql" else None
    assert main(["search", str(config), *SEARCH, "-o", str(tmp_path / "whole")]) == 0
    trials, policy = outcome(tmp_path / "whole")
    total, searches = Counter[str](), 0
    while total.total() < kills:
        searches += 1
        folder = tmp_path / f"search{searches}"
        folder.mkdir()
        storage = f"sqlite:///{folder}/study.db" if server is None else server.new_database()
        drivers = Drivers(config, folder, storage, server)
        try:
            for number in range(DRIVERS):
                drivers.start(number)
            drivers.disturb(chance, kills - total.total())
            drivers.look()
        finally:
            drivers.close()
        assert set(drivers.stored) == set(zip(trials["agent"], trials["policy"], strict=True))
        for number in range(DRIVERS):
            trials_of_driver, policy_of_driver = outcome(folder / str(number))
            pd.testing.assert_frame_equal(trials_of_driver, trials)
            assert policy_of_driver == policy
        total += drivers.kills
    sys.stdout.write(f"{dict(total)} kills in {searches} searches of {len(trials)} evaluations\n")
