"""Selectors and reconstruction from a configuration: what is chosen, what is refitted, and that a search uses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from amcsearch.cli.main import main
from amcsearch.config import config_hash, dump
from amcsearch.config.loading import load
from amcsearch.core.policy import PruningPolicy
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.request import make_request
from amcsearch.jobs.selection import with_selection
from amcsearch.jobs.setup import assemble, make_evaluator
from amcsearch.jobs.workload import InMemory, load_workload
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.selectors import SELECTORS
from amcsearch.runs.folder import RunFolder
from amcsearch.search import Allocator, removal_errors

WriteConfig = Callable[..., Path]
REFITTED = "what reads removed channels is refitted by least squares"


class Silent(Observer):
    """Watches nothing."""


def refit_of(path: Path, *overrides: str) -> str | None:
    config = load(path, overrides)
    reconstruction = make_evaluator(config, load_workload(config)).reconstruction
    return None if reconstruction is None else reconstruction.refit


def test_auto_is_what_the_selector_says_and_an_explicit_rule_wins(write_config: WriteConfig) -> None:
    path = write_config()
    assert refit_of(path) is None
    assert refit_of(path, "recovery.reconstruction=least_squares") == "least_squares"
    for name, make in SELECTORS.items():
        assert refit_of(path, f"selection.selector={name}") == make().refit
    assert refit_of(path, "selection.selector=thinet", "recovery.reconstruction=none") is None
    assert refit_of(path, "selection.selector=thinet", "recovery.reconstruction=sequential") == "sequential"
    assert refit_of(path, "recovery.reconstruction=sequential") == "sequential"
    assert refit_of(path, "selection.selector=obc", "recovery.reconstruction=bias") == "bias"


def test_params_are_the_selectors(write_config: WriteConfig) -> None:
    path = write_config()
    orders = [
        make_evaluator(config, load_workload(config)).ranking
        for grow in ("discard", "keep")
        for config in [load(path, ["selection.selector=thinet", f"selection.params={{grow: {grow}}}"])]
    ]
    assert any((orders[0][name] != orders[1][name]).any() for name in orders[0])


def test_a_refit_changes_the_evaluation_but_not_that_of_the_dense_network(write_config: WriteConfig) -> None:
    path = write_config()
    losses = {}
    for rule in ("none", "least_squares"):
        config = load(path, ["selection.criterion=magnitude", f"recovery.reconstruction={rule}"])
        workload = load_workload(config)
        evaluator, spec = make_evaluator(config, workload), workload.trace.network
        half = spec.policy(spec.kept_array(spec.dense) // 2)
        losses[rule] = evaluator.evaluate(spec.dense).loss, evaluator.evaluate(half).loss
    assert losses["none"][0] == losses["least_squares"][0]
    assert losses["none"][1] != losses["least_squares"][1]


def test_a_search_by_a_selector_is_the_same_with_workers(write_config: WriteConfig, tmp_path: Path) -> None:
    options = ["--set", "selection.selector=obc", "--set", "search.agent=random", "--set", "search.trials=4"]
    options += ["--set", "search.baseline=null", "--set", "search.batch=2"]
    tables = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        assert main(["search", str(write_config()), "--out", str(folder), *options, "--workers", workers]) == 0
        tables.append(pd.read_csv(folder / "trials.csv").drop(columns="seconds"))
        assert json.loads((folder / "summary.json").read_text())["onnx_max_abs_diff"] < 1e-4
    pd.testing.assert_frame_equal(*tables, atol=1e-5)


def test_a_search_starts_from_the_exact_allocation_and_the_uniform_policy_and_resumes_so(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load(write_config(), ["selection.selector=obc", "model.pretrain=null"])
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    exact = Allocator(job.device.feasible).best(removal_errors(job.device.space, job.errors))
    expected = [job.workload.trace.network.policy(kept) for kept in (exact, job.device.feasible.largest_uniform())]
    options = ["--set", "selection.selector=obc", "--set", "search.trials=4", "--set", "model.pretrain=null"]
    command = ["search", str(write_config()), *options, "--out"]
    folder = tmp_path / "run"
    assert main([*command, str(folder)]) == 0
    trials = pd.read_csv(folder / "trials.csv")
    agent, baseline = (trials[trials["agent"] == name] for name in ("ddpg", "random"))
    assert [PruningPolicy(json.loads(text)) for text in agent["policy"][:2]] == expected
    assert len(agent) == len(baseline) == 4
    assert PruningPolicy(json.loads(baseline["policy"].iloc[0])) != expected[0]
    assert main([*command, str(folder), "--resume"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(folder / "trials.csv"), trials)
    none = tmp_path / "none"
    assert main([*command, str(none), "--set", "search.start=none"]) == 0
    first = pd.read_csv(none / "trials.csv")["policy"].iloc[0]
    assert PruningPolicy(json.loads(first)) not in expected


def test_a_search_that_names_no_selection_says_and_keeps_what_was_chosen_and_resumes(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, line = tmp_path / "run", f"obc, by default: {REFITTED}"
    options = ["selection.criterion=null", "model.pretrain=null", "search.trials=3", "search.baseline=null"]
    sets = [part for option in options for part in ("--set", option)]
    asked = ["search", str(write_config()), *sets]
    assert main([*asked, "--out", str(folder)]) == 0
    captured = capsys.readouterr()
    assert f"selection: {line}" in captured.out.splitlines()
    assert f"Ranking channels by {line}" in captured.err
    written = (folder / "config.yaml").read_text()
    assert written.splitlines()[1] == f"# selection: {line}"
    assert load(folder / "config.yaml").selection.selector == "obc"
    assert json.loads((folder / "summary.json").read_text())["selection"] == line
    assert line in (folder / "report.html").read_text()
    trials, tuned = (folder / "trials.csv").read_text(), ["--set", "recovery.finetune.learning_rate=0.01"]
    for command in (["search", str(folder / "config.yaml")], [*asked, "--out", str(folder), *tuned]):
        assert main([*command, "--resume"]) == 0
        assert (folder / "trials.csv").read_text() == trials
        assert json.loads((folder / "summary.json").read_text())["selection"] == line
    assert (folder / "config.yaml").read_text().splitlines()[1] == f"# selection: {line}"
    assert main([*asked, "--out", str(folder), "--resume", "--set", "selection.criterion=taylor"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_run_that_began_with_another_default_goes_on_with_it(write_config: WriteConfig, tmp_path: Path) -> None:
    begun = load(write_config())  # a release before wrote the default, taylor
    with RunFolder.create(tmp_path / "run", dump(begun), config_hash(begun), resume=False) as run:
        config = load(write_config(), ["selection.criterion=null"])
        assert with_selection(config, load_workload(config, train=False), run=run) == (begun, "taylor")


def chosen(model: nn.Module, x: Tensor, given: InMemory | None = None, **settings: object) -> tuple[str | None, ...]:
    """Selector and criterion that a configuration ends with, and the line that says so."""
    keys = {"data.splits": {"calibration": 16, "search": 32, "test": 32}, **settings}
    data = (x, torch.arange(len(x)) % 3)
    config, held = make_request(None, keys, {}, model.eval(), data)
    workload = load_workload(config, held, train=False)
    config, line = with_selection(config, workload, given or held)
    return config.selection.selector, config.selection.criterion, line


def test_the_network_and_the_data_choose_the_selection() -> None:
    torch.manual_seed(0)
    x = torch.randn(120, 1, 6, 6)
    plain = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    turned = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    assert chosen(plain, x) == ("obc", None, f"obc, by default: {REFITTED}")
    why = "not obc, because no convolution or linear layer reads group '0'"
    assert chosen(turned, x) == (None, "taylor", f"taylor, by default: {why}")
    dense = {"data.targets": "dense", "task": "embedding"}
    assert chosen(turned, x, **dense) == (None, "magnitude", f"magnitude, by default: {why}")
    few = {"data.splits": {"calibration": 3, "search": 32, "test": 32}}
    why = "not obc, because there are 3 calibration samples, and its refit needs 4"
    assert chosen(plain, x, **few) == (None, "wanda_channels", f"wanda_channels, by default: {why}")
    assert chosen(plain, x, **few, **dense) == (None, "wanda_channels", f"wanda_channels, by default: {why}")
    why = "not obc, because recovery.reconstruction is none"
    unrefitted = {"recovery.reconstruction": "none"}
    assert chosen(plain, x, **unrefitted) == (None, "wanda_channels", f"wanda_channels, by default: {why}")
    assert chosen(plain, x, **{"selection.criterion": "magnitude"}) == (None, "magnitude", "magnitude")
    assert chosen(plain, x, **{"selection.selector": "lasso"}) == ("lasso", None, "lasso")
    assert chosen(plain, x, InMemory(criterion=CRITERIA["magnitude"]()))[:2] == (None, None)  # as it was handed over


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.selector=thinnet", ["selection.selector = 'thinnet'", "did you mean 'thinet'"]),
        ("recovery.reconstruction=obc", ["recovery.reconstruction", "least_squares"]),
        ("selection={params: {power: 2.0}}", ["selection", "neither is named; name one"]),
    ],
)
def test_a_bad_name_is_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
) -> None:
    assert main(["search", str(write_config()), "--out", str(tmp_path / "run"), "--set", override]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words)
