"""Latency against width: cliffs by hand, widths that exist, and files that say both."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.entry import NetworkEntry
from amcsearch.costs.latency.rows import COLUMNS, GRAPH, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.reporting.latency_curves import LayerCurve, _picture_files, layer_curves, write_latency_curves

CONV = LayerSpec("c", LayerKind.CONV, 8, 16, (3, 3), padding=(1, 1), in_size=(4, 4), out_size=(4, 4))
GROUPED = replace(CONV, conv_groups=4)  # its widths are multiples of 4
ATTENTION = LayerSpec("a", LayerKind.ATTENTION, 16, 16, conv_groups=4, in_size=(9, 1), out_size=(9, 1))
STAIRS = {4: 1.0, 8: 3.0, 12: 2.0, 16: 2.02}  # ms: 8 is slower than 12; 12 and 16 are within 2 %


def table_of(times: Mapping[LayerSpec, float | None], network: str = "net", **entry: object) -> LatencyTable:
    """A table that holds these layers, each one kernel of so many ms; None: seen, and never timed."""
    rows = []
    for layer, ms in times.items():
        values = (network, *row_key(layer), "Kernel", 1.0, ms, None if ms is None else 0.0, 1)
        rows.append(dict(zip(COLUMNS, (*values, GRAPH if ms is None else "profile"), strict=True)))
    networks = {network: {"constant_ms": 0.0, "channel_multiple": 4, **entry}}
    return LatencyTable.from_mapping(make_rows(rows), {"provenance": {"nchwc_block": 0}, "networks": networks})


def curves_of(table: LatencyTable) -> list[LayerCurve]:
    return layer_curves(table, table.bind("net"))


def convolutions(times: Mapping[int, float], layer: LayerSpec = CONV) -> dict[LayerSpec, float | None]:
    return {layer.resized(layer.in_channels, width): ms for width, ms in times.items()}


def test_the_curve_goes_through_measurements_and_knows_its_cliffs() -> None:
    (curve,) = curves_of(table_of(convolutions(STAIRS, GROUPED)))
    assert curve.ms == pytest.approx([1.0, 3.0, 2.0, 2.02], rel=1e-5)  # the process has a noise, however small
    assert curve.cliffs.tolist() == [1]
    (curve,) = curves_of(table_of(convolutions(STAIRS)))
    assert curve.widths.tolist() == list(range(1, 17))
    assert curve.widths[curve.measured].tolist() == [4, 8, 12, 16]
    assert curve.ms[curve.measured] == pytest.approx([1.0, 3.0, 2.0, 2.02], rel=1e-5)
    assert 7 in curve.cliffs
    assert curve.title == "3x3 conv 8→ on 4x4"


def test_cliffs_are_slower_by_more_than_two_per_cent_than_some_wider_width() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        (curve,) = curves_of(table_of(convolutions({w: float(rng.uniform(1, 2)) for w in (3, 5, 8, 13, 16)})))
        expected = [i for i, ms in enumerate(curve.ms) if any(ms > 1.02 * wider for wider in curve.ms[i + 1 :])]
        assert curve.cliffs.tolist() == expected


def test_the_input_is_the_widest_measured_and_other_inputs_are_not_marked() -> None:
    narrow = {CONV.resized(4, 6): 0.5}
    (curve,) = curves_of(table_of({**convolutions({8: 1.0, 16: 2.0}), **narrow}))
    assert curve.layer.in_channels == 8
    assert curve.widths[curve.measured].tolist() == [8, 16]


def test_only_widths_that_the_layer_can_have_are_drawn() -> None:
    (curve,) = curves_of(table_of(convolutions({8: 1.0, 16: 2.0}, GROUPED)))
    assert curve.widths.tolist() == [4, 8, 12, 16]
    (curve,) = curves_of(table_of({ATTENTION: 2.0, ATTENTION.resized(8, 8): 1.0}))
    assert curve.widths.tolist() == [4, 8, 12, 16]  # whole heads; both widths move together
    assert curve.widths[curve.measured].tolist() == [8, 16]


def test_layers_of_one_width_or_no_time_have_no_curve() -> None:
    assert curves_of(table_of(convolutions({16: 1.0}))) == []
    assert curves_of(table_of(convolutions({8: 0.0, 16: 0.0}))) == []
    untimed = {CONV.resized(8, width): None for width in (8, 16)}
    assert curves_of(table_of(untimed)) == []


def test_a_picture_a_network_and_every_cliff_as_a_row(tmp_path: Path) -> None:
    one = table_of(convolutions(STAIRS, GROUPED))
    both = one.with_entry("../other", NetworkEntry(constant_ms=0.0))
    files = write_latency_curves(both, tmp_path / "new" / "folder")
    assert set(files) == {"net", "cliffs"}  # no row is of the other network
    text = "".join(ElementTree.parse(files["net"]).getroot().itertext())
    assert "net: multiples of 4 are rewarded" in text
    assert "3x3 conv 8→ on 4x4" in text
    with files["cliffs"].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    (row,) = rows
    assert float(row.pop("ms")) == pytest.approx(3.0, rel=1e-5)
    assert float(row.pop("wider_ms")) == pytest.approx(2.0, rel=1e-5)
    assert list(row.values()) == ["net", "3x3 conv 8→ on 4x4", "8", "8", "12", "0.500"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot write"):
        write_latency_curves(table_of(convolutions(STAIRS)), tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", "x" * 300, "new\nline", "a\0b", 'q?"v', "größe"])
def test_a_picture_stays_in_its_folder_whatever_the_network_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "curves"
    files = write_latency_curves(table_of(convolutions({8: 1.0, 16: 2.0}), name), folder)
    assert {path.parent for path in files.values()} == {folder}
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in files.values())
    assert {path.name for path in tmp_path.iterdir()} == {"curves"}


def test_networks_whose_names_look_the_same_have_a_picture_each(tmp_path: Path) -> None:
    files = _picture_files(tmp_path, ["a/b", "a?b", "a_b"])
    assert [path.name for path in files.values()] == ["a_b.svg", "a_b-2.svg", "a_b-3.svg"]
