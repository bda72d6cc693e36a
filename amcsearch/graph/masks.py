"""Temporary masks of channels; norms that mix channels leave the masked ones out of their statistics."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.graph.folding import check_folded
from amcsearch.graph.modes import forget, unfused
from amcsearch.graph.removal import removed_positions, tensors_of
from amcsearch.graph.slices import Kept, Trace, check_kept
from amcsearch.graph.tracing.layer_types import layer_type, no_norm, norm_dim, take_for_norm, vector_dim

__all__ = ["masked"]


@contextmanager
def masked(model: nn.Module, trace: Trace, kept: Kept) -> Iterator[nn.Module]:
    """Zero every slice of the channels not in ``kept``, in place; groups not named keep everything.

    Layer, RMS and group norms take their statistics over kept channels only, so the output equals that of the
    really smaller module. On leaving, also by an exception, every touched tensor is restored bit for bit.

    Raises:
        BadInputError: kept channels that do not fit the trace, or as ``check_folded``.
    """
    check_folded(model, trace)
    removed = check_kept(trace, kept)
    positions = removed_positions(trace, removed)
    touched = {name: tensor.data for name, tensor in tensors_of(model, (name for name, _ in positions)).items()}
    saved = {name: tensor.clone() for name, tensor in touched.items()}
    wrapped: list[nn.Module] = []
    taken: list[nn.Module] = []
    try:
        for (name, dim), gone in positions.items():
            touched[name].index_fill_(dim, torch.from_numpy(gone).to(touched[name].device), 0)
        for path, keep in _norm_channels(trace, removed).items():
            module = model.get_submodule(path)
            wrapped.append(module)
            if take_for_norm(module):  # as the trace does
                taken.append(module)
            module.__dict__["forward"] = _on_kept(module, torch.from_numpy(keep))
        forget(model)
        with unfused() if wrapped else nullcontext():
            yield model
    finally:
        for module in wrapped:
            module.__dict__.pop("forward", None)
        for module in taken:
            no_norm(module)
        for name, value in saved.items():
            touched[name].copy_(value)
        forget(model)


def _norm_channels(trace: Trace, removed: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Return the kept channels of each channel-mixing norm that loses some."""
    present: dict[str, NDArray[np.bool_]] = {}
    for group, channels in removed.items():
        for norm in trace.norms.get(group, ()):
            mask = present.setdefault(norm.module, np.ones(norm.width, dtype=bool))
            mask[norm.positions[channels].ravel()] = False
    return {path: np.flatnonzero(mask) for path, mask in present.items()}


def _on_kept(module: nn.Module, keep: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a forward that normalises the kept channels alone and leaves zeros elsewhere; gradients flow."""
    kind = layer_type(module)
    assert kind is not None
    attributes = kind.attributes(module)

    def forward(x: Tensor) -> Tensor:
        dim, index = norm_dim(module, x.shape), keep.to(x.device)
        if not len(keep):
            return torch.zeros_like(x)
        small = copy.copy(module)
        small.__dict__.pop("forward", None)
        small.__dict__.update(_parameters={}, _buffers={})
        for name, vector in (*module._parameters.items(), *module._buffers.items()):
            small.__dict__[name] = None if vector is None else vector.index_select(vector_dim(vector), index)
        for name, _ in attributes:
            value = getattr(module, name)
            small.__dict__[name] = (len(keep), *value[1:]) if isinstance(value, tuple) else len(keep)
        y = type(module).forward(small, x.index_select(dim, index))
        return torch.zeros_like(x, dtype=y.dtype).index_copy(dim, index, y)

    return forward
