"""Sensitivity curves on disk."""

import csv
from xml.etree import ElementTree

import pytest

from amcsearch.core import BadInputError
from amcsearch.reporting.sensitivity import write_curves

ROWS = [
    ("conv1", 8, 0.9, 0.7),
    ("conv1", 16, 0.1, 0.98),
    *((f"layer{i}", n, 0.2, 0.9) for i in range(5) for n in (4, 8)),
]


def test_rows_and_picture_are_written(tmp_path):
    paths = write_curves(iter(ROWS), tmp_path / "new" / "folder")
    with open(paths["csv"], newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines[0] == ["group", "kept", "loss", "accuracy"]
    assert lines[1] == ["conv1", "8", "0.9", "0.7"]
    assert len(lines) == len(ROWS) + 1
    text = "".join(ElementTree.parse(paths["svg"]).getroot().itertext())
    assert "conv1 (16)" in text
    assert "layer4 (8)" in text


def test_nothing_to_draw_and_nowhere_to_write(tmp_path):
    with pytest.raises(BadInputError, match="no channel group"):
        write_curves([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot write"):
        write_curves(ROWS, tmp_path / "file" / "below")
