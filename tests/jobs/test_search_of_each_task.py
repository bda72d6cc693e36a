"""One small search for each built-in task: what is judged reaches the summary, the trials, the report and the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amcsearch

SMALL = {
    "search.trials": 3,
    "search.baseline": None,
    "search.finalists": 1,
    "search.agent": "random",
    "device.rounds": 5,
    "recovery.finetune.epochs": 6,
    "recovery.finetune.learning_rate": 0.3,
    "recovery.finetune.distillation": None,  # the dense network was never trained
}
SAMPLES = 320


def noise(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def layers(outputs: int, inputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))


def yes_or_no() -> tuple[nn.Module, Any]:
    x = noise(4)
    return layers(1), (x, (x[:, 0] > 0.0).long())


def labels() -> tuple[nn.Module, Any]:
    x = noise(4)
    return layers(3), (x, (x[:, :3] > 0.0).float())


def pixels() -> tuple[nn.Module, Any]:
    x = noise(1, 8, 8)
    ids = (x[:, 0] > 0.0).long()
    ids[:, 0] = 255
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Conv2d(16, 2, 1)), (x, ids)


class NextToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(12, 16), layers(12, 16)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.body(self.embedding(ids))
        return logits


def tokens() -> tuple[nn.Module, Any]:
    ids = (torch.arange(SAMPLES)[:, None] + torch.arange(7)) % 12
    targets = ids[:, 1:].clone()
    targets[::3, -1] = -100
    return NextToken(), (ids[:, :-1], targets)


def vectors() -> tuple[nn.Module, Any]:
    x = noise(4)
    return layers(3), (x, x[:, :3].clone())


def numbers() -> tuple[nn.Module, Any]:
    x = noise(4)
    return layers(1), (x, x[:, 0] * 10.0 + 20.0)


@pytest.mark.parametrize(
    ("task", "params", "make", "metric"),
    [
        ("binary", {}, yes_or_no, "accuracy"),
        ("binary", {"metric": "f1"}, yes_or_no, "f1"),
        ("multilabel", {}, labels, "f1"),
        ("multilabel", {"metric": "map"}, labels, "map"),
        ("segmentation", {"ignored": 255}, pixels, "miou"),
        ("segmentation", {"ignored": 255, "metric": "pixel_accuracy"}, pixels, "pixel_accuracy"),
        ("language_modelling", {"metric": "perplexity"}, tokens, "perplexity"),
        ("embedding", {}, vectors, "cosine"),
        ("regression", {"metric": "r2"}, numbers, "r2"),
        ("regression", {"metric": "rmse", "unit": "K", "loss": "huber"}, numbers, "rmse"),
    ],
)
def test_a_search_is_judged_by_the_metric_of_its_task(
    tmp_path: Path, task: str, params: dict[str, object], make: Callable[[], tuple[nn.Module, Any]], metric: str
) -> None:
    torch.manual_seed(0)
    model, data = make()
    folder, name = tmp_path / "run", {"name": task, "params": params}
    result = amcsearch.search(model.eval(), data, task=name, settings=SMALL, folder=folder, seed=0)
    summary = json.loads((folder / "summary.json").read_text())
    judged = result.summary.metric
    assert judged.name == metric
    assert judged.gain(summary["finetuned"][metric], summary["dense"][metric]) > 0.0
    assert summary["finetuned"]["macs"] < summary["dense"]["macs"]
    assert len(result.trials[metric]) == 3
    assert result.trials[metric].notna().all()
    assert f"{judged.label} against MACs" in (folder / "report.html").read_text()
    assert torch.equal(amcsearch.load(folder, model=model).model(data[0][:2]), result.model(data[0][:2]))
