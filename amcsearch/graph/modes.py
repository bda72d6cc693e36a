"""Context managers that restore the train or eval flag of every module, also after an exception."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "modes_kept"]


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
