"""Selectors and reconstruction from a configuration: what is chosen, what is refitted, and that a search uses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.core.policy import PruningPolicy
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.setup import assemble, make_evaluator
from amcsearch.jobs.workload import load_workload
from amcsearch.methods.selectors import SELECTORS
from amcsearch.search import Allocator, removal_errors

WriteConfig = Callable[..., Path]


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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.selector=thinnet", ["selection.selector = 'thinnet'", "did you mean 'thinet'"]),
        ("recovery.reconstruction=obc", ["recovery.reconstruction", "least_squares"]),
    ],
)
def test_a_bad_name_is_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
) -> None:
    assert main(["search", str(write_config()), "--out", str(tmp_path / "run"), "--set", override]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words)
