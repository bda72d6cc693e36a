"""Data sets that are read sample by sample: how much a job reads, what it holds, and that it computes the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.jobs import selection
from amcsearch.jobs.plan import _SampleSeconds, growth, plan
from amcsearch.jobs.workload import PLAN_SAMPLES, load_workload
from tests.command_line import run

FACTORIES = Path(__file__).parents[1] / "made_data.py"
CONFIG = f"""
name: any_size
model: {{factory: "{FACTORIES}:network"}}
data: {{factory: "{FACTORIES}:splits", kwargs: {{samples: 1000}}, splits: {{calibration: 64, search: 64, test: 64}}}}
device: {{channel_multiple: 4, rounds: 5}}
budget: {{macs: 0.6x}}
recovery: {{finetune: null}}
search: {{agent: random, trials: 3, baseline: null, finalists: 1}}
"""


def arguments(folder: Path, *settings: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    given = [part for setting in settings for part in ("--set", setting)]
    return ["search", str(folder / "config.yaml"), "--out", str(folder / "run"), *given]


def cost(folder: Path, samples: int, *more: str) -> dict[str, int]:
    """Samples read by a search in a train split of this length, and its peak memory."""
    report = folder.with_suffix(".json")
    said = arguments(folder, f"data.kwargs.samples={samples}", f"data.kwargs.report={report}")
    done = run([*said, *more])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(report.read_text())


def test_the_time_of_an_ordering_does_not_grow_with_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments(tmp_path / "a")
    select, now = selection.select, [0.0]

    def slow(*of: Any) -> Any:
        now[0] += 100.0
        return select(*of)

    monkeypatch.setattr(selection, "select", slow)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    planned = plan(load(tmp_path / "a" / "config.yaml", ["selection={selector: obc}"]))
    # a plan orders the larger of the two groups: 16 units, read by Gram matrices of 144 and of 16 columns
    assert planned.expected_seconds["ranking"] == pytest.approx(100.0 * (144**2 + 16**2) / 144**2)


@pytest.mark.parametrize(("targets_s", "computed"), [((10.0, 0.0), 2), ((0.0, 10.0), 1)])
def test_expected_times_count_the_samples_that_a_plan_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets_s: tuple[float, float], computed: int
) -> None:
    arguments(tmp_path / "a")
    finetune = "recovery.finetune={epochs: 2, batch_size: 32, learning_rate: 0.05, distillation: null}"
    settings = ["selection={selector: obc}", "data.targets=dense", finetune]
    monkeypatch.setattr(
        sys.modules[plan.__module__], "_sample_seconds", lambda *_: _SampleSeconds(1.0, 10.0, 100.0, *targets_s)
    )
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    planned = plan(load(tmp_path / "a" / "config.yaml", settings))
    train, expected = planned.samples["train"], planned.expected_seconds
    assert expected["costs"] == 3 * (64 - PLAN_SAMPLES) * 11 + train - PLAN_SAMPLES  # of train all are surveyed
    assert expected["network"] == 3 * 64 * 10  # their targets
    assert expected["finetune"] == 2 * train * 101 + computed * train * 10


def metrics(folder: Path, *settings: str) -> list[Any]:
    """What a search in this process says of the networks."""
    assert main(arguments(folder, *settings)) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return [(summary[name]["accuracy"], summary[name]["macs"]) for name in ("dense", "pruned", "finetuned")]


def test_a_dry_run_reads_tens_of_samples(tmp_path: Path) -> None:
    sizes = [f"--set=data.splits.{name}=2000" for name in ("calibration", "search", "test")]
    assert cost(tmp_path / "a", 100_000, "--dry-run", *sizes)["reads"] < 150


def test_a_plan_expects_the_time_of_all_samples_from_the_few_that_it_reads(tmp_path: Path) -> None:
    arguments(tmp_path / "a")
    workload = load_workload(load(tmp_path / "a" / "config.yaml"), train=False)
    assert len(workload.splits.search) == PLAN_SAMPLES
    assert growth(workload, "search") == 64 / PLAN_SAMPLES
    assert growth(workload, "calibration", "search") == 128 / (2 * PLAN_SAMPLES)


STREAMS = (f"data.factory={FACTORIES}:streams", "data.splits={calibration: 64}", "data.epoch_samples=1000")


@pytest.mark.parametrize("more", [(), STREAMS], ids=["map", "stream"])
def test_reads_and_memory_do_not_grow_with_the_train_split(tmp_path: Path, more: tuple[str, ...]) -> None:
    settings = [f"--set={setting}" for setting in more]
    few, many = (cost(tmp_path / name, size, *settings) for name, size in (("few", 10_000), ("many", 1_000_000)))
    assert many["reads"] == few["reads"] < 1500  # 1,024 of train, and those of the other splits
    assert many["peak_kib"] < few["peak_kib"] + 6 * 1024


@pytest.mark.parametrize("kind", ["map", "workers", "stream"])
def test_memory_of_a_training_grows_by_the_order_of_its_samples_alone(kind: str) -> None:
    code = f"import json, made_data; print(json.dumps(made_data.peaks_of_training({kind!r}, [10_000, 1_000_000])))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FACTORIES.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    few, many = json.loads(done.stdout)
    order_kib = 8 * 990_000 / 1024  # an int64 a sample, in the order of the epoch
    assert many["here"] < few["here"] + order_kib + 6 * 1024
    assert many["workers"] < few["workers"] + order_kib + 6 * 1024


def test_a_search_is_the_same_held_and_read_at_every_use(tmp_path: Path) -> None:
    held = metrics(tmp_path / "held")
    assert metrics(tmp_path / "read", "data.memory_mib=0.001") == held


def test_a_search_and_its_training_take_streams(tmp_path: Path) -> None:
    settings = (
        f"data.factory={FACTORIES}:streams",
        "data.kwargs={samples: 256}",
        "data.epoch_samples=128",
        "data.splits={calibration: 64}",
        "recovery.finetune={epochs: 2, batch_size: 32, learning_rate: 0.05}",
    )
    assert len(metrics(tmp_path / "a", *settings)) == 3


WIDTHS = (f"data.factory={FACTORIES}:widths", f"data.collate={FACTORIES}:padded")


def test_padded_batches_of_various_shapes_need_a_free_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "a", *WIDTHS)) == 2
    said = capsys.readouterr().err
    assert "axis 3 of input has the lengths 9 and 10" in said
    assert "device.export.dynamic: {length: {input: 3}}" in said


def test_files_of_a_free_axis_take_batches_of_various_shapes(tmp_path: Path) -> None:
    metrics(tmp_path / "a", *WIDTHS, "device.export={dynamic: [batch, width]}")
    program = torch.export.load(tmp_path / "a" / "run" / "pruned.pt2").module()
    for width in (8, 11):
        assert program(torch.zeros(3, 1, 8, width)).shape == (3, 4)
