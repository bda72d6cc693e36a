"""Searches that share a storage, of other budgets and on other devices, through the command line."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from amcsearch.cli.main import main
from amcsearch.config import evaluation_hash, load

WriteConfig = Callable[..., Path]


def test_a_search_of_another_budget_and_device_begins_with_what_an_earlier_one_evaluated(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/all.db"
    shared = ["--storage", storage, "--set", "search={agent: ladder, trials: 5, baseline: null, finalists: 1}"]
    untuned = ["--set", "recovery.finetune.epochs=0"]
    config = str(write_config())
    assert main(["search", config, *shared, *untuned, "-o", str(tmp_path / "a")]) == 0
    other = ["--set", "name=tight", "--set", "budget={macs: 0.4x}", "--set", "device.profile=edge_cpu"]
    assert main(["search", config, *shared, *other, *untuned, "-o", str(tmp_path / "b")]) == 0
    names = optuna.get_all_study_names(storage)
    assert sorted(names) == ["tight/ladder/0", "tiny/ladder/0"]
    begun_with = optuna.load_study(study_name="tight/ladder/0", storage=storage).user_attrs["earlier"]
    assert begun_with == {"tiny/ladder/0": 5}


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("budget={macs: 0.2x}", True),
        ("device.profile=edge_cpu", True),
        ("device.threads=4", True),
        ("search.trials=7", True),
        ("name=other", True),
        ("recovery.finetune.epochs=9", True),
        ("device.dtype=int8", False),
        ("recovery.bn_recalibration=false", False),
        ("recovery.reconstruction=least_squares", False),
        ("data.splits.search=90", False),
        ("seed=1", False),
    ],
)
def test_what_decides_an_evaluation(write_config: WriteConfig, override: str, is_same: bool) -> None:
    path = write_config()
    assert (evaluation_hash(load(path, [])) == evaluation_hash(load(path, [override]))) is is_same
