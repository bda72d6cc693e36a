"""A run folder as a search of ResNet-20 leaves it: made up, but with the shapes and sizes of a real one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import TRIAL_COLUMNS

CONFIG = """name: digits-resnet20
seed: 0
model:
  factory: amcsearch.training.models:resnet20
budget: {latency_ms: 0.5x}
search: {agent: ddpg, trials: 120}
"""
CHANNELS = {
    "conv1": 16,
    **{f"stages.0.{i}.conv1": 16 for i in range(3)},
    "stages.1.0.shortcut.0": 32,
    **{f"stages.1.{i}.conv1": 32 for i in range(3)},
    "stages.2.0.shortcut.0": 64,
    **{f"stages.2.{i}.conv1": 64 for i in range(3)},
}
DENSE = {"macs": 40.6e6, "params": 272e3, "latency_ms": 0.512, "energy_mj": 0.231}


def _trials(agent: str, count: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for number in range(count):
        drift = 0.5 * number / count if agent == "ddpg" else 0.0
        kept = {g: max(1, round(c * rng.uniform(0.25 + 0.3 * drift, 1.0))) for g, c in CHANNELS.items()}
        share = np.mean([kept[g] / c for g, c in CHANNELS.items()])
        accuracy = float(np.clip(0.62 + 0.33 * drift + 0.35 * (share - 0.4) + rng.normal(0, 0.035), 0.1, 0.985))
        latency = DENSE["latency_ms"] * min(0.5, 0.12 + 0.55 * share + rng.normal(0, 0.02))
        cost = [DENSE["macs"] * share**1.8, DENSE["params"] * share**1.7, latency, DENSE["energy_mj"] * share**1.4]
        state, reward = ("complete", accuracy - 1.0) if number != 17 else ("failed", -np.inf)
        rows.append([number, agent, 0, state, reward, accuracy, 1 - accuracy, *cost, 0.21, json.dumps(kept)])
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))


def _interval(value: float, spread: float = 0.006) -> dict[str, float]:
    return {"median": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def _block(accuracy: float, share: float, measured: float) -> dict[str, object]:
    return {
        "accuracy": accuracy,
        **{name: DENSE[name] * share**2 for name in ("macs", "params", "energy_mj")},
        "latency_ms_predicted": measured * 1.02,
        "latency_ms_measured": _interval(measured),
    }


def _summary(trials: pd.DataFrame) -> dict[str, object]:
    mine = trials[(trials["agent"] == "ddpg") & (trials["state"] == "complete")]
    best = mine.sort_values("reward").tail(5).iloc[::-1]
    wobble = (1.013, 0.986, 1.022, 1.041, 0.972)
    finalists = [
        {
            "trial": int(row.number),
            "chosen": i == 1,
            "policy": json.loads(row.policy),
            "accuracy": row.accuracy,
            "reward": row.reward,
            "latency_ms_predicted": row.latency_ms,
            "latency_ms_measured": _interval(row.latency_ms * factor),
        }
        for i, (row, factor) in enumerate(zip(best.itertuples(), wobble, strict=True))
    ]
    kept = finalists[1]["policy"]
    return {
        "dense": _block(0.9889, 1.0, 0.509),
        "pruned": _block(0.9361, 0.62, 0.2497),
        "finetuned": _block(0.9861, 0.62, 0.2497),
        "latency_ratio": _interval(0.4906),
        "budget": {"latency_ms": {"asked": "0.5x", "limit": 0.256, "predicted": 0.2547}},
        "dense_search_accuracy": 0.992,
        "onnx_max_abs_diff": 2.1e-6,
        "agent": "ddpg",
        "baseline": "random",
        "seed": 0,
        "evaluations": 120,
        "seconds": {"load": 61.2, "search": 151.0, "finalists": 12.4, "finetune": 24.9, "verify": 9.0, "total": 258.5},
        "finalists": finalists,
        "network": [{"group": g, "channels": c, "kept": kept[g]} for g, c in CHANNELS.items()],
        "skipped": [{"name": "fc", "reason": "the network's output"}],
        "channel_multiple": 8,
        "table": {"name": "x86_epyc_avx512", "accuracy": {"mape": 0.021, "within_10": 0.98}},
        "versions": {"amcsearch": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.22.0"},
        "warnings": ["latency table x86_epyc_avx512: ONNX Runtime 1.21.0 there, 1.22.0 here; measure your own"],
    }


def fill(run: RunFolder, *, finished: bool = True) -> None:
    """Write the files of a run; an unfinished one has trials alone."""
    rng = np.random.default_rng(3)
    frames = [_trials("ddpg", 120, rng), _trials("random", 120, rng)]
    pd.concat(frames).to_csv(run.trials_csv, index=False)
    if finished:
        frames[0].to_csv(run.pareto_csv, index=False)
        run.write_json(run.summary_json, _summary(pd.concat(frames)))
        run.pruned_onnx.write_bytes(b"\0" * 431_000)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    with RunFolder.create(tmp_path / "digits-resnet20-abc123", CONFIG, "abc123", resume=False) as folder:
        yield folder


@pytest.fixture
def finished(run: RunFolder) -> RunFolder:
    fill(run)
    return run


@pytest.fixture
def interrupted(run: RunFolder) -> RunFolder:
    fill(run, finished=False)
    return run
