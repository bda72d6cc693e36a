"""``--trials +N`` adds evaluations to a search: what it has stays, and an interrupted addition is not made twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from amcsearch.cli.main import main
from amcsearch.config import Config, dump, load
from amcsearch.config.identity import trial_counts
from amcsearch.core import BadInputError
from amcsearch.jobs import extended

WriteConfig = Callable[..., Path]
SHORT = ["--set", "device.rounds=5", "--set", "recovery.finetune=null"]


def rows(folder: Path) -> list[list[object]]:
    """Trials of a run without what the clock decides."""
    kept: list[list[object]] = pd.read_csv(folder / "trials.csv").drop(columns="seconds").fillna("").values.tolist()
    return kept


def test_a_search_is_extended_and_goes_on_with_what_it_has(write_config: WriteConfig, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", str(write_config())
    arguments = ["search", config, *SHORT, "--set", "search.agent=nsga2", "--out", str(folder)]
    assert main([*arguments, "--trials", "4"]) == 0
    first = rows(folder)
    assert main([*arguments, "--trials", "+3", "--resume"]) == 0  # to the 4 of the run, not to the configured 8
    longer = rows(folder)
    assert load(folder / "config.yaml").search.further_trials == (3,)
    by_agent = [[row for row in longer if row[1] == agent] for agent in ("nsga2", "random")]
    assert [len(part) for part in by_agent] == [7, 7]
    assert by_agent[0][:4] + by_agent[1][:4] == first
    assert json.loads((folder / "summary.json").read_text())["evaluations"] == 7
    assert main([*arguments, "--trials", "4", "--resume"]) == 0  # the run's own further trials stay
    assert rows(folder) == longer
    assert main(["search", str(folder / "config.yaml"), "--out", str(folder), "--resume", "--trials", "+2"]) == 0
    assert load(folder / "config.yaml").search.further_trials == (3, 2)
    longest = [row for row in rows(folder) if row[1] == "nsga2"]
    assert len(longest) == 9
    assert longest[:7] == by_agent[0]


def begun(tmp_path: Path, config: Config) -> Path:
    """A run folder with a configuration."""
    folder = tmp_path / "begun"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    return folder


def with_further(path: Path, *counts: int) -> Config:
    """The configuration with five trials and further ones."""
    return load(path, ["search.trials=5", f"search.further_trials={list(counts)}"])


@pytest.mark.parametrize(
    ("has", "asked", "trials", "expected"),
    [
        ([], [], "+3", (3,)),
        ([3], [], "+3", (3,)),  # it was stopped before these were spent
        ([3], [], "+4", (3, 4)),
        ([3], [], None, (3,)),
        ([3], [], 5, (3,)),
        ([3], [3, 2], None, (3, 2)),
        ([3, 2], [3], "+2", (3, 2)),
    ],
)
def test_what_a_stopped_run_goes_on_with_by_hand(
    write_config: WriteConfig,
    tmp_path: Path,
    has: list[int],
    asked: list[int],
    trials: int | str | None,
    expected: tuple[int, ...],
) -> None:
    path = write_config()
    folder = begun(tmp_path, with_further(path, *has))
    assert extended(with_further(path, *asked), folder, True, trials).search.further_trials == expected


def test_trials_are_added_to_what_the_run_has(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config()
    run = begun(tmp_path, with_further(path, 4))
    for asked in (load(path), load(path, ["search.trials=200"])):
        search = extended(asked, run, True, "+3").search
        assert (search.trials, search.further_trials) == (5, (4, 3))
    assert extended(load(path, ["search.trials=200"]), run, True, None).search.trials == 200  # refused later


def test_a_run_without_a_folder_or_not_resumed_stays_as_it_was_asked_for(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = with_further(write_config(), 2)
    for folder, resume in ((None, False), (tmp_path / "new", True), (begun(tmp_path, config), False)):
        assert extended(config, folder, resume, None) == config


@pytest.mark.parametrize("trials", ["3", "+0", "+-3", "++3", "+1e3", "+3.0", "", "-3", "+" + "9" * 10, "more"])
def test_text_that_is_no_count_is_refused(write_config: WriteConfig, tmp_path: Path, trials: str) -> None:
    config = load(write_config())
    with pytest.raises(BadInputError, match=r"expected a count, or \+N to add N to a run that is resumed"):
        extended(config, begun(tmp_path, config), True, trials)


def test_nothing_is_added_to_no_run(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(write_config())
    with pytest.raises(BadInputError, match=r"new holds none; name its --out \(in Python: folder\) and go on"):
        extended(config, tmp_path / "new", True, "+3")
    with pytest.raises(BadInputError, match="none is resumed; name its --out"):
        extended(config, begun(tmp_path, config), False, "+3")
    assert main(["search", str(write_config()), "--trials", "+3", "--out", str(tmp_path / "new")]) == 2
    assert main(["search", str(write_config()), "--trials", "+3", "--dry-run"]) == 2
    assert "which --dry-run does not plan" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_further_trials_of_another_run_are_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config()
    folder = begun(tmp_path, with_further(path, 3))
    with pytest.raises(BadInputError, match=r"search.further_trials = \[4\], and the run in .* has \[3\]; leave the"):
        extended(with_further(path, 4), folder, True, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search:\n  trials: 9\n  further_trials: [3, 4]\n", (9, (3, 4))),
        ("search: {trials: 3}", (3, ())),
        ("search: {trials: many}", (None, ())),
        ("search: 3", (None, ())),
        ("a: [", (None, ())),
        ("", (None, ())),
        ("search: {further_trials: 3}", (None, ())),
    ],
)
def test_trials_of_a_text_by_hand(text: str, expected: tuple[int | None, tuple[int, ...]]) -> None:
    assert trial_counts(text) == expected
