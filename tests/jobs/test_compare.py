"""Agents compared on one network: means over seeds, equal seconds, resuming with further agents, and refusals."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.core.errors import BadInputError
from amcsearch.jobs.compare import CURVE_COLUMNS, RUN_COLUMNS
from amcsearch.reporting.figures import comparison_picture
from amcsearch.search import AGENTS

SMALL = {"data.splits": {"calibration": 32, "search": 64, "test": 32}, "search.agent_params": {}}
AGENT_NAMES = ["uniform", "random", "dynamic_programming"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@pytest.fixture(scope="module")
def compared(data: Any, tmp_path_factory: pytest.TempPathFactory) -> amcsearch.Comparison:
    folder = tmp_path_factory.mktemp("compared") / "run"
    return amcsearch.compare(network(), data, agents=AGENT_NAMES, seeds=[0, 1], trials=6, settings=SMALL, folder=folder)


def test_every_agent_has_a_row_a_seed_and_a_mean(compared: amcsearch.Comparison) -> None:
    runs = compared.runs
    assert list(runs.columns) == list(RUN_COLUMNS)
    assert runs[["agent", "seed"]].to_numpy().tolist() == [[a, s] for s in (0, 1) for a in AGENT_NAMES]
    for agent in compared.agents:
        mine = runs[runs["agent"] == agent.agent]
        assert agent.best_reward.value == pytest.approx(mine["best_reward"].mean())
        assert agent.best_reward.seeds == 2
        assert 0.0 <= agent.hypervolume.value <= 1.0
    assert [agent.difference is None for agent in compared.agents] == [True, False, False]
    assert compared.agents[0].reached_reference == 2  # the reference reached its own
    assert compared.selection == "obc, by default: what reads removed channels is refitted by least squares"


def test_curves_end_at_the_best_and_seconds_rise(compared: amcsearch.Comparison) -> None:
    curves = compared.curves
    assert list(curves.columns) == list(CURVE_COLUMNS)
    for (agent, seed), rows in curves.groupby(["agent", "seed"]):
        end = compared.runs[(compared.runs["agent"] == agent) & (compared.runs["seed"] == seed)].iloc[0]
        assert rows["best_reward"].is_monotonic_increasing
        assert rows["seconds"].is_monotonic_increasing
        assert (rows["best_reward"].iloc[-1], rows["seconds"].iloc[-1]) == (end["best_reward"], end["seconds"])
        assert rows["evaluation"].tolist() == list(range(1, int(end["evaluations"]) + 1))


def test_the_files_hold_what_is_returned(compared: amcsearch.Comparison) -> None:
    files = compared.files
    assert pd.read_csv(files["runs"])["best_reward"].to_numpy() == pytest.approx(compared.runs["best_reward"])
    assert len(pd.read_csv(files["trials"])) == len(compared.curves)
    assert "uniform" in Path(files["picture"]).read_text()
    values = json.loads(Path(files["comparison"]).read_text())
    assert values["agents"][1]["agent"] == "random"
    assert "runs" not in values


def test_what_a_folder_holds_is_what_was_returned(compared: amcsearch.Comparison, tmp_path: Path) -> None:
    folder = shutil.copytree(Path(compared.files["runs"]).parent, tmp_path / "copy")
    opened = amcsearch.Comparison.open(folder)
    assert opened.files["runs"] == str(folder / "comparison.csv")
    for frame in ("runs", "curves"):
        pd.testing.assert_frame_equal(getattr(opened, frame), getattr(compared, frame), check_exact=True)
    assert opened.agents == compared.agents
    assert {**opened.to_json(), "files": 0} == {**compared.to_json(), "files": 0}
    (folder / "comparison.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        BadInputError, match=r"copy is damaged \(comparison.csv has 1 rows and the columns \['a', 'b'\]"
    ):
        amcsearch.Comparison.open(folder)
    (folder / "comparison.json").write_text("{}")
    with pytest.raises(BadInputError, match="damaged"):
        amcsearch.Comparison.open(folder)
    with pytest.raises(BadInputError, match="holds no comparison; make one with amcsearch compare CONFIG"):
        amcsearch.Comparison.open(tmp_path)


def test_further_agents_and_seeds_join_what_is_there(
    compared: amcsearch.Comparison, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(compared.files["runs"]).parent
    evaluated: list[object] = []
    honest = amcsearch.Evaluator.evaluate
    monkeypatch.setattr(
        amcsearch.Evaluator, "evaluate", lambda self, policy: evaluated.append(policy) or honest(self, policy)
    )
    arguments: dict[str, Any] = {"trials": 6, "settings": SMALL, "folder": folder, "resume": True}
    again = amcsearch.compare(network(), data, agents=AGENT_NAMES, seeds=[0, 1], **arguments)
    assert len(evaluated) == 1  # the dense network
    same = ["agent", "seed", "evaluations", "best_reward", "metric", "hypervolume", "policy"]
    pd.testing.assert_frame_equal(again.runs[same], compared.runs[same])
    more = amcsearch.compare(network(), data, agents=["uniform", "grid"], seeds=[2], **arguments)
    assert more.runs["agent"].tolist() == ["uniform", "grid"]


def test_an_agent_in_memory_is_compared_under_its_class_name(data: Any) -> None:
    agent = AGENTS["random"]()
    compared = amcsearch.compare(
        network(), data, agents=["uniform", agent], seeds=[3], trials=3, settings=SMALL, workers=1
    )
    assert [each.agent for each in compared.agents] == ["uniform", type(agent).__name__]
    assert compared.agents[1].best_reward.half_width is None


class Watcher:
    """An observer that wants to know the dense network."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def network(self, dense: Any, cost: Any, limits: Any) -> None:
        self.told.append((dict(dense), cost["macs"], dict(limits)))

    def trial(self, *_: object) -> None:
        self.told.append("trial")

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def test_an_observer_is_told_of_the_dense_network_before_the_first_trial(data: Any) -> None:
    watcher = Watcher()
    asked: dict[str, Any] = {"agents": ["uniform"], "seeds": [0], "trials": 1, "settings": SMALL}
    amcsearch.compare(network(), data, budget={"macs": "0.5x"}, observer=watcher, **asked)
    (widths, macs, limits), *trials = watcher.told
    assert sorted(widths.values()) == [12, 12]
    assert macs == 4 * 12 + 12 * 12 + 12 * 3
    assert limits == {"macs": macs / 2}
    assert trials == ["trial"]


