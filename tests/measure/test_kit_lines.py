"""Lines with a right checksum and a wrong content."""

import base64
import json
import zlib
from pathlib import Path

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.measure.kit.kit import device_plan
from amcsearch.measure.kit.kit_results import MOST_GRAPH_BYTES, read_results
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import read_plan
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.records import encoded


@pytest.fixture(scope="module")
def records(tmp_path_factory, small_plan, fake_clock):
    path = tmp_path_factory.mktemp("result") / "r.jsonl"
    run(device_plan(small_plan()), path, Settings(), clock=fake_clock())
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(records, path):
    path.write_bytes(b"".join(map(encoded, records)))
    return read_results([path])[0]


def changed(records, kind, **content):
    """The records with those keys of the first of a kind changed; a key with ``...`` is dropped."""
    at = next(i for i, record in enumerate(records) if record["kind"] == kind)
    merged = {**records[at], **content}
    return [*records[:at], {key: value for key, value in merged.items() if value is not ...}, *records[at + 1 :]]


def plan_changed(records, **content):
    return changed(records, "header", plan={**records[0]["plan"], **content})


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("timing", {"samples_ms": ...}, "the timing record lacks samples_ms"),
        ("timing", {"samples_ms": 3}, "samples_ms is 3, expected a list"),
        ("timing", {"samples_ms": [None]}, "samples_ms holds null, expected a number"),
        ("timing", {"samples_ms": ["fast"]}, r"samples_ms\[0\] is 'fast', expected a number"),
        ("timing", {"samples_ms": [10**400]}, r"samples_ms\[0\] is 1000.*expected a number of at most"),
        ("timing", {"samples_ms": [1.0] * 5, "reference_ms": [1.0] * 5}, "5 samples .* 1 to 4 for 2 rounds"),
        ("timing", {"reference_ms": []}, "samples beside 0 of the reference"),
        ("timing", {"pass": 3}, "pass = 3, the plan has 1 to 2"),
        ("timing", {"pass": "1"}, "pass is '1', expected a whole number"),
        ("timing", {"model": "other"}, "model 'other' is not in the plan"),
        ("timing", {"reference": "other"}, "model 'other' is not in the plan"),
        ("overhead", {"samples_ms": None}, "samples_ms is None"),
        ("profile", {"nodes": [["a"]]}, "node 1 has 1 parts, expected 5"),
        ("profile", {"nodes": [["a", "Conv", "slow", [], []]]}, "node 1 is 'slow', expected a number"),
        ("profile", {"nodes": [["a", "Conv", None, [], []]]}, "node 1 holds null"),
        ("graph", {"graph": 5}, "graph is 5, expected a text"),
        ("header", {"part": "one"}, "part is 'one'"),
        ("header", {"plan": []}, "plan is \\[\\], expected an object"),
        ("header", {"provenance": None}, "provenance is None"),
        ("header", {"plan_hash": 1}, "plan_hash is 1"),
        ("header", {"kit_version": [1]}, r"kit version \[1\]"),
    ],
)
def test_a_field_of_another_type_or_count_is_named_by_its_line(records, tmp_path: Path, kind, content, words) -> None:
    with pytest.raises(BadInputError, match=rf"r\.jsonl, line [0-9]+: .*{words}"):
        read(changed(records, kind, **content), tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"passes": 10**9}, "passes = 1000000000, must be from 1 to 1000"),
        ({"passes": 0}, "passes = 0"),
        ({"rounds": 10**9}, "rounds = 1000000000"),
        ({"models": {}}, "models is {}, expected a list"),
        ({"models": [{"id": 1}]}, "lacks meta, network, policy"),
        ({"info": 3}, "info is 3, expected an object"),
    ],
)
def test_a_plan_is_held_to_bounds_before_anything_is_made_of_it(records, tmp_path: Path, content, words) -> None:
    with pytest.raises(BadInputError, match=words):
        read(plan_changed(records, **content), tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ("not base64", "graph cannot be read"),
        (base64.b64encode(b"not zlib").decode(), "graph cannot be read"),
        (base64.b64encode(zlib.compress(b"no protobuf")).decode(), "graph cannot be read"),
        (base64.b64encode(zlib.compress(bytes(MOST_GRAPH_BYTES + 1))).decode(), f"more than {MOST_GRAPH_BYTES} bytes"),
    ],
)
def test_a_graph_that_is_none_or_too_large_names_its_model(records, tmp_path: Path, packed, words) -> None:
    result = read(changed(records, "graph", graph=packed), tmp_path / "r.jsonl")
    (model,) = (m for m in result.models if m.packed_graph == packed)
    with pytest.raises(BadInputError, match=f"model '{model.id}': its {words}|{words}"):
        assert model.graph


def test_a_line_without_end_of_nesting_is_damage(records, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"".join(map(encoded, records)) + b"[" * 100_000 + b"\n")
    with pytest.raises(BadInputError, match="does not match its checksum"):
        read_results([path])


def test_what_is_no_kit_is_never_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "kit.pyz").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "kit.pyz", tmp_path / "folder", tmp_path / "none"):
        with pytest.raises(DeviceError, match=r"is not a whole kit .*it is no file"):
            read_plan(path)
