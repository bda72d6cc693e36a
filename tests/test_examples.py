"""The examples, held to their contracts and run through small searches by configuration."""

import csv
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from amcsearch import config as cfg
from amcsearch.cli import main
from amcsearch.core.errors import BadInputError
from amcsearch.testing import AgentContract, CostContract, CriterionContract, TaskContract, TaskExample

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = (
    *("search.trials=4", "search.finalists=1", "search.baseline=null", "model.pretrain.epochs=1"),
    *("recovery.finetune=null", "device.rounds=5", "device.profile=null"),
)
WriteConfig = Callable[..., Path]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestReadActivation(CriterionContract):
    def make(self) -> Any:
        return example("my_criterion").ReadActivation()


class TestAnnealing(AgentContract):
    def make(self) -> Any:
        return example("my_agent").Annealing()


class TestActivationMemory(CostContract):
    def make(self) -> Any:
        return example("my_cost").ActivationMemory()


class TestClassAndBox(TaskContract):
    def make(self) -> Any:
        return example("my_task").ClassAndBox()

    def example(self) -> TaskExample:
        ids, boxes = torch.tensor([0, 1, 2, 1]), torch.arange(16.0).reshape(4, 4) / 16
        guesses = {"classes": torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1), "boxes": torch.zeros(4, 4)}
        perfect = {"classes": 20.0 * torch.eye(3)[ids], "boxes": boxes}
        return TaskExample(guesses, {"class": ids, "box": boxes}, perfect, 4)


def test_a_class_with_its_box_by_hand() -> None:
    """Right; box off by 0.2; wrong class. The loss of the first: ln(1 + 1/e) + 0.05² / 2 / 4."""
    task = example("my_task").ClassAndBox()
    wanted = {"class": torch.tensor([0, 0, 1]), "box": torch.zeros(3, 4)}
    boxes = torch.zeros(3, 4)
    boxes[0, 1], boxes[1, 2] = 0.05, 0.2
    output = {"classes": torch.tensor([[1.0, 0.0]]).repeat(3, 1), "boxes": boxes}
    assert task.sample_values(output, wanted).tolist() == [1.0, 0.0, 0.0]
    loss = task.loss({k: v[:1] for k, v in output.items()}, {k: v[:1] for k, v in wanted.items()})
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.05**2 / 8, abs=1e-6)


BRIGHT_SQUARES = """
import torch
from torch import nn

class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 32), nn.ReLU()
        self.body = nn.Sequential(*layers)
        self.classes, self.boxes = nn.Linear(32, 2), nn.Linear(32, 4)

    def forward(self, x):
        features = self.body(x)
        return {"classes": self.classes(features), "boxes": self.boxes(features)}

def data():
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(320):
        left, top = torch.randint(0, 6, (2,), generator=generator).tolist()
        x = torch.zeros(1, 8, 8)
        x[0, top : top + 3, left : left + 3] = 1.0 + number % 2
        box = torch.tensor([left, top, left + 3, top + 3]) / 8
        samples.append((x, {"class": number % 2, "box": box}))
    return {"train": samples}
"""


def test_a_search_with_a_task_of_two_heads_from_a_file(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "bright_squares.py").write_text(BRIGHT_SQUARES)
    summary = run(
        write_config(),
        tmp_path / "run",
        f"task={{name: '{EXAMPLES}/my_task.py:ClassAndBox', params: {{tolerance: 0.2}}}}",
        f"model.factory={tmp_path}/bright_squares.py:TwoHeads",
        f"data.factory={tmp_path}/bright_squares.py:data",
        "search.agent=random",
    )
    assert summary["metric"] == {"name": "localised", "unit": "%", "higher_is_better": True}
    assert summary["finetuned"]["macs"] < summary["dense"]["macs"]
    assert "Localised" in (tmp_path / "run" / "report.html").read_text()


