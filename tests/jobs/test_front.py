"""Fronts of a network on several devices: one set of tables, resuming without ranking, probes, refusals, the verb."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config import write_latency_table
from amcsearch.config.loading import load
from amcsearch.core import PruningPolicy
from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.front import _Front, _spread
from amcsearch.runs import FRONT_COLUMNS, ErrorTables, EvaluatedPolicy, read_trials
from amcsearch.runtime.session import provenance
from tests.measured_results import table_of_another_device

SMALL = {"data.splits": {"calibration": 32, "search": 64, "test": 32}}
DEVICES = ["edge_cpu", "eyeriss_65nm"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@pytest.fixture(scope="module")
def made(data: Any, tmp_path_factory: pytest.TempPathFactory) -> amcsearch.FrontResult:
    folder = tmp_path_factory.mktemp("front") / "run"
    return amcsearch.front(
        network(), data, devices=DEVICES, evaluations=8, selector="obc", settings=SMALL, folder=folder
    )


def test_no_interval_of_a_share_goes_beyond_all_of_it(made: amcsearch.FrontResult) -> None:
    ends = [end for policy in made.summary.evaluated for end in (policy.low, policy.high)]
    assert ends
    assert all(end is None or end <= 1.0 for end in ends)


def made_up(along: str, errors: list[float], first: int) -> _Front:
    policies = tuple(PruningPolicy({"g": first + i}) for i in range(len(errors)))
    return _Front("a", along, np.array(errors), {}, policies)


def test_what_is_evaluated_is_spread_over_errors_and_fronts() -> None:
    fronts = [
        made_up("macs", [4.0, 2.1, 1.0, 0.0], 10),
        made_up("mine", [3.0, 2.0, 0.1], 20),
        made_up("latency_ms", [1.9, 1.01, 0.0], 30),
    ]
    # errors 0, 0, 0.1, 1, 1.01, 1.9, 2, 2.1, 3, 4; half rank, half size: 4, then 2.1 or so, then 1.0 or so
    chosen = _spread(fronts, 3, PruningPolicy({"g": 13}))
    assert [(front.along, float(front.error[i])) for front, i in chosen] == [
        ("macs", 4.0),
        ("mine", 2.0),
        ("latency_ms", 1.01),
    ]
    everything = _spread(fronts, 50, PruningPolicy({"g": 13}))
    assert len(everything) == len({front.policies[i] for front, i in everything}) == 9
    before = [
        EvaluatedPolicy("a", "latency_ms", PruningPolicy({"g": kept}), 1.01, 0.9, 0.1, None, None) for kept in (31, 99)
    ]  # the second is on no front
    assert _spread(fronts, 0, PruningPolicy({"g": 13}), before) == []
    joined = _spread(fronts, 3, PruningPolicy({"g": 13}), before)
    assert [(front.along, float(front.error[i])) for front, i in joined] == [
        ("latency_ms", 1.01),
        ("macs", 4.0),
        ("mine", 2.0),
    ]


def test_every_device_has_a_front_against_every_cost(made: amcsearch.FrontResult) -> None:
    points, costs = made.points, {"macs", "params", "energy_mj", "model_bytes", "peak_memory_bytes"}
    assert list(points.columns) == [*FRONT_COLUMNS[:-1], *made.summary.devices[0].dense, FRONT_COLUMNS[-1]]
    assert {(d, a) for d, a in zip(points["device"], points["along"], strict=True)} == {
        (device, cost) for device in DEVICES for cost in costs
    }
    for (device, along), rows in points.groupby(["device", "along"]):
        assert (np.diff(rows[along]) > 0).all()
        assert (np.diff(rows["error"]) < 0).all()
        multiple = made.summary.device(device).channel_multiple
        for text in rows["policy"]:
            assert all(kept % multiple == 0 for kept in PruningPolicy.from_json(text).values())
    assert [device.channel_multiple for device in made.summary.devices] == [8, 1]
    assert made.summary.errors_from == "obc"


def test_evaluated_policies_have_intervals_and_are_spread(made: amcsearch.FrontResult) -> None:
    summary, folder = made.summary, Path(made.files["points"]).parent
    assert len(summary.evaluated) == 8
    assert len({each.policy for each in summary.evaluated}) == 8
    assert max(each.error for each in summary.evaluated) == made.points["error"].max()
    for each in summary.evaluated:
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.metric <= each.high
    assert len({each.device for each in summary.evaluated}) == 2
    assert made.points["expected"].notna().all()
    assert set(read_trials(folder / "trials.csv")["agent"]) == {f"front on {name}" for name in DEVICES}


def test_the_tables_hold_the_error_of_every_count(made: amcsearch.FrontResult) -> None:
    tables = ErrorTables.read(Path(made.files["tables"]))
    for group, kept in tables.kept.items():
        assert kept == tuple(range(5, 25))  # search.max_pruning_ratio is 0.8
        assert tables.error[group][-1] == 0.0
        assert (np.diff(tables.error[group]) <= 0).all()
    assert tables.of("0", np.array([24, 8])).tolist() == [0.0, tables.error["0"][3]]


def test_a_budget_gives_a_policy_that_prune_takes(made: amcsearch.FrontResult, data: Any, tmp_path: Path) -> None:
    choice = amcsearch.FrontResult.open(Path(made.files["front"]).parent).within({"macs": "0.5x"}, "edge_cpu")
    assert choice.cost["macs"] <= 0.5 * made.summary.devices[0].dense["macs"]
    settings = {**SMALL, "recovery.finetune": None, "device.rounds": 10}
    pruned = amcsearch.prune(
        network(), data, policy=choice.save(tmp_path / "policy.json"), selector="obc", settings=settings
    )
    assert pruned.policy == choice.policy
    assert pruned.summary.pruned.cost["macs"] == choice.cost["macs"]


def test_what_is_stored_is_not_computed_again_and_devices_join(
    made: amcsearch.FrontResult, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("ranked again")

    folder = Path(shutil.copytree(Path(made.files["points"]).parent, tmp_path / "copy"))
    arguments: dict[str, Any] = {"selector": "obc", "settings": SMALL, "folder": folder, "resume": True}
    with monkeypatch.context() as patch:
        patch.setattr("amcsearch.jobs.setup.choose_channels", refuse)
        again = amcsearch.front(network(), data, devices=DEVICES, evaluations=8, **arguments)
    pd.testing.assert_frame_equal(again.points, made.points)
    assert again.summary.evaluated == made.summary.evaluated
    further = amcsearch.front(network(), data, devices=DEVICES, evaluations=10, **arguments)
    assert further.summary.evaluated[:8] == made.summary.evaluated
    assert len(further.summary.evaluated) == 10
    more = amcsearch.front(network(), data, devices=["npu_int8"], evaluations=0, **arguments)
    assert [device.name for device in more.summary.devices] == ["npu_int8"]
    assert more.summary.evaluated == ()


def test_a_criterion_is_probed_and_a_kill_keeps_the_probes(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[object] = []
    honest = amcsearch.Evaluator.pruned
    arguments: dict[str, Any] = {
        "criterion": "magnitude",
        "settings": SMALL,
        "folder": tmp_path / "run",
        "evaluations": 2,
    }

    def counted(self: Any, policy: Any) -> Any:
        evaluated.append(policy)
        if len(evaluated) == 6:
            raise BadInputError("out of memory")
        return honest(self, policy)

    monkeypatch.setattr(amcsearch.Evaluator, "pruned", counted)
    with pytest.raises(BadInputError, match="out of memory"):
        amcsearch.front(network(), data, **arguments)
    made = amcsearch.front(network(), data, **arguments, resume=True)
    assert made.summary.errors_from == "magnitude, by probes"
    # 2 groups at 6 counts: 11 probes, each once; dense once a run for the job; 2 of the fronts
    assert len(evaluated) <= 11 + 1 + 2 + 2
    assert [device.name for device in made.summary.devices] == ["configured"]
    assert made.within({"macs": "0.5x"}).confidence.evaluated == 2


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["edge_cpus"], r"devices: edge_cpus is no device profile and no latency table; did you mean 'edge_cpu'\?"),
        (["edge_cpu", "edge_cpu"], "edge_cpu is there twice"),
        ([3], "devices: 3 is no device; give a name"),
        (
            ["x86_epyc_avx512"],
            "its latency table, of AMD EPYC, holds no measurement of this network, only of digits-.*; name auto in pl.*"
            "; for another device .*: amcsearch table kit CONFIG .* amcsearch table build result.jsonl -o latency_tab",
        ),
    ],
)
def test_a_device_that_is_unknown_or_cannot_price_the_network_is_refused_before_any_work(
    data: Any, tmp_path: Path, devices: list[Any], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        amcsearch.front(network(), data, devices=devices, settings=SMALL, folder=tmp_path / "run", selector="obc")
    assert not (tmp_path / "run").exists()


def test_a_table_of_this_machine_is_told_to_add_the_network(data: Any, tmp_path: Path) -> None:
    x = torch.zeros(1, 1, 8, 8)
    table = table_of_another_device(
        trace(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 2)), x).network
    )
    write_latency_table(replace(table, provenance=provenance(1, 1)), tmp_path / "mine")
    with pytest.raises(BadInputError, match=rf"amcsearch table check {tmp_path / 'mine'} CONFIG --anchors 10 --write"):
        amcsearch.front(network(), data, devices=[tmp_path / "mine"], settings=SMALL, selector="obc")


def test_evaluations_have_a_bound(data: Any) -> None:
    with pytest.raises(BadInputError, match="evaluations = -1, must be from 0 to"):
        amcsearch.front(network(), data, evaluations=-1)


def test_profiles_and_tables_in_memory_are_devices(data: Any) -> None:
    profile = amcsearch.read_device("edge_cpu")
    made = amcsearch.front(network(), data, devices=[profile], evaluations=0, selector="obc", settings=SMALL)
    assert [device.name for device in made.summary.devices] == [profile.name]
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.energy_mj"):
        made.within({"energy_mj": "0.001x"})


def test_the_command_makes_a_front_and_answers_budgets(
    write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f"
    arguments = ["front", str(write_config()), "--set", "selection.criterion=null", "--out", str(out)]
    assert main([*arguments, "--devices", "x86_server,eyeriss_65nm", "--evaluations", "3"]) == 0
    printed = capsys.readouterr().out
    assert ", 3 of its policies evaluated; rank correlation of predicted error and what was lost" in printed
    assert "x86_server" in printed
    written = load(out / "config.yaml")
    assert (written.selection.selector, written.device.channel_multiple) == ("obc", 4)
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    with pytest.raises(BadInputError, match="holds fronts and no network; open it with"):
        amcsearch.load(out)
    capsys.readouterr()
    ask = ["front", str(out), "--device", "eyeriss_65nm"]
    assert main([*ask, "--budget", "energy_mj=0.5x"]) == 0
    printed = capsys.readouterr().out
    assert "confidence: accuracy " in printed
    answer = out / "policy-eyeriss_65nm-energy_mj-0.5x.json"
    assert f"policy: {answer}" in printed
    kept = answer.read_text()
    assert main([*ask, "--budget", "macs=300000", "--budget", "model_bytes=20 KiB"]) == 0  # another question
    assert f"policy: {out / 'policy-eyeriss_65nm-macs-300000-model_bytes-20_KiB.json'}" in capsys.readouterr().out
    assert answer.read_text() == kept
    assert main([*ask, "--budget", "macs=0.6x", "--json", "--out", str(tmp_path / "p.json")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert PruningPolicy.read(tmp_path / "p.json") == PruningPolicy(values["policy"])
    assert values["of_dense"]["macs"] <= 0.6
    assert main([*ask, "--budget", "macs=0.001x"]) == 3
    assert main([*ask, "--budget", "latency_ms=0.5x"]) == 2
    assert main([*ask, "--budget", "macs"]) == 2
    assert main(["front", str(tmp_path / "tiny.yaml"), "--budget", "macs=0.5x"]) == 2
    assert main(["front", str(out)]) == 0
    assert main([*ask, "--budget", "macs=0.5x", "--resume"]) == 2
    assert main([*arguments, "--device", "x86_server"]) == 2
