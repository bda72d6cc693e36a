"""Plans of a hostile server: each is refused in one line, and nothing of it is used."""

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amcsearch.measure.kit.kit import device_plan, plan_archive
from amcsearch.runtime.on_device import untrusted
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.protobuf import external_data
from amcsearch.runtime.on_device.untrusted import MOST_ARCHIVE_BYTES, checked_plan

Files = dict[str, bytes]


@pytest.fixture(scope="session")
def files(small_plan: Callable[..., Any]) -> Files:
    """Files of an honest plan's archive."""
    with zipfile.ZipFile(io.BytesIO(plan_archive(device_plan(small_plan())))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def refused(content: bytes, expected: str | None = None) -> str:
    with pytest.raises(DeviceError) as error:
        checked_plan(content, expected)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) <= 400
    return text


def test_an_honest_plan_is_what_it_was(small_plan: Callable[..., Any]) -> None:
    plan = device_plan(small_plan())
    checked = checked_plan(plan_archive(plan), plan.hash)
    assert checked.hash == plan.hash
    assert checked.entries == plan.entries
    assert "its hash is" in refused(plan_archive(plan), "0" * 64)


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("version",), 99, "version 99"),
        (("passes",), 10**9, "passes is 1000000000, must be a whole number from 1 to 1000"),
        (("rounds",), -1, "rounds is -1"),
        (("rounds",), True, "rounds is True"),
        (("sample_ms",), float("inf"), "sample_ms is inf"),
        (("sample_ms",), "fast", "sample_ms is 'fast'"),
        (("models",), {}, "models is dict, must be a list"),
        (("models",), [], "0 models"),
        (("models", 0, "id"), "w\n64", "id of a model"),
        (("models", 0, "id"), "w16", "3 models have 2 different ids"),
        (("models", 0, "role"), "train", "has 0 timed references"),
        (("models", 0, "timed"), 1, "timed of model"),
        (("models", 0, "file"), "../../etc/passwd", "which the archive does not hold"),
        (("models", 0, "network"), "other", "which has no input"),
        (("models", 0, "weights"), [["w", [2**31, 2**31], "float32", 1.0]], "at most 2147483648 are possible"),
        (("models", 0, "weights"), [["w", [-1], "float32", 1.0]], "must be a whole number from 0"),
        (("models", 0, "weights"), [["w", [1], "object", 1.0]], "is of type 'object'"),
        (("models", 0, "weights"), [["w"]], "must be a list of name, shape, type and scale"),
        (("inputs", "net", "shape"), [2**20, 2**20], "at most 67108864 are possible"),
        (("inputs", "net", "shape"), [1] * 99, "must be a list of at most 8 items"),
        (("inputs", "net", "dtype"), "O", "is of type 'O'"),
        (("inputs", "net", "high"), 0, "high of an input"),
        (("setting",), {"threads": 0}, "threads of the setting is 0, must be a whole number from 1 to 1024"),
        (("setting",), {"threads": 1.5}, "threads of the setting is 1.5"),
        (("setting",), {"provider": ["CPU"]}, "provider of the setting is ['CPU'], must be a text"),
    ],
)
def test_values_out_of_range_are_refused(files: Files, keys: tuple[Any, ...], value: object, told: str) -> None:
    plan = json.loads(files["plan.json"])
    inner = plan
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    assert told in refused(archived({**files, "plan.json": json.dumps(plan).encode()}))


def test_a_plan_that_takes_days_is_refused(files: Files) -> None:
    plan = json.loads(files["plan.json"]) | {"passes": 1000, "rounds": 100_000, "sample_ms": 1000.0}
    assert "at most 86400 are measured" in refused(archived({**files, "plan.json": json.dumps(plan).encode()}))


@pytest.mark.parametrize(
    "name", ["models/../../home/pi/.bashrc", "/etc/passwd", "models/0000.onnx.py", "__main__.py", "models/c:\\x.onnx"]
)
def test_a_path_in_a_name_is_refused(files: Files, name: str) -> None:
    assert "holds a file named" in refused(archived({**files, name: b"x"}))


def test_archives_that_are_none_too_large_or_cut_off_are_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "it is damaged" in refused(b"PK\x03\x04nothing")
    assert "it is damaged" in refused(archived(files)[:-100])
    assert f"at most {MOST_ARCHIVE_BYTES} are read" in refused(bytes(MOST_ARCHIVE_BYTES + 1))
    monkeypatch.setattr(untrusted, "MOST_UNPACKED_BYTES", 2**20)
    bomb = {**files, "models/9999.onnx": bytes(2**21)}  # packed, a few KiB
    assert "it declares" in refused(archived(bomb))
    assert "it lacks empty" in refused(archived({name: c for name, c in files.items() if name != "models/empty"}))
    assert "it is damaged" in refused(archived({**files, "plan.json": b"[" * 10**5}))


def test_an_archive_that_asks_for_memory_to_unpack_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:  # its dictionary may have 4 GiB
        for name, content in files.items():
            archive.writestr(name, content)
    assert "it is packed by method 14, must be by 0 or 8" in refused(stream.getvalue())
    monkeypatch.setattr(untrusted, "MOST_PLAN_BYTES", 2**16)
    plan = json.loads(files["plan.json"]) | {"info": {"x": "y" * 2**16}}
    told = refused(archived({**files, "plan.json": json.dumps(plan).encode()}))
    assert "plan.json has " in told
    assert "bytes, at most 65536 are read" in told


def _elsewhere(kind: str) -> bytes:
    """A model with a tensor whose data lie in another file: an initializer, a constant, or one in a branch."""
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    port = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])
    inner = helper.make_graph([constant], "inner", [], [port])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    branch = helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)
    graphs = {
        "initializer": helper.make_graph([], "g", [], [port], [tensor]),
        "constant": inner,
        "branch": helper.make_graph([branch], "g", [condition], [port]),
    }
    return bytes(helper.make_model(graphs[kind]).SerializeToString())


@pytest.mark.parametrize("kind", ["initializer", "constant", "branch"])
def test_a_model_that_reads_another_file_is_refused(files: Files, kind: str) -> None:
    model = _elsewhere(kind)
    assert onnx.load_from_string(model)
    assert external_data(model)
    assert "0000.onnx keeps data in another file" in refused(archived({**files, "models/0000.onnx": model}))
    assert not any(external_data(content) for name, content in files.items() if name != "plan.json")
