"""Sensitivity curves on disk."""

import csv
import math
from xml.etree import ElementTree

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.reporting.layer_charts import check_charts, write_additivity, write_curves

ROWS = [
    ("conv1", 8, 0.9, 0.7, "recovered"),
    ("conv1", 16, 0.1, 0.98, "recovered"),
    ("conv1", 8, 1.9, 0.2, "bare"),
    ("conv1", 16, 0.1, 0.98, "bare"),
    *((f"layer{i}", n, 0.2, 0.9, "recovered") for i in range(5) for n in (4, 8)),
]


def test_rows_and_picture_are_written(tmp_path):
    paths = write_curves(iter(ROWS), tmp_path / "new" / "folder")
    with open(paths["csv"], newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines[0] == ["group", "kept", "loss", "accuracy", "recovery"]
    assert lines[1] == ["conv1", "8", "0.9", "0.7", "recovered"]
    assert len(lines) == len(ROWS) + 1
    text = "".join(ElementTree.parse(paths["svg"]).getroot().itertext())
    assert "conv1 (16)" in text
    assert "layer4 (8)" in text
    assert "bare" in text


def test_sums_and_joint_losses_are_written(tmp_path):
    policies = [PruningPolicy({"a": n}) for n in (1, 2, 3)]
    rows = zip((3.0, 2.0, 1.0), (math.inf, 2.5, -0.1), policies, strict=True)
    paths = write_additivity(rows, 1.0, tmp_path)
    with open(paths["additivity_csv"], newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines[1:3] == [["3.0", "inf", '{"a": 1}'], ["2.0", "2.5", '{"a": 2}']]
    text = "".join(ElementTree.parse(paths["additivity_svg"]).getroot().itertext())
    assert "3 random policies, rank correlation 1.00" in text
    assert "0.001" in text
    assert "mathdefault" not in text


def test_nothing_to_draw_and_nowhere_to_write(tmp_path):
    with pytest.raises(BadInputError, match="no channel group"):
        write_curves([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot write"):
        write_curves(ROWS, tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["sensitivity.csv", "sensitivity.svg"])
def test_somebody_elses_files_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("dear diary")
    for write in (lambda: check_charts(tmp_path, "sensitivity"), lambda: write_curves(ROWS, tmp_path)):
        with pytest.raises(BadInputError, match=rf"{name} is there and was not written by amcsearch; move it"):
            write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "dear diary")]


def test_our_own_files_are_replaced(tmp_path):
    write_curves(ROWS, tmp_path)
    before = (tmp_path / "sensitivity.csv").read_text()
    write_curves(ROWS[1:], tmp_path)
    assert (tmp_path / "sensitivity.csv").read_text() != before
    check_charts(tmp_path, "sensitivity", "additivity", "energy")
