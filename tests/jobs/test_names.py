"""Names of registries in a configuration: a wrong one is refused, with the known ones, before any work."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.config import load
from amcsearch.jobs.setup import make_evaluator
from amcsearch.jobs.workload import load_workload

WriteConfig = Callable[..., Path]
TARGET = ["--target", "macs=0.5x"]
CUBIK = ["--set", "sparsify={method: iterative, params: {shape: cubik}}"]
WEIGHTED = "search.reward={name: weighted_sum, params: {latency_ms: 1.0}}"
WEIGHS = ["--set", "search.reward.name=weighted_sum", "--set", "device.profile=null", "--set"]
SEVERAL = "search.objectives=[accuracy, macs]"


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("search", ["--set", "search.agent=ppo"], "search.agent = 'ppo' is unknown"),
        ("search", ["--set", "search.reward.name=luck"], "search.reward.name = 'luck' is unknown"),
        ("search", ["--set", "selection.criterion=taylr"], "did you mean 'taylor'"),
        ("search", ["--set", "selection.params={variant: gates}"], "selection.params.variant = 'gates'"),
        ("search", ["--set", "selection.selector=thinnet"], "did you mean 'thinet'"),
        ("search", ["--set", "recovery.reconstruction=obc"], "auto, bias, least_squares, none, scales, sequential"),
        ("search", ["--dry-run", "--set", "search.agent=ppo"], "search.agent = 'ppo' is unknown"),
        ("prune", [*TARGET, "--allocation", "globl"], "prune.allocation = 'globl' is unknown; did you mean 'global'"),
        ("prune", [*TARGET, "--allocation", "mine.py:Rule"], "known: auto, exact, global, per_cost, uniform"),
        ("prune", [*TARGET, "--round-shape", "round"], "known: cubic, geometric, linear"),
        ("prune", [*TARGET, "--set", "prune.normaliser=median"], "known: l2, lamp, max, mean, none, standardise, sum"),
        ("prune", [*TARGET, "--set", "selection.criterion=taylr"], "did you mean 'taylor'"),
        ("sparsify", ["--set", "sparsify.method=rigel"], "did you mean 'rigl'"),
        ("sparsify", ["--set", "sparsify.criterion=size"], "sparsify.criterion = 'size' is unknown"),
        ("sparsify", CUBIK, "iterative: shape = 'cubik' is unknown; known: geometric, linear, cubic"),
        ("sparsify", ["--set", "sparsify.storage=zip"], "'bitmap', 'csr' or 'run_length'"),
        ("sensitivity", ["--set", "selection.criterion=taylr"], "did you mean 'taylor'"),
        ("search", ["--set", "evaluation.torch_device=cuda:99"], "'cuda:99' is not available here; choose one of cpu"),
        ("search", ["--dry-run", "--set", "evaluation.torch_device=meta"], "'meta' is not available here"),
        ("prune", [*TARGET, "--set", "evaluation.torch_device=gpu"], "'gpu' is no device of torch; choose one of cpu"),
        ("sparsify", ["--set", "evaluation.torch_device=''"], "torch_device = '' is no device"),
        ("sensitivity", ["--set", "evaluation.torch_device=xla"], "'xla' is not available"),
        ("search", ["--set", "data.targets=dense"], "'taylor' looks at the gradient of the loss"),
        ("search", ["--set", "recovery.finetune={schedule: rewound, epochs: 999}"], "replays the last 999 epochs"),
        (
            "search",
            ["--set", SEVERAL, "--set", "search.agent=cmaes"],
            "cmaes optimises one objective, not accuracy, mac",
        ),
        ("search", [*WEIGHS, "device.table=auto"], "params.energy_mj = 0.1 (0 leaves it out) needs device."),
        ("search", [*WEIGHS, "device.table=null"], "search.reward.params.latency_ms = 0.1 (0 leaves it out) needs a"),
        ("search", ["--dry-run", *WEIGHS, "device.table=auto"], "search.reward.params.energy_mj = 0.1"),
        ("search", ["--storage", "nowhere"], "study storage nowhere cannot be used"),
        ("energy", ["--storage", "zip"], "storage = 'zip' is unknown; known: bitmap, csr, dense, run_length"),
    ],
)
def test_a_wrong_name_is_refused_before_work(
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("amcsearch.jobs.workload.call_factory", _no_work)
    assert main([verb, str(write_config()), "--out", str(tmp_path / "run"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch: ")]
    assert words in line


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("search", ["--set", "search.start=POLICY"], "does not fit the network"),
        ("search", ["--dry-run", "--set", "search.start=POLICY"], "does not fit the network"),
        ("prune", ["--policy", "POLICY"], "does not fit the network"),
        ("search", ["--set", WEIGHTED], "latency_ms = 1.0 (0 leaves it out) needs a latency table"),
        ("search", ["--dry-run", "--set", WEIGHTED], "latency_ms = 1.0 (0 leaves it out) needs a latency table"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_training(
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    options: list[str],
    words: str,
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"nowhere": 3}')
    monkeypatch.setattr("amcsearch.jobs.setup.end_workload", _no_work)
    monkeypatch.setattr(import_module("amcsearch.jobs.plan"), "choice_of", _no_work)
    options = [option.replace("POLICY", str(policy)) for option in options]
    assert main([verb, str(write_config()), "--out", str(tmp_path / "run"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch: ")]
    assert words in line


def _no_work(*_arguments: object, **_options: object) -> None:
    pytest.fail("the network or the data were made")


def test_an_alias_chooses_as_what_it_stands_for(write_config: WriteConfig) -> None:
    path = write_config()
    by_alias = load(path, ["selection.criterion=true_fisher"])
    workload = load_workload(by_alias)
    by_name = load(path, ["selection.criterion=fisher", "selection.params={labels: model}"])
    rankings = [make_evaluator(config, workload).ranking for config in (by_alias, by_name)]
    assert all((rankings[0][group] == rankings[1][group]).all() for group in rankings[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--points", "1"], "points = 1, must be at least 2"),
        (["--joint", "-1"], "joint = -1, must be at least 0"),
    ],
)
def test_sensitivity_refuses_its_counts_before_the_network_is_made(
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(import_module("amcsearch.jobs.sensitivity"), "load_workload", _no_work)
    assert main(["sensitivity", str(write_config()), "-o", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
