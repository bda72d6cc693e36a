"""Crash loop: every long verb is stopped at random moments, goes on, and ends as an unbroken run does.

``pytest -m slow tests/reliability --kills 20 --crash-seed 7`` kills each verb twenty times.
"""

import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from amcsearch.config import read_latency_table
from tests.command_line import CommandLine

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


def start(verb: Verb, config: Path, folder: Path, *options: str) -> CommandLine:
    arguments = [config if argument == "CONFIG" else argument for argument in verb.arguments]
    return CommandLine([*arguments, "-o", folder, *options])


def stop(started: CommandLine, moment: float, number: signal.Signals) -> bool:
    """Send a signal at a moment in seconds; return whether the run had ended by itself."""
    begun = time.monotonic()
    done = started.ended(moment)
    if done is None:
        started.send(number)
        done = started.ended(120.0)
    assert done is not None
    early = time.monotonic() - begun < START_UP
    allowed: Sequence[int] = (0, -number) if number is signal.SIGKILL else (0, 130, *((-number, 1) if early else ()))
    assert done.returncode in allowed, f"{number.name} after {moment:.2f} s: {done.returncode}\n{done.stderr}"
    assert early or "Traceback" not in done.stderr, done.stderr
    return done.returncode == 0


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
    unbroken = start(verb, config, whole).ended()
    seconds = time.monotonic() - begun
    assert unbroken is not None
    assert unbroken.returncode == 0, unbroken.stderr
    for kill in range(request.config.getoption("--kills")):
        broken, told = tmp_path / f"broken{kill}", []
        for _ in range(randomness.randint(1, STOPS)):
            number, moment = randomness.choice(SIGNALS), randomness.uniform(0.0, seconds)
            told.append(f"{number.name} after {moment:.2f} s")
            if stop(start(verb, config, broken, "--resume"), moment, number):
                break
            assert networks(broken) in ([], networks(whole)), told
        last = start(verb, config, broken, "--resume").ended()
        assert last is not None
        assert last.returncode == 0, f"{told}\n{last.stderr}"
        pd.testing.assert_frame_equal(trials(whole), trials(broken), obj=f"trials after {told}")
        assert networks(whole) == networks(broken), told
        for file in verb.equal:
            assert (whole / file).read_bytes() == (broken / file).read_bytes(), f"{file} differs after {told}"
        assert not list(broken.glob(".*partial*")), told
