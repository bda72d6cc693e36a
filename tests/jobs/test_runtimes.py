"""The runtime that ``device.runtime`` names: used from the rehearsal to the delivered file, and refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amcsearch.cli.main import main
from amcsearch.config import load, read_latency_table
from amcsearch.core import BadInputError
from amcsearch.costs import LatencyTable
from amcsearch.costs.latency.rows import COLUMNS, NO_KERNEL, make_rows
from amcsearch.jobs.device import load_device
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.rehearsal import rehearse
from amcsearch.jobs.runtimes import check_provider, runtime_of
from amcsearch.jobs.table_check import check_table, is_of_machine, machine_folder
from amcsearch.jobs.tables import make_kit
from amcsearch.jobs.workload import load_workload
from amcsearch.measure.kit.kit import KitPlan
from amcsearch.measure.plan.measurement_plan import measurement_plan
from amcsearch.runtime import OnnxRuntime

WriteConfig = Callable[..., Path]


class Silent(Observer):
    """Shows nothing."""


EAGER = Path(__file__).parents[1] / "eager_runtime.py"


def test_a_search_measures_delivers_and_checks_in_a_runtime_of_ones_own(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = write_config()
    config.write_text(config.read_text().replace("agent: ddpg, trials: 12", "agent: random, trials: 4"))
    runtime = f"device.runtime={EAGER}:EagerRuntime"
    assert main(["search", str(config), "--out", str(folder), "--set", runtime]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["device"]["runtime"].startswith("eager ")
    names = [file["name"] for file in summary["files"]]
    assert names == ["pruned.onnx", "pruned.eager", "pruned.safetensors", "pruned.pt2"]
    assert all(file["problem"] is None and file["samples"] for file in summary["files"])
    assert summary["finetuned"]["latency_ms_measured"]["median"] > 0.0
    assert (folder / "pruned.eager").stat().st_size
    page = (folder / "report.html").read_text()
    assert "pruned.eager" in page
    assert summary["device"]["runtime"] in page


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoExport", "before the search: the export for device.runtime fails: eager cannot hold .*; avoid what it"),
        ("Wrong", "a run in device.runtime fails: beside torch, wrong differs by .*set device.runtime: onnxruntime"),
    ],
)
def test_what_a_runtime_cannot_do_is_refused_before_the_search(write_config: WriteConfig, name: str, told: str) -> None:
    config = load(write_config(), [f"device.runtime={EAGER}:{name}"])
    workload = load_workload(config, train=False)
    with pytest.raises(BadInputError, match=told):
        rehearse(config, workload, load_device(config, workload, config.limits))


def test_the_runtime_is_made_of_the_section_device(write_config: WriteConfig) -> None:
    runtime = runtime_of(load(write_config(), ["device.threads=3", "device.provider=OpenVINO"]))
    assert isinstance(runtime, OnnxRuntime)
    assert (runtime.threads, runtime.provider) == (3, "OpenVINO")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (f"device.runtime={EAGER}:Taken", r"suffix = '\.pt2', expected a dot .* none of \.safetensors, \.pt2"),
        ("device.runtime=onnxruntim", "device.runtime = 'onnxruntim' is unknown; did you mean .*onnxruntime"),
        ("device.runtime=collections:OrderedDict", "device.runtime = 'collections:OrderedDict': "),
        (
            f"device.runtime={EAGER}:Named",
            "name = 'onnxruntime', and 'onnxruntime' is the name of amcsearch",
        ),
        (
            f"device.runtime={EAGER}:EagerRuntime device.dtype=int8",
            "device.dtype is int8, runtime eager computes in float32; set",
        ),
    ],
)
def test_what_is_no_runtime_or_lacks_the_data_type_is_refused(
    write_config: WriteConfig, setting: str, told: str
) -> None:
    with pytest.raises(BadInputError, match=told):
        runtime_of(load(write_config(), setting.split()))


def test_a_runtime_of_an_absent_device_is_refused(write_config: WriteConfig) -> None:
    with pytest.raises(BadInputError, match=r"EagerRuntime' is used on this machine alone, location is 'pi5'"):
        load(write_config(), [f"device.runtime={EAGER}:EagerRuntime", "device.location=pi5"])


def test_another_runtime_than_a_kits_has_no_kit(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load(write_config(), [f"device.runtime={EAGER}:EagerRuntime"])
    told = r"device.runtime = .*EagerRuntime.: a kit measures with ONNX Runtime alone; measure on this machine, .*table"
    with pytest.raises(BadInputError, match=told):
        make_kit([config], tmp_path / "kit.pyz", Silent())


@pytest.mark.parametrize(
    ("runtime", "provider"),
    [
        (f"{EAGER}:EagerRuntime", "CPU"),
        pytest.param("executorch", "XNNPACK", marks=pytest.mark.slow),  # some seconds of export for each variant
    ],
)
def test_a_table_of_another_runtime_is_made_of_whole_runs(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, provider: str
) -> None:
    if runtime == "executorch":
        pytest.importorskip(runtime)
    monkeypatch.setattr("amcsearch.jobs.tables.measurement_plan", _quick_plan)
    monkeypatch.setattr("amcsearch.jobs.table_check.measurement_plan", _quick_plan)
    path, folder, setting = write_config(), tmp_path / "table", ["--set", f"device.runtime={runtime}"]
    assert main(["table", "measure", str(path), "--variants", "12", "-o", str(folder), *setting]) == 0
    table = read_latency_table(folder)
    name = runtime.rpartition(":")[2].removesuffix("Runtime").lower()
    assert (table.provenance.runtime, table.provenance.provider) == (name, provider)
    assert set(table.rows.loc[table.rows["kernel"] != NO_KERNEL, "source"]) == {"runs"}
    (entry,) = table.networks.values()
    assert entry.calibration is not None
    assert entry.calibration.profile_scale is None
    assert entry.accuracy is not None
    assert entry.accuracy.variants == 12

    config = load(path, [f"device.runtime={runtime}", f"device.table={folder}"])
    assert is_of_machine(table, config)
    device = load_device(config, load_workload(config, train=False), config.limits)
    assert 0.0 < device.dense["latency_ms"] < 1e3
    checked = check_table(table, config, Silent(), fresh=3, anchors=4, seed=1)
    assert checked.after is not None
    assert checked.after.variants == 3
    assert machine_folder(config) != machine_folder(load(path))
    assert name in machine_folder(config).name


def _quick_plan(*subjects: Any, **settings: Any) -> KitPlan:
    return replace(measurement_plan(*subjects, **settings), passes=2, rounds=2, sample_ms=0.05)


def test_a_table_of_another_runtime_is_refused(write_config: WriteConfig) -> None:
    row = dict.fromkeys(COLUMNS, 1) | {"network": "net", "layer": "conv", "kind": "conv", "source": "profile"}
    info = {"provenance": {"cpu": "another"}, "networks": {"net": {"constant_ms": 0.01}}}
    table = LatencyTable.from_mapping(make_rows([row]), info)
    eager = load(write_config(), [f"device.runtime={EAGER}:EagerRuntime"])
    for there in (None, "onnxruntime"):
        other = replace(table, provenance=replace(table.provenance, runtime=there))
        check_provider(other, load(write_config()), "the table")
        with pytest.raises(BadInputError, match=r"device\.runtime is eager, the table was measured with onnxruntime: "):
            check_provider(other, eager, "the table")
    other = replace(table, provenance=replace(table.provenance, runtime="eager"))
    with pytest.raises(BadInputError, match=r"device\.runtime is onnxruntime, the table was measured with eager"):
        check_provider(other, load(write_config()), "the table")
