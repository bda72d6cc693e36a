"""Cut channels for good: a new, really smaller module, without the dependency graph.

The dense module is deep-copied with a memo that already maps every sliced tensor to its slice, so dense weights
that are cut are never copied whole, and the two modules share nothing.
"""

import copy
from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.graph.slices import Kept, Trace, check_kept

__all__ = ["remove", "removed_positions"]


def removed_positions(trace: Trace, removed: dict[str, NDArray[np.int64]]) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Return for each (tensor name, dim) the sorted positions that leave."""
    positions: dict[tuple[str, int], list[NDArray[np.int64]]] = defaultdict(list)
    for group, channels in removed.items():
        for part in trace.slices[group]:
            positions[part.tensor, part.dim].append(part.positions[channels].ravel())
    return {key: np.unique(np.concatenate(parts)) for key, parts in positions.items()}


def remove(model: nn.Module, trace: Trace, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` with only the ``kept`` channels; groups not named keep everything.

    Its output equals the masked module's. ``model`` is untouched and shares nothing mutable with the result;
    mode and ``requires_grad`` are kept.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    removed = check_kept(trace, kept)
    memo: dict[int, object] = {}
    for name, tensor in _sliced(model, removed_positions(trace, removed)).items():
        memo[id(_lookup(model, name))] = tensor
    small: nn.Module = copy.deepcopy(model, memo)
    for rule in trace.attributes:
        if rule.group in removed:
            _shrink(
                small.get_submodule(rule.module), rule.attribute, len(removed[rule.group]) * rule.lost // rule.removed
            )
    return small


def _lookup(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _sliced(model: nn.Module, positions: dict[tuple[str, int], NDArray[np.int64]]) -> dict[str, Tensor]:
    """Slice every touched tensor along its touched dimensions; parameters stay parameters."""
    cut: dict[str, Tensor] = {}
    for (name, dim), gone in positions.items():
        tensor = cut[name] if name in cut else _lookup(model, name).detach()
        keep = np.ones(tensor.shape[dim], dtype=bool)
        keep[gone] = False
        cut[name] = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(keep)).to(tensor.device))
    for name, tensor in cut.items():
        dense = _lookup(model, name)
        if isinstance(dense, nn.Parameter):
            cut[name] = nn.Parameter(tensor, requires_grad=dense.requires_grad)
    return cut


def _shrink(module: nn.Module, attribute: str, lost: int) -> None:
    """Lower an integer width, or a 1-tuple of one (``normalized_shape``)."""
    value = getattr(module, attribute)
    setattr(module, attribute, (value[0] - lost,) if isinstance(value, tuple) else value - lost)
