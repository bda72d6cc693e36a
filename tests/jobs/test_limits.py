"""A wrong limit at every door: one line that names key, value, bound and cure, before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.jobs import workload

WriteConfig = Callable[..., Path]
ON_CHANNELS = ["--set", "sparsify.granularity=channels"]


def _search(limit: str) -> list[str]:
    return ["search", "--set", f"budget={{{limit}}}"]


def _prune(limit: str) -> list[str]:
    return ["prune", "--set", f"prune.target={{{limit}}}"]


def _target(limit: str) -> list[str]:
    return ["prune", "--target", "=".join(limit.split(": "))]


def _sparsify(limit: str) -> list[str]:
    return ["sparsify", "--set", f"sparsify.target={{{limit}}}"]


def _sparsify_channels(limit: str) -> list[str]:
    return [*_sparsify(limit), *ON_CHANNELS]


DOORS = {
    "budget": _search,
    "prune.target": _prune,
    "--target": _target,
    "sparsify.target": _sparsify,
    "sparsify.target of channels": _sparsify_channels,
}


@pytest.fixture
def refused(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], tuple[int, str]]:
    """Run a command on a network that would have to be trained first; gives the exit code and the line of the error."""
    monkeypatch.setattr(workload, "pretrained", lambda *given, **named: pytest.fail("trained"))

    def run(arguments: list[str]) -> tuple[int, str]:
        verb, *options = arguments
        code = main([verb, str(write_config()), *options, "-o", str(tmp_path / "run")])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch: ")]
        assert not (tmp_path / "run").exists()  # no work was done
        return code, line

    return run


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("macs: 0.5", "0.5", "is an absolute number of macs, must be at least 1; write 0.5x for that share"),
        ("macs: 2x", "'2x'", "a share of dense in (0x, 1x] such as 0.5x, or a number above 0"),
        ("macs: half", "'half'", "a share of dense in (0x, 1x] such as 0.5x, or a number above 0"),
        ("macs: 1e12", "1000000000000.0", "(0, 451648], the dense network's macs; lower the limit or drop it"),
    ],
)
def test_a_wrong_limit_is_refused_before_anything_is_trained(
    refused: Callable[[list[str]], tuple[int, str]], door: str, limit: str, value: str, words: str
) -> None:
    code, line = refused(DOORS[door](limit))
    key = door.partition(" ")[0]
    names = {"--target": ("--target macs", "prune.target.macs")}.get(key, (f"{key}.macs", f"{key}.macs"))
    assert code == 2
    assert any(f"{name} = {value}" in line for name in names)
    assert words in line


@pytest.mark.parametrize("door", DOORS)
def test_a_cost_without_a_model_is_refused_before_anything_is_trained(
    refused: Callable[[list[str]], tuple[int, str]], door: str
) -> None:
    code, line = refused(DOORS[door]("latency_ms: 0.5x"))
    assert code == 2
    assert f"{door.partition(' ')[0].replace('--', 'prune.')}.latency_ms" in line
    assert "device.table" in line


@pytest.mark.parametrize("door", ["budget", "prune.target", "--target", "sparsify.target of channels"])
@pytest.mark.parametrize("limit", ["macs: 0.0001x", "model_bytes: 64B", "peak_memory_bytes: 0.01x"])
def test_a_limit_that_no_policy_meets_is_infeasible_before_anything_is_trained(
    refused: Callable[[list[str]], tuple[int, str]], door: str, limit: str
) -> None:
    code, line = refused(DOORS[door](limit))
    assert code == 3
    assert "smallest found" in line


@pytest.mark.parametrize("door", ["budget", "--target"])
def test_a_peak_that_no_policy_meets_is_infeasible_where_blocks_may_vanish(
    refused: Callable[[list[str]], tuple[int, str]], door: str
) -> None:
    code, line = refused([*DOORS[door]("peak_memory_bytes: 0.01x"), "--set", "search.vanish=true"])
    assert code == 3
    assert "peak_memory_bytes" in line


def test_a_cost_of_single_weights_is_refused_before_anything_is_trained(
    refused: Callable[[list[str]], tuple[int, str]],
) -> None:
    code, line = refused(_sparsify("macs: 0.5x"))
    assert code == 2
    assert "the schedule 'gradual' counts single weights" in line
