"""The table as a cost: rows, what lies between them, what is missing, and where it was measured."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from amcsearch.core import BadInputError, LayerKind, LayerSpec
from amcsearch.costs import LatencyTable
from amcsearch.costs.latency_table import COLUMNS, make_rows, read_rows, row_key, write_rows

CONV = LayerSpec("c", LayerKind.CONV, 32, 32, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
FC = LayerSpec("fc", LayerKind.LINEAR, 32, 10, has_bias=True)
DEPTHWISE = replace(CONV, conv_groups=32)
INFO: dict[str, Any] = {
    "provenance": {"cpu": "Toy CPU", "ort_version": "1.0", "threads": 1, "batch": 1, "nchwc_block": 16},
    "calibration": {"constant_ms": 0.005, "scale": 0.8, "node_ms": 0.0},
    "channel_multiple": 8,
}


def rows(*points: tuple[LayerSpec, float]) -> pd.DataFrame:
    return make_rows(dict(zip(COLUMNS, (*row_key(x), ms, 0.0, 5, "profile"), strict=True)) for x, ms in points)


def table() -> LatencyTable:
    points = [(CONV, 0.04), (CONV.resized(16, 16), 0.01), (FC, 0.002), (DEPTHWISE, 0.006)]
    return LatencyTable(rows(*points), INFO)


def test_an_exact_row_is_the_answer_whatever_the_name_and_ownership_of_the_weight() -> None:
    assert table().layer_cost(CONV) == 0.04
    assert table().layer_cost(replace(CONV, name="other", has_weight=False)) == 0.04
    assert (table().name, table().constant, table().channel_multiple) == ("latency_ms", 0.005, 8)


def test_between_rows_lies_a_staircase() -> None:
    at = [table().layer_cost(CONV.resized(32, o)) for o in (17, 24, 31)]
    assert at == pytest.approx([0.04] * 3)
    assert 0.01 < table().layer_cost(CONV.resized(32, 16)) < 0.04


def test_a_depthwise_layer_pruned_to_one_channel_is_still_known() -> None:
    only_depthwise = LatencyTable(rows((DEPTHWISE, 0.006), (DEPTHWISE.resized(16, 16), 0.004)), INFO)
    assert only_depthwise.layer_cost(DEPTHWISE.resized(1, 1)) == pytest.approx(0.004)


def test_folded_layers_are_free_unless_measured() -> None:
    norm = LayerSpec("bn", LayerKind.BATCH_NORM, 32, 32, in_size=(8, 8), out_size=(8, 8))
    assert table().layer_cost(norm) == 0.0
    assert table().layer_cost(LayerSpec("cls", LayerKind.PARAMETER, 1, 32)) == 0.0
    measured = LatencyTable(rows((norm, 0.003)), INFO)
    assert measured.layer_cost(norm.resized(16, 16)) == pytest.approx(0.0015)


@pytest.mark.parametrize("kind", [k for k in LayerKind if k not in (LayerKind.BATCH_NORM, LayerKind.PARAMETER)])
def test_a_missing_row_names_the_layer_and_the_cure(kind: LayerKind) -> None:
    layer = LayerSpec("head", kind, 7, 7, in_size=(5, 1), out_size=(5, 1))
    with pytest.raises(
        BadInputError, match=rf"no row for {kind} 7→7, input 5x1.*\(head\); add it with `amcsearch table"
    ):
        table().layer_cost(layer)


def test_other_strides_are_other_rows() -> None:
    with pytest.raises(BadInputError, match=r"stride \(2, 2\)"):
        table().layer_cost(replace(CONV, stride=(2, 2)))


def test_mismatches_are_sentences() -> None:
    here = {"cpu": "Toy CPU", "ort_version": "2.0", "threads": 4, "batch": 1, "kernel": "6.1"}
    assert table().mismatches(here) == [
        "ONNX Runtime: the table was measured with '1.0', this run has '2.0'",
        "threads: the table was measured with 1, this run has 4",
    ]
    assert table().mismatches(INFO["provenance"]) == []


def test_csv_keeps_rows_in_a_fixed_order_and_reads_back(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_rows(table().rows, one)
    write_rows(table().rows.iloc[::-1], other)
    assert one.read_text() == other.read_text()
    again = LatencyTable(read_rows(one), INFO)
    for layer in (CONV, FC, CONV.resized(24, 9)):
        assert again.layer_cost(layer) == pytest.approx(table().layer_cost(layer))


def test_extra_columns_survive(tmp_path: Path) -> None:
    write_rows(table().rows.assign(sigma_ms=0.1), tmp_path / "rows.csv")
    assert LatencyTable(read_rows(tmp_path / "rows.csv"), INFO).rows["sigma_ms"].tolist() == [0.1] * 4


def test_pickling_keeps_the_prices() -> None:
    copy = pickle.loads(pickle.dumps(table()))
    assert copy.layer_cost(CONV.resized(20, 20)) == table().layer_cost(CONV.resized(20, 20))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("latency_ms", -0.1, "row 2: latency_ms = -0.1, must be a finite number"),
        ("latency_ms", float("nan"), "row 2: latency_ms = nan"),
        ("mad_ms", float("inf"), "row 2: mad_ms = inf"),
        ("out_channels", 8.5, "row 2: out_channels = 8.5, must be a whole number"),
        ("in_channels", 0, "row 2: .*in_channels = 0, must be at least 1"),
        ("conv_groups", 3, "row 2: .*not a multiple of conv_groups = 3"),
        ("kind", "pool", r"unknown layer kinds \['pool'\]"),
    ],
)
def test_bad_rows_name_the_row_and_the_value(column: str, value: Any, words: str) -> None:
    bad = table().rows.astype({column: object})
    bad.loc[1, column] = value
    with pytest.raises(BadInputError, match=words):
        LatencyTable(bad, INFO)


def test_lost_columns_repeated_and_absent_rows_are_refused() -> None:
    good = table().rows
    with pytest.raises(BadInputError, match=r"lack the columns \['mad_ms'\]"):
        LatencyTable(good.drop(columns="mad_ms"), INFO)
    with pytest.raises(BadInputError, match="row 5 repeats the shapes"):
        LatencyTable(pd.concat([good, good[:1]]), INFO)
    with pytest.raises(BadInputError, match="has no rows"):
        LatencyTable(good[:0], INFO)


@pytest.mark.parametrize("calibration", [None, {}, {"constant_ms": "fast"}, {"constant_ms": float("nan")}])
def test_a_table_without_its_constant_is_refused(calibration: Any) -> None:
    with pytest.raises(BadInputError, match="constant_ms"):
        LatencyTable(table().rows, {**INFO, "calibration": calibration})


def test_a_table_without_provenance_is_refused() -> None:
    with pytest.raises(BadInputError, match="provenance"):
        LatencyTable(table().rows, {"calibration": INFO["calibration"]})


@pytest.mark.parametrize("text", [b"", b'a,b\n"1,2\n3', b"\xff\xfe\x00broken\n"])
def test_a_damaged_csv_is_one_line_of_bad_input(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    with pytest.raises(BadInputError):
        LatencyTable(read_rows(tmp_path / "rows.csv"), INFO)
    with pytest.raises(BadInputError, match="cannot read latency rows"):
        read_rows(tmp_path / "none.csv")