def run(path: Path, folder: Path, *overrides: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    sets = [part for text in (*SHORT, *overrides) for part in ("--set", text)]
    assert main(["search", str(path), "--out", str(folder), *options, *sets]) == 0
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_a_search_with_a_criterion_and_an_agent_from_files_in_two_workers(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    summary = run(
        write_config(),
        tmp_path / "run",
        f"selection.criterion={EXAMPLES}/my_criterion.py:ReadActivation",
        "selection.params={power: 0.5}",
        f"search.agent={EXAMPLES}/my_agent.py:Annealing",
        options=("--workers", "2"),
    )
    assert summary["agent"] == "my_agent.py:Annealing"
    assert summary["evaluations"] == 4


def test_a_cost_from_a_file_is_limited_traded_off_and_shown(write_config: WriteConfig, tmp_path: Path) -> None:
    cost = f"device.costs={{activation_mib: '{EXAMPLES}/my_cost.py:ActivationMemory'}}"
    objectives = "search.objectives=[accuracy, activation_mib]"
    folder = tmp_path / "run"
    summary = run(write_config(), folder, cost, objectives, "search.agent=random", "budget={activation_mib: 0.7x}")
    dense, limit = summary["dense"]["activation_mib"], summary["budget"]["activation_mib"]["limit"]
    assert limit == pytest.approx(0.7 * dense)
    assert 0.0 < summary["finetuned"]["activation_mib"] <= limit
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert len(rows) == 4
    assert all(0.0 < float(row["activation_mib"]) <= limit for row in rows)
    page = (folder / "report.html").read_text()
    assert "Accuracy against activation_mib" in page
    assert "Budget: activation_mib at most" in page
    again = run(write_config(), folder, cost, objectives, "search.agent=random", "budget={activation_mib: 0.7x}",
                options=("--resume",))  # fmt: skip
    assert again["finetuned"]["activation_mib"] == summary["finetuned"]["activation_mib"]
    front = list(csv.DictReader((folder / "pareto.csv").open()))
    assert 0 < len(front) <= 4


MINE = "class Mine:\n    {}\n"


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        (
            "selection.criterion",
            "needs = frozenset()\n    reduction = 'mean'",
            "no method 'saliency', which every Crit",
        ),
        ("selection.selector", "refit = 'none'\n    labels = False", "no method 'orders', which every Selector has"),
        ("search.agent", "def walk(self, study, seed): pass", "no method 'run', which every Agent has"),
        ("search.agent", "run = 3", "no method 'run'"),
        ("search.baseline", "pass", "no method 'run'"),
        ("search.agent", "def __init__(self): raise KeyError('weights')", "making it raised KeyError: 'weights'"),
        ("search.agent", "def __init__(self, steps): pass", "missing 1 required positional argument: 'steps'"),
        ("search.reward.name", "pass", "no method '__call__', which every Reward has"),
        ("sparsify.method", "pass", "Mine is no amcsearch.methods.GateMethod or amcsearch.methods.MaskSchedule; make"),
        ("sparsify.criterion", "pass", "no attribute 'needs'"),
    ],
)
def test_what_breaks_its_contract_is_refused_before_anything_is_trained(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, text: str, wanted: str
) -> None:
    name = f"mine_{key.replace('.', '_')}_{len(text)}.py"  # a module is imported once a process
    (tmp_path / name).write_text(MINE.format(text))
    path = write_config(factory="network")
    verb = "sparsify" if key.startswith("sparsify") else "search"
    sets = ("--set", f"{key}={name}:Mine", "--set", "device.profile=null", "--set", "sparsify.criterion_params={}")
    out = tmp_path / "run"
    assert main([verb, str(path), "--out", str(out), *sets]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{key} = " in said
    assert wanted in said
    assert name in said
    assert not (tmp_path / "cache").exists()  # nothing was trained


def test_a_cost_goes_by_the_name_of_its_model(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config()
    cost = f"device.costs={{memory: '{EXAMPLES}/my_cost.py:ActivationMemory'}}"
    config = cfg.load(path, [cost, "budget={memory: 0.5x}"])
    from amcsearch.jobs.device import further_costs

    with pytest.raises(BadInputError, match=r"device.costs.memory = .*the model's name is 'activation_mib'"):
        further_costs(config)


def write_picture(path: Path, width: int, height: int, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def test_patches_of_photographs_are_the_same_at_every_reading_and_held_out_by_picture(tmp_path: Path) -> None:
    for number in range(6):
        write_picture(tmp_path / f"p{number}" / "1600x1200.jpg", 1600, 1200, (40 * number, 0, 0))
        write_picture(tmp_path / f"p{number}" / "800x600.jpg", 800, 600, (0, 0, 255))  # a smaller copy
    write_picture(tmp_path / "icon.jpg", 64, 64, (0, 255, 0))
    splits = example("efficientnet_lite").patches(str(tmp_path), train=9, search=5, test=4, size=32)
    assert {split: len(data) for split, data in splits.items()} == {"train": 9, "search": 5, "test": 4}
    image, label = splits["train"][5]
    assert (tuple(image.shape), label) == ((3, 32, 32), -100)
    assert torch.equal(image, splits["train"][5][0])
    # one colour a picture: red channels say which pictures a split is cut from
    reds = {split: {round(float(data[i][0][0].mean()), 1) for i in range(len(data))} for split, data in splits.items()}
    assert {split: len(colours) for split, colours in reds.items()} == {"train": 4, "search": 1, "test": 1}
    assert len(set.union(*reds.values())) == 6


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="0 pictures of at least 600 pixels, must be at least 6"):
        example("efficientnet_lite").patches(str(tmp_path))
