"""Tasks through the command line and in Python: what is judged, and what is refused before any work."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.config import from_mapping
from amcsearch.core import Metric
from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import PerSample, Tree
from amcsearch.jobs.task import check_objectives, check_task, make_task
from amcsearch.reporting.page import render
from amcsearch.reporting.record import read_record
from amcsearch.runs.folder import RunFolder
from amcsearch.search.study import Study
from amcsearch.training.tasks.custom import Custom
from amcsearch.training.tasks.regression import Regression

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


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.arange(160), "task: {name: regression}, or {name: binary}"),
        (torch.arange(160) > 80, "task: {name: binary}"),
    ],
)
def test_one_number_a_sample_without_an_axis_names_the_tasks_it_may_be(targets: Tensor, words: str) -> None:
    model = nn.Sequential(*regressor(), nn.Flatten(0))
    with pytest.raises(BadInputError) as refused:
        amcsearch.search(model, (data()[0], targets), settings=SMALL)
    assert words in str(refused.value)


class Halting:
    """An agent that fails after two policies."""

    def run(self, study: Study, seed: int) -> None:
        del seed
        for kept in (study.feasible.largest_uniform(), study.space.nearest_counts(study.space.dense // 4)):
            study.evaluate([study.network.policy(kept)])
        raise RuntimeError("lost")


def test_the_page_of_a_search_that_did_not_finish_knows_an_error_of_ones_own(tmp_path: Path) -> None:
    metric = Metric("miss", "px", higher_is_better=False)
    task = Custom(torch.nn.functional.mse_loss, torch.nn.functional.l1_loss, metric)
    with pytest.raises(BadInputError, match="lost"):
        amcsearch.search(
            regressor(), data(), task=task, agent=Halting(), criterion="taylor", settings=SMALL, folder=tmp_path / "run"
        )
    run = RunFolder.open(tmp_path / "run")
    assert read_record(run).metric == metric
    assert "Miss against MACs" in render(run)


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


class Counted(Regression):
    """Errors that are counted have no gradient."""

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        return ((output - targets).abs() > 1.0).float().mean()


def test_a_task_whose_loss_has_no_gradient_is_refused_by_its_name_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="task = Counted: the loss has no gradient") as refused:
        amcsearch.search(regressor(), data(), task=Counted(), settings=SMALL, folder=tmp_path / "run")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run" / "study.db").exists()


def test_objectives_take_the_metric_by_its_name_or_as_metric() -> None:
    """A random search of two policies trades the error off against MACs."""
    fronts = [
        amcsearch.search(
            regressor(),
            data(),
            task="regression",
            settings={**SMALL, "search.objectives": [name, "macs"], "recovery.finetune": None},
            seed=0,
        ).front
        for name in ("mse", "metric")
    ]
    assert fronts[0][["mse", "macs"]].equals(fronts[1][["mse", "macs"]])


OWN = "def loss(o, t): return (o - t).square().mean()\ndef miss(o, t): return (o - t).abs().mean(1)\n"


def test_objectives_take_the_name_that_a_task_of_ones_own_gives(tmp_path: Path) -> None:
    """A class says its metric's name only once it is made; of two functions ``metric_name`` says it."""
    (tmp_path / "own.py").write_text(OWN)
    functions = {"loss": f"{tmp_path}/own.py:loss", "metric": f"{tmp_path}/own.py:miss", "higher_is_better": False}
    settings = {"model.factory": "a:b", "data.factory": "a:c", "search.objectives": ["miss", "macs"]}
    by_functions = {"task": {"name": "custom", "params": {**functions, "metric_name": "miss"}}}
    config = from_mapping(by_functions, "", settings)
    check_objectives(config, make_task(config, None))
    own = Custom(torch.nn.functional.mse_loss, torch.nn.functional.l1_loss, Metric("miss", higher_is_better=False))
    config = from_mapping({"task": f"{tmp_path}/own.py:Mine"}, "", settings)
    check_objectives(config, make_task(config, own))
    with pytest.raises(BadInputError, match=r"has 'miss', and the task judges by mse; expected 'metric', 'mse'"):
        check_objectives(config, make_task(config, Regression()))
    with pytest.raises(BadInputError, match="expected 'macs'"):
        from_mapping({**by_functions, "budget": {"miss": "0.5x"}}, "", settings)


@pytest.mark.parametrize("name", ["accuracy", "mae", "msee"])
def test_objectives_that_are_no_cost_and_not_the_metric_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    settings = {**SMALL, "search.objectives": [name, "macs"]}
    with pytest.raises(BadInputError, match=rf"search.objectives.*{name}.*") as refused:
        amcsearch.search(regressor(), data(), task="regression", settings=settings, folder=tmp_path / "run")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run" / "study.db").exists()


def l1(output: Tensor, targets: Tensor | PerSample) -> Tensor:
    wanted = torch.stack(list(targets)) if isinstance(targets, PerSample) else targets
    return torch.nn.functional.l1_loss(output, wanted)


def hit(output: Tensor, targets: Tensor | PerSample) -> Tensor:
    return (l1(output, targets) < 1.0).float()


@pytest.mark.parametrize(("judge", "cure"), [(l1, "false"), (hit, "true")])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_a_metric_that_goes_the_wrong_way_is_refused(judge: object, cure: str, is_ragged: bool) -> None:
    """Each prediction is off by 0.5, and by much more from the targets of other samples."""
    config = from_mapping({}, "", {"model.factory": None, "data.factory": None})
    _, targets = data()
    output, wanted = targets + 0.5, PerSample(targets) if is_ragged else targets
    right, wrong = (Custom(l1, judge, Metric("judged", "", higher_is_better=way == cure)) for way in ("true", "false"))
    check_task(config, right, right, output, wanted)
    with pytest.raises(BadInputError, match=rf"not the other way round; write params: \{{higher_is_better: {cure}\}}"):
        check_task(config, wrong, wrong, output, wanted)
