"""A run killed with SIGKILL ends, once resumed, with the trials and the best policy of an unbroken one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amcsearch.runs.rows import trial_rows
from amcsearch.search import AGENTS

TRIALS, KILL_AT = 12, 8


def outcome(study):
    return trial_rows(study.trials).drop(columns="seconds").fillna("unknown").to_dict("list")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with the databases of runs that died at their ``KILL_AT``-th evaluation, one for each agent."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parent / "synthetic.py"
    command = [sys.executable, str(script), str(folder), str(KILL_AT), str(TRIALS), *AGENTS]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(result.stdout) == dict.fromkeys(AGENTS, int(signal.SIGKILL))
    return folder


@pytest.mark.parametrize("agent", AGENTS)
def test_a_killed_run_ends_like_an_unbroken_one(synthetic, killed, agent):
    unbroken = synthetic.make_study(agent, trials=TRIALS)
    AGENTS[agent]().run(unbroken, 0)

    resumed = synthetic.make_study(agent, trials=TRIALS, storage=f"sqlite:///{killed}/{agent}.db")
    stored = dict(resumed._serving.stored)
    AGENTS[agent]().run(resumed, 0)

    assert 0 < len(stored) < KILL_AT
    assert len(resumed._executor.calls) == TRIALS - len(stored)
    assert not set(resumed._executor.calls) & set(stored)
    assert outcome(resumed) == outcome(unbroken)
    assert resumed.best.policy == unbroken.best.policy
    assert resumed.notes == unbroken.notes


def test_every_evaluation_before_the_kill_was_stored(synthetic, killed):
    # serial evaluation: the seven before the fatal eighth are all there
    counts = {a: len(synthetic.make_study(a, storage=f"sqlite:///{killed}/{a}.db")._store.load()) for a in AGENTS}
    assert all(count >= KILL_AT - 1 for count in counts.values()), counts
