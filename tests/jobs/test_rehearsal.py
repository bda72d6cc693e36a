"""What would fail after a search fails before it: one rehearsal on a pruned copy names the step and the cure."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.core.errors import BadInputError, DivergedError
from amcsearch.jobs import rehearsal
from amcsearch.jobs.device import load_device
from amcsearch.jobs.workload import Workload, load_workload

WriteConfig = Callable[..., Path]
ODD = Path(__file__).parents[1] / "odd_networks.py"
NOT_TRAINED = ["--set", "model.pretrain=null"]

FAILING = {
    "frozen": ("a step of fine-tuning fails: recovery.finetune: no parameter of Tiny requires a gradient", "call req"),
    "NoTraining": ("a step of fine-tuning fails: training NoTraining in epoch 1 raised RuntimeError", "set recovery.f"),
    "NoExport": ("the export to ONNX fails: cannot export NoExport to ONNX", "make its forward traceable"),
    "NoKernel": ("a run in ONNX Runtime fails: ONNX Runtime cannot open the model", "choose another device.export.o"),
}


def refusal(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*map(str, arguments)]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("factory", list(FAILING))
def test_what_fails_after_a_search_is_refused_before_it(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: str
) -> None:
    config = [write_config(), "--set", f"model.factory={ODD}:{factory}"]
    config += NOT_TRAINED if factory == "frozen" else []
    for verb in (["search", "--dry-run"], ["search"], ["prune", "--target", "macs=0.5x"]):
        line = refusal([verb[0], *config, *verb[1:], "--out", tmp_path / verb[0]], capsys)
        assert line.startswith("amcsearch: rehearsal on a pruned copy, before the search: ")
        assert all(words in line for words in FAILING[factory])
    assert not (tmp_path / "cache").exists()  # nothing was trained
    assert not (tmp_path / "search" / "trials.csv").exists()


def test_a_frozen_network_is_searched_without_fine_tuning(write_config: WriteConfig, tmp_path: Path) -> None:
    """Criteria take gradients by detached leaves: nothing has to require one."""
    options = ["--set", f"model.factory={ODD}:frozen", *NOT_TRAINED, "--set", "recovery.finetune=null"]
    options += ["--set", "device.rounds=5", "--out", str(tmp_path / "run")]
    assert main(["search", str(write_config()), *options]) == 0
    assert main(["search", str(write_config()), *options[:-2], "--dry-run"]) == 0


def test_a_frozen_network_is_not_trained_first(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["search", write_config(), "--set", f"model.factory={ODD}:frozen", "--dry-run"], capsys)
    assert "model.pretrain: no parameter of Tiny requires a gradient" in line


def test_the_metric_is_rehearsed_and_a_step_that_diverges_is_not_judged(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config())
    workload = load_workload(config, train=False)
    device = load_device(config, workload, config.limits)

    def diverges(*_: object) -> None:
        raise DivergedError("loss is nan")

    def no_metric(*_: object, **__: object) -> None:
        raise KeyError("no such class")

    monkeypatch.setattr(rehearsal, "one_step", diverges)
    rehearsal.rehearse(config, workload, device)
    monkeypatch.setattr(rehearsal, "evaluate", no_metric)
    with pytest.raises(
        BadInputError, match=r"the metric of the delivered file fails: .*no such class.*; look at the t"
    ):
        rehearsal.rehearse(config, workload, device)


def test_where_the_budget_allows_everything_half_of_every_group_goes(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config())
    workload, widths = load_workload(config, train=False), []

    def note(_config: object, _workload: object, model: nn.Module, _given: object) -> None:
        widths.append(model.body[0].out_channels)

    monkeypatch.setattr(rehearsal, "one_step", note)
    rehearsal.rehearse(config, workload, load_device(config, workload, ()))
    assert widths == [12]  # of 24


def test_the_step_of_fine_tuning_takes_a_few_samples_however_large_the_batch(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def note(_config: object, workload: Workload, _model: object, _given: object) -> None:
        counts.append(len(workload.splits.train))

    monkeypatch.setattr(rehearsal, "one_step", note)
    for size in (64, 4):
        config = load(write_config(), [f"recovery.finetune.batch_size={size}"])
        workload = load_workload(config, train=False)
        rehearsal.rehearse(config, workload, load_device(config, workload, config.limits))
    assert counts == [8, 4]
