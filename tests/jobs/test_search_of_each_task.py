"""One small search for each built-in task: what is judged reaches the summary, the trials, the report and the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import amcsearch
from amcsearch.core import Metric
from amcsearch.training import Meter, Task

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


def padded(items: list[Tensor]) -> dict[str, Tensor]:
    """A batch of token ids as long as its longest sample, with labels that ignore what is padded."""
    length = max(map(len, items)) - 1
    ids, labels = torch.zeros(len(items), length, dtype=torch.int64), torch.full((len(items), length), -100)
    for row, tokens in enumerate(items):
        ids[row, : len(tokens) - 1], labels[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
    return {"ids": ids, "labels": labels}


def test_tokens_of_batches_that_are_padded_each_to_its_longest(tmp_path: Path) -> None:
    samples = [(torch.arange(6 + i % 5) + i) % 12 for i in range(SAMPLES)]
    loader: DataLoader[Any] = DataLoader(samples, batch_size=16, collate_fn=padded)  # type: ignore[arg-type]
    settings = {**SMALL, "device.export": {"dynamic": ["batch", "sequence"]}}
    torch.manual_seed(0)
    model, folder = NextToken().eval(), tmp_path / "run"
    result = amcsearch.search(model, loader, task="language_modelling", settings=settings, folder=folder)
    assert result.summary.finetuned.metric > result.summary.dense.metric
    program = torch.export.load(folder / "pruned.pt2").module()
    assert program(ids=torch.zeros(3, 9, dtype=torch.int64)).shape == (3, 9, 12)


class CountOfBoxes(Task):
    """How many boxes a picture has, from a list with a mapping for each picture."""

    metric = Metric("counted", "%")

    def loss(self, output: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return F.mse_loss(output[:, 0], self._counts(targets))

    def sample_values(self, output: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return (output[:, 0].round() == self._counts(targets)).double()

    def meter(self) -> Meter:
        return Shares(self)

    def _counts(self, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.tensor([float(len(each["boxes"])) for each in targets])


class Shares:
    def __init__(self, task: Task) -> None:
        self.task, self.values = task, list[Tensor]()

    def update(self, output: Tensor, targets: object) -> None:
        values = self.task.sample_values(output, targets)
        assert values is not None
        self.values.append(values)

    def value(self) -> float:
        return float(torch.cat(self.values).mean())


def test_boxes_that_a_collate_leaves_in_a_list(tmp_path: Path) -> None:
    pictures = noise(1, 8, 8)
    samples = [(picture, {"boxes": torch.rand(i % 4, 4)}) for i, picture in enumerate(pictures)]

    def collate(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        return torch.stack([picture for picture, _ in items]), [targets for _, targets in items]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), layers(1, 128))
    loader: DataLoader[Any] = DataLoader(samples, batch_size=48, collate_fn=collate)  # type: ignore[arg-type]
    settings = {**SMALL, "recovery.finetune.learning_rate": 0.01}
    result = amcsearch.search(model.eval(), loader, task=CountOfBoxes(), settings=settings, folder=tmp_path / "run")
    assert result.summary.metric.name == "counted"
    assert result.summary.finetuned.cost["macs"] < result.summary.dense.cost["macs"]


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_along_one_and_three_axes(tmp_path: Path, axes: int) -> None:
    convolution, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[axes]
    torch.manual_seed(0)
    body = convolution(1, 8, 3, padding=1), nn.ReLU(), convolution(8, 16, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*body, pool(1), nn.Flatten(), nn.Linear(16, 2))
    signal = noise(1, *[6] * axes)
    data = signal, (signal.flatten(1).mean(1) > 0).long()
    result = amcsearch.search(model.eval(), data, settings=SMALL, folder=tmp_path / "run")
    assert result.summary.finetuned.cost["macs"] < result.summary.dense.cost["macs"]
