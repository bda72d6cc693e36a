"""Cut channels for good: a new, really smaller module, without the dependency graph.

The dense module is deep-copied with a memo that already maps every sliced tensor to its slice, so dense weights
that are cut are never copied whole, and the two modules share nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.graph.duplicate import duplicate
from amcsearch.graph.slices import Kept, NormSlice, TensorSlice, Trace, check_kept

__all__ = ["leaving", "remove", "removed_positions", "tensors_of"]

Place = TypeVar("Place")
Slice = TypeVar("Slice", TensorSlice, NormSlice)


def removed_positions(
    trace: Trace, removed: Mapping[str, NDArray[np.int64]]
) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Return for each (tensor name, dim) the sorted positions that leave."""
    return leaving(trace.slices, removed, lambda part: (part.tensor, part.dim))


def leaving(
    slices: Mapping[str, Sequence[Slice]], removed: Mapping[str, NDArray[np.int64]], place_of: Callable[[Slice], Place]
) -> dict[Place, NDArray[np.int64]]:
    """Return the sorted positions that leave each place, of slices by group; ``place_of`` says where a slice is."""
    positions: dict[Place, list[NDArray[np.int64]]] = defaultdict(list)
    for group, channels in removed.items():
        for part in slices.get(group, ()):
            positions[place_of(part)].append(part.positions[channels].ravel())
    return {place: np.unique(np.concatenate(parts)) for place, parts in positions.items()}


def remove(model: nn.Module, trace: Trace, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` with only the ``kept`` channels; groups not named keep everything.

    Its output equals the masked module's. ``model`` is untouched and shares nothing mutable with the result;
    mode and ``requires_grad`` are kept.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    removed = check_kept(trace, kept)
    positions = removed_positions(trace, removed)
    dense = tensors_of(model, (name for name, _ in positions))
    memo: dict[int, object] = {id(dense[name]): tensor for name, tensor in _sliced(dense, positions).items()}
    small = duplicate(model, memo)
    lost: Counter[tuple[str, str]] = Counter()
    for rule in trace.attributes:
        if rule.group in removed:
            lost[rule.module, rule.attribute] += len(removed[rule.group]) * rule.lost // rule.removed
    modules = dict(small.named_modules(remove_duplicate=False))
    for (path, attribute), n in lost.items():
        _shrink(modules[path], attribute, n)
    return small


def tensors_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Look up parameters and buffers by their state-dict names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        found[name] = getattr(modules[path], leaf)
    return found


def _sliced(dense: Mapping[str, Tensor], positions: Mapping[tuple[str, int], NDArray[np.int64]]) -> dict[str, Tensor]:
    """Slice every touched tensor along its touched dimensions; parameters stay parameters."""
    cut: dict[str, Tensor] = {}
    for (name, dim), gone in positions.items():
        tensor = cut[name] if name in cut else dense[name].detach()
        keep = np.delete(np.arange(tensor.shape[dim]), gone)
        cut[name] = tensor.index_select(dim, torch.from_numpy(keep).to(tensor.device))
    for name, tensor in cut.items():
        if isinstance(dense[name], nn.Parameter):
            cut[name] = nn.Parameter(tensor, requires_grad=dense[name].requires_grad)
    return cut


def _shrink(module: nn.Module, attribute: str, lost: int) -> None:
    """Lower an integer width, or a 1-tuple of one (``normalized_shape``)."""
    value = getattr(module, attribute)
    setattr(module, attribute, (value[0] - lost,) if isinstance(value, tuple) else value - lost)
