"""Rows of a run that are damaged are one line that names the row, the column and the value."""

from pathlib import Path

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.runs.rows import TRIAL_COLUMNS, read_densities, read_trials

TRIAL = dict(
    zip(TRIAL_COLUMNS, [0, "ddpg", 1, "complete", 0.5, 0.5, 1.0, 10, 5, "", "", 0.1, '"{""g"": 4}"'], strict=True)
)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("name,kept,total\na,1,2\n", "lacks the columns density"),
        ("name,kept,total,density\n", "have no row"),
        ("name,kept,total,density\na,1,0,0\n", "row 1: total = 0, expected a whole number of at least 1"),
        ("name,kept,total,density\na,1,2,0.5\nb,3,2,1.5\n", "row 2: kept = 3, expected a whole number, 0 to total"),
        ("name,kept,total,density\na,-1,2,0\n", "row 1: kept = -1"),
        ("name,kept,total,density\na,1.5,2,0.75\n", "row 1: kept = 1.5"),
        ("name,kept,total,density\na,1,2,0.9\n", "row 1: density = 0.9, expected kept / total"),
        ("name,kept,total,density\na,1,2,nan\n", "row 1: density = 'nan', expected a number"),
        ("name,kept,total,density\na,x,2,0.5\n", "row 1: kept = 'x', expected a number"),
        ("name,kept,total,density\na,1,2,0.5\na,1,2,0.5\n", "row 2: name = 'a', expected each name once"),
        ("name,kept,total,density\n,1,2,0.5\n", "row 1: name = nan, expected a text"),
        ("name,kept,total,density\na,1,1" + "0" * 400 + ",0\n", "row 1: total"),
        ("name,kept,total,total,density\na,1,2,2,0.5\n", "column 'total' is there twice"),
        ("name,kept,total,density\na,1,2,0.5,9\n", "cannot read densities"),
        ('name,kept,total,density\n"a,1,2,0.5\n', "cannot read densities"),
    ],
)
def test_densities_name_the_row(tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "densities.csv"
    path.write_text(rows)
    with pytest.raises(BadInputError) as caught:
        read_densities(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_layer_may_be_called_na(tmp_path: Path) -> None:
    (tmp_path / "densities.csv").write_text("name,kept,total,density\nNA,1,3,0.3333\n")
    assert read_densities(tmp_path / "densities.csv")["name"].tolist() == ["NA"]


def write(path: Path, **changes: object) -> Path:
    path.write_text(",".join(TRIAL_COLUMNS) + "\n" + ",".join(map(str, {**TRIAL, **changes}.values())) + "\n")
    return path


def test_a_trial_without_table_and_profile_is_read(tmp_path: Path) -> None:
    rows = read_trials(write(tmp_path / "trials.csv"))
    assert rows["policy"].tolist() == ['{"g": 4}']
    assert rows["latency_ms"].isna().all()
    assert read_trials(write(tmp_path / "trials.csv", reward="-inf"))["reward"].tolist() == [float("-inf")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"number": "first"}, "row 1: number = 'first', expected a number"),
        ({"number": 0.5}, "row 1: number = 0.5, expected a whole number"),
        ({"seed": ""}, "row 1: seed = nan, expected a whole number"),
        ({"state": "done"}, "row 1: state = 'done', expected one of complete, failed, probe"),
        ({"agent": ""}, "row 1: agent = nan, expected a text"),
        ({"accuracy": "true"}, "row 1: accuracy = True, expected a number"),
        ({"policy": ""}, "row 1: policy = nan, expected a text"),
    ],
)
def test_trials_name_the_row(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_trials(write(tmp_path / "trials.csv", **changes))
    assert words in str(caught.value)
