"""The command line's manners: every mistake is one line with a cure and an exit code, never a traceback."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.cli.parser import make_parser
from amcsearch.cli.text import plan_text
from amcsearch.cli.verbs import KINDS
from amcsearch.jobs import SearchPlan
from amcsearch.jobs.plan import PlannedNetwork

WriteConfig = Callable[..., Path]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run and return the exit code and the error line, which must be the last and only one that names us."""
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch:")]
    assert len(lines) == 1
    return code, lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trails=5", "trials"),
        ("search.trials=many", "search.trials"),
        ("search.agent=ppo", "ddpg"),
        ("search.reward.name=luck", "accuracy"),
        ("search.agent_params={gamma: 0.5}", "gamma"),
        ("selection.criterion=taylr", "taylor"),
        ("budget.macs=1.5x", "1.5x"),
        ("budget.latency_ms=0.5x", "table measure"),
        ("data.splits.search=4000", "400"),
        ("device.profile=nowhere.yaml", "nowhere.yaml"),
        ("model.input_shape=[3, 8, 8]", "(1, 8, 8)"),
        ("model.pretrain.learning_rate=1e30", "learning"),
    ],
)
def test_a_bad_key_is_one_line(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, words: str
) -> None:
    arguments = ["search", str(write_config()), "--out", str(tmp_path / "run"), "--set", override]
    code, line = fails(arguments, capsys)
    assert code == 2
    assert words in line


@pytest.mark.parametrize(
    ("factory", "data", "words"),
    [
        ("broken", "quadrants", "no weights today"),
        ("not_a_module", "quadrants", "torch.nn.Module"),
        ("missing", "quadrants", "missing"),
        ("network", "wrong_shape", "(1, 3, 9, 9)"),
    ],
)
def test_a_bad_factory_is_one_line(
    write_config: WriteConfig,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    factory: str,
    data: str,
    words: str,
) -> None:
    code, line = fails(["search", str(write_config(factory, data)), "--out", str(tmp_path / "run")], capsys)
    assert code == 2
    assert words in line


