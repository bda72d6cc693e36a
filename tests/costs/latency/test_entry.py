"""Documents: values there and back, keys nobody knows, and what a value cannot be."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.costs.latency.cache import CacheOverflow
from amcsearch.costs.latency.entry import Accuracy, ChannelGrid, GridStep, NetworkEntry, Provenance, Sigma
from amcsearch.runtime.on_device.provenance import ONNXRUNTIME as ON_DEVICE

ENTRY: dict[str, Any] = {
    "fingerprint": "6b63493749db",
    "comment": {"of": ["a", "stranger"]},
    "weights_mib": 1.5,
    "constant_ms": 0.25,
    "residency": {"2.0": 0.5},
    "channel_grid": {"tried": [{"multiple": 8, "macs_saved": 0.5, "time_saved": -0.1}], "rule": "none", "why": None},
    "accuracy": {"spearman": None, "mape": 0.02, "of": "today"},
    "notes": [],
    "drift": None,
}


def test_an_entry_by_hand() -> None:
    entry = NetworkEntry.from_mapping(ENTRY)
    assert (entry.fingerprint, entry.weights_mib, entry.constant_ms, entry.smoothing) == (
        "6b63493749db",
        1.5,
        0.25,
        0.0,
    )
    assert entry.residency == CacheOverflow({2.0: 0.5})
    assert entry.notes == ()
    assert NetworkEntry.from_mapping({**ENTRY, "notes": ["shaky", 3]}).notes == ("shaky", "3")
    assert entry.sigma == Sigma(floor=0.03, per_octave=0.1)
    assert entry.channel_grid is not None
    assert entry.channel_grid.tried == (GridStep(8, 0.5, -0.1),)
    assert entry.accuracy is not None
    assert (entry.accuracy.mape, entry.accuracy.extra) == (0.02, {"of": "today"})
    assert entry.extra == {"comment": {"of": ["a", "stranger"]}}


def test_a_file_comes_back_in_its_order_with_what_nobody_knows() -> None:
    again = NetworkEntry.from_mapping(ENTRY).as_mapping()
    assert again == ENTRY
    assert list(again) == list(ENTRY)
    assert list(again["channel_grid"]) == list(ENTRY["channel_grid"])


def test_what_is_changed_keeps_its_place_and_what_is_new_comes_last() -> None:
    entry = replace(NetworkEntry.from_mapping(ENTRY), constant_ms=0.5, channel_multiple=4)
    assert entry.as_mapping() == {**ENTRY, "constant_ms": 0.5, "channel_multiple": 4}
    assert list(entry.as_mapping()) == [*ENTRY, "channel_multiple"]


def test_a_new_entry_says_that_it_was_not_checked() -> None:
    new = NetworkEntry(constant_ms=0.5, accuracy=None).as_mapping()
    sigma = {"floor": 0.03, "per_octave": 0.1}
    assert new == {"constant_ms": 0.5, "smoothing": 0.0, "residency": {}, "sigma": sigma, "accuracy": None}
    assert Accuracy(mape=0.5).as_mapping() == {"mape": 0.5, "spearman": None, "noise_mape": None}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.integers()))


@given(
    st.dictionaries(st.text(), VALUES),
    st.fixed_dictionaries(
        {}, optional={"cpu": st.text(), "threads": st.integers(1, 9) | st.none(), "dtype": st.none()}
    ),
)
def test_any_provenance_comes_back(unknown: dict[str, Any], known: dict[str, Any]) -> None:
    known_names = {"cpu", "cpu_flags", "cores", "ort_version", "provider", "threads", "batch", "dtype"}
    known_names |= {"optimisation", "nchwc_block", "timestamp"}
    data = {**{key: value for key, value in unknown.items() if key not in known_names}, **known}
    provenance = Provenance.from_mapping(data)
    assert provenance.as_mapping() == data
    assert list(provenance.as_mapping()) == list(data)
    assert Provenance.from_mapping(provenance.as_mapping()) == provenance


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "constant_ms = None, must be a finite number of at least 0"),
        ({"constant_ms": True}, "constant_ms = True"),
        ({"constant_ms": 0.1, "channel_multiple": 1.5}, "channel_multiple = 1.5, must be a whole number"),
        ({"constant_ms": 0.1, "sigma": {"floor": -1}}, "floor = -1"),
        ({"constant_ms": 0.1, "sigma": 1.0}, "sigma = 1.0, must be a mapping"),
        ({"constant_ms": 0.1, "notes": "none"}, "notes = 'none', must be a list"),
        ({"constant_ms": 0.1, "channel_grid": {"tried": "none"}}, "tried = 'none', must be a list"),
        ({"constant_ms": 0.1, "anchors": {"factors": {"Conv": "big"}}}, "factors.Conv = 'big'"),
        ({"constant_ms": 0.1, "channel_grid": {"tried": [{"multiple": 8}]}}, "macs_saved = None"),
    ],
)
def test_impossible_values_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        NetworkEntry.from_mapping(wrong)


def test_a_document_is_checked_however_it_is_made() -> None:
    with pytest.raises(BadInputError, match="constant_ms = -1"):
        NetworkEntry(constant_ms=-1)
    with pytest.raises(BadInputError, match="threads = 'all'"):
        Provenance(threads="all")  # type: ignore[arg-type]
    assert ChannelGrid(rule="r", tried=({"multiple": 2, "macs_saved": 1, "time_saved": 0},)).tried == (  # type: ignore[arg-type]
        GridStep(2, 1.0, 0.0),
    )


def test_an_accuracy_that_is_no_number_is_not_known() -> None:
    assert Accuracy.from_mapping({"mape": "small"}) == Accuracy()


def test_a_weight_takes_the_bytes_of_its_data_type() -> None:
    assert [Provenance(dtype=name).weight_bytes for name in (None, "float32", "float16", "int8")] == [4, 4, 2, 1]


@pytest.mark.parametrize(
    ("where", "name", "label"),
    [
        (Provenance(), "onnxruntime", "ONNX Runtime"),
        (Provenance(ort_version="1.20.1"), "onnxruntime", "ONNX Runtime 1.20.1"),
        (Provenance(runtime="onnxruntime", ort_version="1.20.1"), "onnxruntime", "ONNX Runtime 1.20.1"),
        (Provenance(runtime="executorch", runtime_version="1.0"), "executorch", "executorch 1.0"),
        (Provenance(runtime="executorch", ort_version="1.20.1"), "executorch", "executorch"),
    ],
)
def test_a_table_is_of_onnx_runtime_unless_it_says_otherwise(where: Provenance, name: str, label: str) -> None:
    assert (where.runtime_name, where.is_onnx_runtime) == (name, name == ON_DEVICE)
    assert where.runtime_label == label
