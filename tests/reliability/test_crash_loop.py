"""Crash loop: every long verb is stopped at random moments, goes on, and ends as an unbroken run does.

``pytest -m slow tests/reliability --kills 20 --crash-seed 7`` kills each verb twenty times.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from amcsearch.config import read_latency_table

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STOPS = 3  # of one run, at most, before it may end
START_UP = 2.0  # seconds in which a process may not have set its signal handlers
FINE = ("--set", "recovery.finetune.epochs=4")
CHANNELS = ("--set", "sparsify.granularity=channels", "--set", "sparsify.training.epochs=3")


@dataclass(frozen=True)
class Verb:
    """A command without its folder, and the files of that folder that two runs share to the last byte."""

    arguments: tuple[str, ...]
    equal: tuple[str, ...] = ("policy.json", "pruned.safetensors")


SPARSE = ("densities.csv", "masks.safetensors", "pruned.safetensors")
VERBS = {
    "search": Verb(("search", "CONFIG")),
    "search with workers": Verb(("search", "CONFIG", "--set", "search.agent=nsga2", "--workers", "2")),
    "prune to a cost": Verb(("prune", "CONFIG", "--target", "macs=0.4x", *FINE)),
    "prune in rounds": Verb(("prune", "CONFIG", "--target", "macs=0.4x", "--rounds", "2", *FINE)),
    "prune to an accuracy": Verb(("prune", "CONFIG", "--keep-accuracy", "5", *FINE)),
    "sparsify weights": Verb(("sparsify", "CONFIG", "--set", "sparsify.method=one_shot"), SPARSE),
    "sparsify channels": Verb(("sparsify", "CONFIG", *CHANNELS), SPARSE),
    "front": Verb(
        ("front", "CONFIG", "--set", "selection.selector=obc", "--evaluations", "6"), ("errors.json", "front.csv")
    ),
    "measure a table": Verb(("table", "measure", "CONFIG", "--variants", "12"), ()),
}


def start(verb: Verb, config: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = [str(config) if argument == "CONFIG" else argument for argument in verb.arguments]
    command = [sys.executable, "-m", "amcsearch", *arguments, "-o", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop(process: subprocess.Popen[str], moment: float, number: signal.Signals) -> bool:
    """Send a signal at a moment in seconds; return whether the run had ended by itself."""
    begun = time.monotonic()
    try:
        _, errors = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    early = time.monotonic() - begun < START_UP
    allowed: Sequence[int] = (0, -number) if number is signal.SIGKILL else (0, 130, *((-number, 1) if early else ()))
    assert process.returncode in allowed, f"{number.name} after {moment:.2f} s: {process.returncode}\n{errors}"
    assert early or "Traceback" not in errors, errors
    return process.returncode == 0


def trials(folder: Path) -> pd.DataFrame:
    path = folder / "trials.csv"
    return pd.read_csv(path).drop(columns="seconds") if path.exists() else pd.DataFrame()


def networks(folder: Path) -> list[str]:
    """Names of the networks of a latency table; none where the folder holds another thing, or nothing yet."""
    return list(read_latency_table(folder).networks) if (folder / "rows.csv").exists() else []


@pytest.mark.parametrize("name", VERBS)
def test_a_run_stopped_at_any_moment_ends_as_an_unbroken_one(
    name: str, write_config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    verb, config = VERBS[name], write_config()
    randomness = random.Random(f"{request.config.getoption('--crash-seed')} {name}")
    whole = tmp_path / "whole"
    begun = time.monotonic()
    process = start(verb, config, whole)
    _, errors = process.communicate()
    seconds = time.monotonic() - begun
    assert process.returncode == 0, errors
    for kill in range(request.config.getoption("--kills")):
        broken, told = tmp_path / f"broken{kill}", []
        for _ in range(randomness.randint(1, STOPS)):
            number, moment = randomness.choice(SIGNALS), randomness.uniform(0.0, seconds)
            told.append(f"{number.name} after {moment:.2f} s")
            if stop(start(verb, config, broken, "--resume"), moment, number):
                break
            assert networks(broken) in ([], networks(whole)), told
        last = start(verb, config, broken, "--resume")
        _, errors = last.communicate()
        assert last.returncode == 0, f"{told}\n{errors}"
        pd.testing.assert_frame_equal(trials(whole), trials(broken), obj=f"trials after {told}")
        assert networks(whole) == networks(broken), told
        for file in verb.equal:
            assert (whole / file).read_bytes() == (broken / file).read_bytes(), f"{file} differs after {told}"
        assert not list(broken.glob(".*partial*")), told
