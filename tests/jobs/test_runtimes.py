"""The runtime that ``device.runtime`` names: used from the rehearsal to the delivered file, and refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.config import load
from amcsearch.core import BadInputError
from amcsearch.costs import LatencyTable
from amcsearch.costs.latency.rows import COLUMNS, make_rows
from amcsearch.jobs.device import load_device
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.rehearsal import rehearse
from amcsearch.jobs.runtimes import check_measurable, check_provider, runtime_of
from amcsearch.jobs.tables import measure_table
from amcsearch.jobs.workload import load_workload
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


def test_another_runtime_than_a_kits_makes_no_table(write_config: WriteConfig) -> None:
    config = load(write_config(), [f"device.runtime={EAGER}:EagerRuntime"])
    told = "device.runtime = .*EagerRuntime.: a latency table is measured in ONNX .*set device.runtime=onnxruntime"
    with pytest.raises(BadInputError, match=told):
        check_measurable(config)
    with pytest.raises(BadInputError, match=told):
        measure_table(config, Silent())


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
