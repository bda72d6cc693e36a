"""Study databases that are damaged are one line, whatever Optuna and SQLite make of them."""

import json
import sqlite3
from pathlib import Path

import pytest

from amcsearch.core import BadInputError, Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.search.study_store import TrialStore

TRIAL = Trial(0, "a", 0, TrialState.COMPLETE, PruningPolicy({"g": 2}), Evaluation(0.5, 1.0, 0.1), Cost(macs=3.0), 0.5)


def store(path: Path) -> TrialStore:
    return TrialStore(path, "study", "a", 0, "fingerprint", None)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    store(tmp_path / "study.db").append(TRIAL, {"g": 4}, [0.5])
    assert store(tmp_path / "study.db").load() == [TRIAL]
    return tmp_path / "study.db"


def change(path: Path, command: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(command, values).rowcount != 0
    connection.commit()
    connection.close()


def refused(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        store(path).load()
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert "--storage" in line
    return line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("policy", "{", "is not JSON"),
        ("policy", json.dumps('{"g": -1}'), "n_keep of 'g' is -1"),
        ("policy", "5", "policy is 5, expected a text"),
        ("reward", '"fast"', "could not convert"),
        ("reward", '"nan"', "it is complete, and its reward"),
        ("seed", '"zero"', "seed is 'zero'"),
        ("state", '"done"', "'done' is not a valid TrialState"),
        ("cost", "[1]", "cost is [1], expected an object"),
        ("cost", '{"macs": "x"}', "cost.macs is 'x', expected a number"),
        ("metric", "1" + "0" * 400, "metric is 1000"),
        ("change_low", "[]", "change_low is [], expected a number"),
    ],
)
def test_a_trial_of_other_values_is_named(database: Path, key: str, value: str, words: str) -> None:
    change(database, "UPDATE trial_user_attributes SET value_json = ? WHERE key = ?", value, key)
    line = refused(database)
    if value != "{":  # broken JSON fails within Optuna
        assert "trial 0 in the study storage is damaged" in line
        assert words in line


@pytest.mark.parametrize(
    "table", ["studies", "trials", "trial_user_attributes", "study_user_attributes", "version_info"]
)
def test_a_missing_table_is_named(database: Path, table: str) -> None:
    change(database, f"DROP TABLE {table}")
    refused(database)


def test_a_context_of_another_kind_is_refused(database: Path) -> None:
    change(database, "UPDATE study_user_attributes SET value_json = '[1]' WHERE key = 'context'")
    refused(database)


def test_a_database_that_is_cut_is_refused_and_an_empty_one_begun(database: Path) -> None:
    content = database.read_bytes()
    for share in (1, 2, 3, 10, 50, 90):
        database.write_bytes(content[: len(content) * share // 100])
        refused(database)
    database.write_bytes(b"")
    assert store(database).load() == []
