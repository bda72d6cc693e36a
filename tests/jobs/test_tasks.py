"""Tasks through the command line and in Python: what is judged, and what is refused before any work."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.core.errors import BadInputError

SMALL = {
    "search.trials": 2,
    "search.baseline": None,
    "search.finalists": 1,
    "device.rounds": 5,
    "search.agent": "random",
}


def regressor(outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)).eval()


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :outputs] * 10.0 + 20.0


def test_a_regression_is_judged_by_its_error(tmp_path: Path) -> None:
    task = {"name": "regression", "params": {"metric": "mae", "unit": "K"}}
    result = amcsearch.search(regressor(), data(), task=task, settings=SMALL, folder=tmp_path / "run", seed=0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metric"] == {"name": "mae", "unit": "K", "higher_is_better": False}
    assert summary["finetuned"]["mae"] < summary["dense"]["mae"]  # the dense one was never trained
    assert "mae" in result.trials.columns
    assert "MAE against MACs" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(("outputs", "words"), [(1, "task: {name: regression}"), (3, "task: {name: regression}")])
def test_numbers_without_a_task_are_refused_with_the_lines_to_write(outputs: int, words: str) -> None:
    with pytest.raises(BadInputError) as refused:
        amcsearch.search(regressor(outputs), data(outputs), settings=SMALL)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.a(features), self.b(features)


def test_two_outputs_that_both_fit_are_refused_until_one_is_named() -> None:
    x = torch.randn(160, 4)
    with pytest.raises(BadInputError, match=r"returns '0', '1', which all fit .*output: '0'"):
        amcsearch.search(TwoHeads(), (x, torch.randint(0, 3, (160,))), settings=SMALL)