def test_a_network_that_gives_nan_is_one_line(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["search", str(write_config("diverging")), "--out", str(tmp_path / "run")]
    code, line = fails(arguments, capsys)
    assert code == 2
    assert "nan" in line
    code, line = fails([*arguments, "--resume", "--set", "model.pretrain=null", "--out", str(tmp_path / "2")], capsys)
    assert code == 2
    assert "nan" in line.lower()


def test_an_infeasible_budget_says_the_smallest_value(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["search", str(write_config()), "--out", str(tmp_path / "run"), "--set", "budget.macs=0.001x"]
    code, line = fails(arguments, capsys)
    assert code == 3
    assert "smallest" in line


def test_a_missing_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(["search", "nowhere.yaml"], capsys)
    assert code == 2
    assert "nowhere.yaml" in line


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        main(["search", "nowhere.yaml", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "stopped_in", "said"),
    [
        ("list agents", "verbs.list_registry", "interrupted\n"),
        ("search digits", "verbs.load_config", "run the same command with --resume to go on\n"),
        ("submit digits --connect http://x", "service_verbs.client_of", "a job that was submitted goes on\n"),
    ],
)
def test_a_stop_signal_ends_as_an_interruption(
    arguments: str, stopped_in: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(f"amcsearch.cli.{stopped_in}", stopped)
    assert main(arguments.split()) == 130
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_everything(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found
    assert all(isinstance(text, str) and text for text in found.values())


def test_list_without_a_kind_names_everything_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert list(names) == list(KINDS)
    assert "ddpg" in names["agents"].split(", ")


def test_list_shows_aliases_of_criteria(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "criteria", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["true_fisher"] == "Alias of fisher with labels: model."


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_kind_has_a_registry(kind: str) -> None:
    assert KINDS[kind]()


def test_the_parser_offers_exactly_the_listed_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", "pruners"])
    choices = capsys.readouterr().err.partition("choose from")[2].partition(")")[0]
    assert re.findall(r"\w+", choices) == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("serach digits", "invalid choice: 'serach' (choose from .*; did you mean search?"),
        ("table mesure digits", "'mesure'.*; did you mean measure?"),
        ("measure digits", "'measure'.*; did you mean table measure?"),  # a verb of a verb
        ("token lst", "'lst'.*; did you mean list?"),
        ("list agent", "'agent'.*; did you mean agents?"),
        ("search digits --dryrun", "--dryrun; did you mean --dry-run?"),
        ("search digits --dryrun=1 --strct", "did you mean --dry-run?; did you mean --strict?"),
        ("compare digits --agnts ddpg", "required: --agents; did you mean --agents?"),  # argparse stops before it
        ("search digits --agnt ddpg", "--agnt ddpg; did you mean --set search.agent=…?"),
        ("search digits --seed 3", "did you mean --set seed=…?"),
        ("list --agnt", "--agnt; see amcsearch list --help"),  # without --set, no key
        ("search digits more", "unrecognized arguments: more; see amcsearch search --help"),
        ("search", "required: config; see amcsearch search --help"),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_nearest(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(re.escape(words).replace(r"\.\*", ".*") + "$", error.strip())


def test_an_option_may_be_shortened_as_before() -> None:
    assert make_parser().parse_args(["search", "digits", "--dry"]).dry_run


@pytest.mark.parametrize(
    "verb", [["search"], ["compare"], ["front"], ["sensitivity"], ["energy"], ["prune"], ["report"], ["list"]]
)
def test_every_verb_helps_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    assert "example: amcsearch" in capsys.readouterr().out


def test_each_form_that_verify_shows_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "kit", "--help"])
    forms = re.findall(r"amcsearch verify (?:\[-\S+\] )*(.*)", capsys.readouterr().out.partition("\n\n")[0])
    assert [form.split()[0] for form in forms] == ["kit", "RUN", "JOB"]
    for form in forms:
        make_parser().parse_args(["verify", *re.sub(r"[][]", "", form).split()])


@pytest.mark.parametrize(
    ("options", "code", "kind", "words"),
    [
        (["--set", "budget={macs: 0.0001x}"], 3, "infeasible", "smallest found"),
        (["--set", "search.trails=5"], 2, "bad_input", "trails"),
    ],
)
def test_json_has_an_error_object_where_there_is_no_result(
    write_config: WriteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    kind: str,
    words: str,
) -> None:
    assert main(["search", str(write_config()), "--out", str(tmp_path / "run"), "--json", *options]) == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["exit_code"], error["kind"]) == (code, kind)
    assert words in error["message"]
    assert f"amcsearch: {error['message']}" in err


def test_json_says_that_a_run_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("amcsearch.cli.verbs.entries", interrupt)
    assert main(["list", "costs", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "interrupted"


LONG = "evaluations use one of 4 cores: --workers 4 --set search.batch=8 evaluates side by side; "


@pytest.mark.parametrize(
    ("search_s", "workers", "batch", "cores", "fills", "said"),
    [
        (600.0, 1, 1, 4, False, LONG),
        (600.0, 4, 1, 4, False, LONG),
        (600.0, 1, 8, 4, False, LONG),
        (600.0, 1, 1, 1, False, "expected time: about 10.0 minutes"),
        (30.0, 1, 1, 4, False, "expected time: about 0.5 minutes"),
        (600.0, 3, 2, 4, False, "the time of the search is that of one worker, and 2 share it"),
        (600.0, 3, 1, 4, True, "the time of the search is that of one worker, and 3 share it"),
        (600.0, 1, 1, 4, True, "evaluations use one of 4 cores: --workers 4 evaluates side by side, with the same"),
    ],
)
def test_the_plan_of_a_long_search_says_how_other_cores_are_used(
    search_s: float, workers: int, batch: int, cores: int, fills: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    network, dense, sizes = PlannedNetwork("nets.py:build", 2, 1, ()), {"macs": 100.0}, {"train": 10}
    space = (dense, 1, 0, 8, "obc", "ddpg", None, 9)
    planned = SearchPlan("mine", network, sizes, dense, {"macs": 50.0}, *space, (), {"search": search_s}, fills)
    assert plan_text(planned, workers, batch).splitlines()[-1].startswith(said)