@pytest.mark.parametrize(
    ("agents", "seeds", "words"),
    [
        ([], [0], "agents: none is named"),
        (["random", "random"], [0], "agents: random is there twice"),
        (["randon"], [0], "randon"),
        (["random"], [], r"seeds = \[\], expected from 1"),
        (["random"], [1, 1], r"seeds = \[1, 1\], expected"),
        (["random"], [-1], r"seeds = \[-1\], expected"),
    ],
)
def test_bad_agents_and_seeds_are_refused_before_any_work(
    data: Any, tmp_path: Path, agents: list[str], seeds: list[int], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        amcsearch.compare(network(), data, agents=agents, seeds=seeds, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_prints_a_row_an_agent(
    write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(write_config()), "--agents", "random,uniform", "--seeds", "0,1"]
    assert main([*arguments, "--out", str(tmp_path / "c"), "--set", "search.trials=3"]) == 0
    out = capsys.readouterr().out
    assert "difference to random" in out
    assert "2 seeds, 3 evaluations each" in out
    assert "selection: taylor" in out.splitlines()
    (legend,) = [line for line in out.splitlines() if line.startswith("reward: search.reward of the best policy")]
    head = re.split("  +", out.splitlines()[0].strip())
    assert all(re.sub(" (at|to) .*", "", title) in legend for title in head if title != "evaluations"), head
    assert main([*arguments, "--out", str(tmp_path / "c"), "--set", "search.trials=3", "--resume", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["agents"]) == 2


def test_the_picture_shows_means_from_where_all_seeds_have_a_trial() -> None:
    rows = [("a", 0, 1, 1.0, -np.inf), ("a", 0, 2, 2.0, 0.5), ("a", 1, 1, 1.0, 0.1), ("b", 0, 1, 0.5, 0.3)]
    picture = comparison_picture(pd.DataFrame(rows, columns=list(CURVE_COLUMNS)))
    assert picture.count(">a<") == 1
    with pytest.raises(BadInputError, match="without an evaluation"):
        comparison_picture(pd.DataFrame(columns=list(CURVE_COLUMNS)))
