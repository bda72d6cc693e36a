"""Settings of torch and of the process that code of the user leaves changed are put back and logged."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amcsearch.core import UserCode, guarded_job, settings_kept
from amcsearch.graph import evaluating

ENTERED: list[torch.inference_mode] = []


def _enter(context: torch.inference_mode) -> None:
    ENTERED.append(context)  # it would be left where it is freed
    context.__enter__()


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "inference mode": (torch.is_inference_mode_enabled, lambda: _enter(torch.inference_mode())),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "deterministic": (
        torch.is_deterministic_algorithms_warn_only_enabled,
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "anomaly": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(True)),
    "autocasting": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    ),
    "precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "folder": (os.getcwd, lambda: os.chdir("/")),
    "SIGTERM": (
        lambda: signal.getsignal(signal.SIGTERM),
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("keep", [UserCode, settings_kept], ids=["guard", "settings_kept"])
def test_what_was_changed_is_put_back_and_logged(
    name: str, keep: Callable[[str], UserCode], caplog: pytest.LogCaptureFixture
) -> None:
    read, change = CHANGES[name]
    before = read()
    with keep("model.factory"):
        change()
        assert read() != before
    assert read() == before
    assert name in caplog.text
    assert "model.factory changed" in caplog.text
    assert (torch.ones(1, requires_grad=True) * 2).requires_grad


def test_it_is_put_back_where_the_code_raises_and_after_a_job() -> None:
    with pytest.raises(ValueError, match="raised RuntimeError: late"), UserCode("x"):
        raise _after(torch.set_default_dtype, torch.float16)
    with guarded_job():
        torch.set_default_dtype(torch.float16)
    assert torch.get_default_dtype() is torch.float32


def _after(change: Callable[[torch.dtype], None], value: torch.dtype) -> RuntimeError:
    change(value)
    return RuntimeError("late")


def test_nothing_is_said_where_nothing_changed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with UserCode("x"), torch.no_grad(), torch.inference_mode(), evaluating(torch.nn.Linear(1, 1)):
        tmp_path.joinpath("x").write_text("1")
    assert caplog.text == ""
