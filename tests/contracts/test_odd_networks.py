"""The contract of every verb with networks and data that misbehave: it works, or it says in one line why it does not.

Whatever comes, there is no traceback, an exit code of 0 means that the result is there and is JSON alone, and any other
exit code comes with one line that says what is wrong. A new verb joins ``VERBS``.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from amcsearch.cli.main import main

ODD = Path(__file__).parents[1] / "odd_factories.py"
CONFIG = """
name: odd
model: {factory: "ODD:MODEL", pretrain: {epochs: 1, learning_rate: 0.05, batch_size: 64}}
data: {factory: "ODD:DATA", splits: {calibration: 64, search: 96, test: 96}}
device: {profile: x86_server, channel_multiple: 4, rounds: 5}
budget: {macs: 0.7x}
recovery: {finetune: {epochs: 1, learning_rate: 0.02, batch_size: 64}}
search: {agent: random, baseline: null, trials: 3, finalists: 1}
sparsify: {method: one_shot, target: {sparsity: 0.5}, training: {epochs: 1, learning_rate: 0.02, batch_size: 64}}
"""
# a verb with its arguments, and the file that its result is in
VERBS = {
    "prune": (("prune", "CONFIG", "--target", "macs=0.7x"), "summary.json"),
    "search": (("search", "CONFIG"), "summary.json"),
    "sparsify": (("sparsify", "CONFIG"), "summary.json"),
    "sensitivity": (("sensitivity", "CONFIG", "--points", "2", "--joint", "2"), "sensitivity.csv"),
}
WORKS = ("exit code 0",)

# what is odd, and words of the line that says so; WORKS where the job is to end well
MODELS = {
    "sound": WORKS,
    "raises": (r"\x1b[31mfirst line", "ValueError", "odd_factories.py"),
    "exits_well": ("SystemExit", "odd_factories.py"),
    "exits_at_once": ("os._exit", "odd_factories.py"),
    "interrupts": ("KeyboardInterrupt", "odd_factories.py"),
    "own_error": ("OwnError: out of this world",),
    "recursion": ("RecursionError",),
    "exits_late": ("SystemExit", "odd_factories.py"),
    "raises_late": ("the accelerator fell off", "odd_factories.py"),
    "stops_late": ("StopIteration", "odd_factories.py"),
    "prints": WORKS,
    "wide_default": WORKS,
    "no_gradients": WORKS,
    "made_in_inference_mode": WORKS,
    "on_meta": ("meta",),
    "float64": ("float64",),
    "half": ("float16",),
    "nan_weight": ("second.weight",),
    "infinite_weight": ("head.weight",),
    "changes_its_input": ("changes its input in place",),
    "marked_up": WORKS,
    "nothing_to_prune": ("nothing", "can be pruned"),
    "branches": ("no branch",),
    "noisy": ("differ",),
}
ONNX = {"other_in_export": ("ONNX",), "nan_in_export": ("ONNX",)}  # where an ONNX file is delivered
DATA = {
    "data_raises_late": ("the disk is gone", "odd_factories.py"),
    "data_exits_late": ("SystemExit", "odd_factories.py"),
    "ragged": ("41", "shape"),
    "alone": ("41",),
    "words": ("str",),
    "nothing": ("None",),
    "no_length": ("nobody counted",),
    "grows": ("length",),
    "augmented": WORKS,
    "numpy_labels": WORKS,
    "int8_labels": WORKS,
    "one_hot": WORKS,
    "float_targets": ("float32",),
    "float_vectors": ("data.targets: dense",),
    "out_of_range": ("3",),
    "ignored": ("-100",),
    "nan_inputs": ("nan",),
    "byte_images": ("uint8",),
    "with_gradients": WORKS,
    "leaking": WORKS,
    "no_data": ("train",),
}


def cases() -> list[object]:
    """Every oddity with every verb; of the verbs beyond the first, as slow tests."""
    odd = [(model, "columns", words) for model, words in {**MODELS, **ONNX}.items()]
    odd += [("sound", data, words) for data, words in DATA.items()]
    return [
        pytest.param(verb, *case, marks=[pytest.mark.slow] * (verb != "prune"), id=f"{verb}-{case[0]}-{case[1]}")
        for verb in VERBS
        for case in odd
        if verb in ("prune", "search") or case[0] not in ONNX
    ]


@pytest.mark.parametrize(("verb", "model", "data", "words"), cases())
def test_it_works_or_says_in_one_line_why_not(
    verb: str,
    model: str,
    data: str,
    words: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AMCSEARCH_CACHE", str(tmp_path / "cache"))
    config, folder = tmp_path / "odd.yaml", tmp_path / "run"
    config.write_text(CONFIG.replace("ODD", str(ODD)).replace("MODEL", model).replace("DATA", data))
    arguments, file = VERBS[verb]
    code = main([str(config) if a == "CONFIG" else a for a in arguments] + ["--json", "-o", str(folder)])
    out, errors = capfd.readouterr()
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("amcsearch: ")]
    if words == WORKS:
        assert code == 0, errors
        assert (folder / file).exists()
        assert all(not isinstance(v, float) or math.isfinite(v) for v in json.loads(out).values())
        return
    assert code == 2, errors
    printed = json.loads(out)["error"]
    assert (printed["exit_code"], printed["kind"]) == (2, "bad_input")
    (line,) = lines
    for word in words:
        assert word.lower() in line.lower()
    assert "\x1b" not in line
