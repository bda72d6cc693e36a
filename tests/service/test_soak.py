"""A short soak of a service; ``SOAK_MINUTES=120 pytest -m slow tests/service/test_soak.py`` is a long one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice_while_everything_is_killed() -> None:
    minutes = os.environ.get("SOAK_MINUTES", "0.3")
    ended = subprocess.run([sys.executable, str(SOAK), "--minutes", minutes, "--seed", "3"], capture_output=True)
    figures = json.loads(ended.stdout)
    assert figures["faults"] == []
    assert ended.returncode == 0
    assert sum(figures["jobs"].values()) > 0
