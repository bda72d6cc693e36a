"""What several rooms' tests share: a configuration of a job of seconds."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Workers share the cores: two torch processes of two threads each are ten times slower than of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_JOB = Path(__file__).parent / "tiny_job.py"
CONFIG = """
name: tiny
model: {factory: "FACTORY", pretrain: {epochs: 2, learning_rate: 0.05, batch_size: 32}}
data: {factory: "DATA", splits: {calibration: 64, search: 96, test: 96}}
device: {profile: configs/devices/x86_server.yaml, channel_multiple: 4, rounds: 10}
budget: {macs: 0.6x, params: 0.7x}
recovery: {finetune: {epochs: 1, learning_rate: 0.02, batch_size: 32}}
search: {agent: ddpg, trials: 12, finalists: 2}
"""

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Write the configuration, its factories those of ``tiny_job.py``; the cache is the test's own."""
    monkeypatch.setenv("AMCSEARCH_CACHE", str(tmp_path / "cache"))

    def write(factory: str = "network", data: str = "quadrants") -> Path:
        text = CONFIG.replace("FACTORY", f"{TINY_JOB}:{factory}").replace("DATA", f"{TINY_JOB}:{data}")
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return path

    return write
