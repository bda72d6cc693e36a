"""Every reader of files and typed values keeps its promise on thousands of mutated documents."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mutations, running, targets = _load("mutations"), _load("running"), _load("targets")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_mutated_document_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target = targets.TARGETS[name]
    base, folder = target.make(), tmp_path / "input"
    mutations.mutate(folder, base, [])
    assert targets.outcome(lambda: target.read(folder)) == "read"

    def read(edits: list[object]) -> str:
        mutations.mutate(folder, base, edits)
        return targets.outcome(lambda: target.read(folder))

    tally = running.feed(mutations.EDITS, target.inputs, read, random=False)
    assert not tally.faults, "\n".join(f"{place}: {edits}" for place, edits in tally.faults.items())
    assert tally.inputs >= target.inputs


def test_overrides_and_settings_are_taken_or_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    mutations.mutate(folder, targets.TARGETS["configuration"].make(), [])
    overrides = running.feed(
        targets.OVERRIDES,
        150,
        lambda texts: targets.outcome(lambda: targets.read_overrides(folder, texts)),
        random=False,
    )
    keys = st.sampled_from(
        ["seed", "search.trials", "model.kwargs", "budget", "prune.policy", "seed.x", "", "a..b", "x"]
    )
    values = st.sampled_from([*mutations.EXTREMES, object(), {1: 2}, {"a": object()}, (1, 2), b"x"])
    settings = running.feed(
        st.dictionaries(keys, values, max_size=2),
        150,
        lambda drawn: targets.outcome(lambda: targets.read_settings(drawn)),
        random=False,
    )
    for tally in (overrides, settings):
        assert not tally.faults, "\n".join(f"{place}: {drawn!r:.300}" for place, drawn in tally.faults.items())
        assert tally.outcomes["refused"]


def test_a_reader_that_breaks_its_promise_is_found() -> None:
    def read(drawn: int) -> str:
        return targets.outcome(lambda: 1 // (drawn % 7))

    tally = running.feed(st.integers(0, 1000), 200, read, random=False)
    assert tally.outcomes["fault"]
    assert "ZeroDivisionError" in next(iter(tally.faults))
