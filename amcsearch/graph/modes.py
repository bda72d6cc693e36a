"""Context managers that restore the mode of every module, and guards that restore the settings of torch itself."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from amcsearch.core import KEEPERS

__all__ = ["evaluating", "forget", "modes_kept", "unfused", "usual_modes"]


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[nn.Module]:
    """Restore the train or eval flag of every module on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode in every module; each gets its own mode back on leaving."""
    with modes_kept(model):
        yield model.eval()


def forget(model: nn.Module) -> None:
    """Let modules drop what they keep of their weights in evaluation mode: they do so where training begins."""
    for module in model.modules():
        if type(module).train is not nn.Module.train:
            with modes_kept(module):
                module.train()


@contextmanager
def unfused() -> Iterator[None]:
    """Torch's encoder layers call their children, and what torch.compile made runs as it was written.

    Neither fused kernels nor compiled code show the layers that run. Nothing is compiled where the compiler was never
    imported, which takes a second.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def usual_modes() -> Iterator[None]:
    """Torch as it starts: gradients are recorded, nothing is cast, tensors are made on the CPU; the caller's come back.

    A network that casts itself (``torch.autocast`` in its forward) keeps no cast weights from call to call either: it
    would inside of a context of the caller's, and see none of the changes that are made to weights here.
    """
    on_cpu = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad(), _outside_autocast(), on_cpu:
        yield


@contextmanager
def _outside_autocast() -> Iterator[None]:
    enabled, depth = torch.is_autocast_enabled("cpu"), torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.set_autocast_enabled("cpu", False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", enabled)
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _inference_mode(mode: bool) -> None:
    context = torch.inference_mode(mode)
    context.__enter__()
    _ENTERED.append(context)  # it would be left again where it is freed


def _default_device(torch_device: torch.device) -> None:
    torch.set_default_device(None if torch_device.type == "cpu" else torch_device)


_ENTERED: Final[list[Any]] = []
_SETTINGS: Final[dict[str, tuple[Callable[[], Any], Callable[..., Any]]]] = {
    # inference mode first: changing it changes whether gradients are recorded
    "inference mode": (torch.is_inference_mode_enabled, _inference_mode),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (lambda: torch.empty(0).device, _default_device),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the use of deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "anomaly detection": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    "autocasting": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda value: torch.set_autocast_enabled("cpu", value),
    ),
    "the precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
}
"""Of the whole process or thread: what each is called, how it is read, and how it is set."""


def _read() -> tuple[Any, ...]:
    return tuple(read() for read, _ in _SETTINGS.values())


def _settings_of_torch() -> Callable[[], Iterable[str]]:
    before = _read()

    def put_back() -> Iterable[str]:
        after = _read()
        if after == before:
            return ()
        for (read, write), value in zip(_SETTINGS.values(), before, strict=True):
            if read() != value:
                write(value)
        return [f"torch: {name}" for name, old, new in zip(_SETTINGS, before, after, strict=True) if old != new]

    return put_back


KEEPERS.append(_settings_of_torch)
