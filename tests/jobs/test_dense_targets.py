"""No labels (``data.targets: dense``): a transformer that nobody here wrote, from a file to a proven smaller one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.graph.masks import masked
from amcsearch.graph.removal import remove
from amcsearch.jobs.workload import load_workload
from amcsearch.training.splits import stacked

ENCODER = Path(__file__).parents[1] / "tiny_encoder.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.yaml"
    path.write_text(f"""
name: encoder
model: {{factory: "{ENCODER}:encoder"}}
data: {{factory: "{ENCODER}:sentences", targets: dense, splits: {{calibration: 48, search: 32, test: 32}}}}
device: {{rounds: 10}}
budget: {{macs: 0.7x}}
selection: {{selector: obc}}
recovery: {{finetune: {{epochs: 4, optimizer: adamw, learning_rate: 0.002, batch_size: 16}}}}
search: {{agent: random, baseline: null, trials: 4, finalists: 1}}
""")
    return path


def test_heads_and_feed_forward_widths_of_a_masked_encoder_leave_as_if_masked(config: Path) -> None:
    workload = load_workload(load(config))
    model, trace = workload.model, workload.trace
    assert [(g.channels, g.unit) for g in trace.network.groups] == [(32, 8), (48, 1)]
    inputs, targets = stacked(workload.splits.test)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), targets)
        rng = np.random.default_rng(0)
        units = {name: np.sort(rng.permutation(u)[: len(u) // 2].ravel()) for name, u in trace.units.items()}
        with masked(model, trace, units):
            expected = model(inputs)
        assert not torch.allclose(expected, targets, atol=0.1)
        torch.testing.assert_close(remove(model, trace, units)(inputs), expected, atol=1e-5, rtol=1e-4)


def test_a_search_without_labels_keeps_the_embeddings(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["search", str(config), "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dense"]["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert summary["finetuned"]["macs"] <= 0.7 * summary["dense"]["macs"]
    assert summary["pruned"]["cosine"] < summary["finetuned"]["cosine"] < 1.0
    assert summary["onnx_max_abs_diff"] < 1e-4
    assert any("cosine" in text for text in summary["warnings"])
    trials = pd.read_csv(folder / "trials.csv")
    np.testing.assert_allclose(trials["cosine"], 1.0 - trials["loss"], atol=1e-6)


@pytest.mark.parametrize(
    ("reconstruction", "line"),
    [
        ("auto", "selection: obc, by default: what reads removed channels is refitted by least squares"),
        ("none", "selection: wanda_channels, by default: not obc, because recovery.reconstruction is none"),
    ],
)
def test_without_a_selection_nothing_needs_labels(
    config: Path, capsys: pytest.CaptureFixture[str], reconstruction: str, line: str
) -> None:
    options = ["--set", "selection.selector=null", "--set", f"recovery.reconstruction={reconstruction}", "--dry-run"]
    assert main(["search", str(config), *options]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_a_criterion_of_gradients_is_refused_with_a_cure(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "selection.selector=null", "--set", "selection.criterion=taylor", "--dry-run"]
    assert main(["search", str(config), *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "selection.criterion = 'taylor'" in line
    assert "true_fisher" in line
