"""Numbers and paths of any kind, in every key and option, are taken or refused in one line before any work."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from amcsearch.cli.main import main
from amcsearch.config import Config, build, load
from amcsearch.core import BadInputError
from amcsearch.evaluation import ProcessExecutor
from amcsearch.runs import expanded

WriteConfig = Callable[..., Path]


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted names of every key that is no section."""
    for name, field in model.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if sections:
            yield from keys(sections[0], f"{before}{name}.")
        else:
            yield before + name


def loaded(path: Path, override: str) -> tuple[object, str]:
    """Return the configuration, or None and the error."""
    try:
        return load(path, [override]), ""
    except BadInputError as error:
        return None, str(error)


NUMBERS = ["1e300", "-1", str(2**64), "1" + "0" * 400, "0x" + "f" * 5000, "1" * 5000, ".nan", "-.inf", "1e400"]
TAKE_LARGE = {"budget.macs", "prune.target.macs"}  # absolute limits, which are held to the dense network's costs


@pytest.mark.parametrize("key", [*keys(Config), "budget.macs", "sparsify.target.sparsity", "prune.target.macs"])
def test_no_number_out_of_range_is_taken(write_config: WriteConfig, key: str) -> None:
    path = write_config()
    for number in NUMBERS[:2] if key in TAKE_LARGE else NUMBERS:
        value, said = loaded(path, f"{key}={number}")
        if value is None:
            assert len(said) < 500
            assert "\n" not in said
            continue
        for name in key.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        assert isinstance(value, str) or key in TAKE_LARGE  # the name of something; a registry refuses it


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("seed=2147483648", "a number below 2147483648"),
        ("seed=-1", "a number of at least 0"),
        ("device.batch=100000000", "at most 65536"),
        ("device.threads=100000", "at most 1024"),
        ("device.rounds=1000000000000", "at most 10000000"),
        ("search.trials=1000000000000", "at most 10000000"),
        ("device.channel_multiple=1000000", "from 1 to 65536"),
        ("recovery.finetune.learning_rate=1e300", "at most 1000000"),
        ("recovery.finetune.max_shift=5000", "at most 1024"),
    ],
)
def test_the_bound_is_said(write_config: WriteConfig, override: str, bound: str) -> None:
    with pytest.raises(BadInputError, match=bound):
        load(write_config(), [override])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e16, 10**400, [1, [math.nan]], {"a": 1e300}])
def test_parameters_of_named_classes_are_finite(value: object) -> None:
    with pytest.raises(BadInputError, match=r"search\.agent_params\.sigma.* = .*at most 1e\+15"):
        build(lambda sigma: sigma, {"sigma": value}, "search.agent_params")
    assert build(lambda sigma: sigma, {"sigma": 1e15}, "search.agent_params") == 1e15


def test_workers_and_threads_are_bounded() -> None:
    for workers, threads in ((0, 1), (1025, 1), (1, 1025)):
        with pytest.raises(BadInputError, match="at least 1 and at most 1024"):
            ProcessExecutor(object(), workers, threads)  # type: ignore[arg-type]


def test_a_batch_that_no_memory_holds_is_refused(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amcsearch.jobs.workload.LARGEST_BATCH", 1000)
    assert main(["search", str(write_config()), "--dry-run", "--set", "device.batch=4"]) == 2
    assert "device.batch = 4 of inputs of 256 bytes, must be at most 3" in capsys.readouterr().err


OPTIONS = [
    ["search", "digits", "--workers", "1e9"],
    ["search", "digits", "--workers", "1000000000000"],
    ["sensitivity", "digits", "--points", "3.5"],
    ["table", "measure", "digits", "-o", "x", "--minutes", "nan"],
    ["table", "measure", "digits", "-o", "x", "--minutes", "1e9"],
    ["table", "kit", "digits", "-o", "x", "--variants", "9" * 5000],
    ["report", "a\0b"],
    ["report", "x" * 300],
    ["report", "a/" * 3000],
    ["report", "\ud800"],
    ["report", "~nobody-of-that-name/x"],
    ["report", "\x1b[31m" * 99],
]


@pytest.mark.parametrize("arguments", OPTIONS, ids=range(len(OPTIONS)))
def test_a_bad_option_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) < 400


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "\udcff", "a b?c%d"])
def test_a_name_that_file_systems_take_is_taken(name: str) -> None:
    assert expanded(name) == Path(name)


@pytest.mark.parametrize("key", ["model.checkpoint", "search.start", "prune.policy"])
def test_a_key_of_a_file_takes_no_folder_and_no_device(write_config: WriteConfig, tmp_path: Path, key: str) -> None:
    for path, sort in ((tmp_path, "a folder"), (Path("/dev/zero"), "a device or a pipe")):
        with pytest.raises(BadInputError, match=f"{key}: {path} is {sort}, expected a file"):
            load(write_config(), [f"{key}={path}"])
