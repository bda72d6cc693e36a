"""Removal of channels: a new, smaller module, and its trace, without the dependency graph.

The dense module is deep-copied with a memo that already maps every sliced tensor to its slice. So dense weights that
are cut are never copied whole, and the two modules share nothing. ``duplicate`` is that copy, several times faster than
``copy.deepcopy``, because the search makes one for every evaluation: plain values, empty hook tables and tensors are
copied directly; whatever else a module holds, and modules that define their own copying, go through ``copy.deepcopy``
with the same memo. Functions that close over modules are made anew over the copies, which ``copy.deepcopy`` does not
do: a copy would run layers of the module that it was made of.

``renumbered`` gives the trace of the smaller module: the same groups, with channels and positions counted anew. Tracing
it again gives the same trace with one exception. A group cut to its last unit would be missing, because channels that
can only be removed all together are no group.
"""

import copy
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import PruningPolicy, Side
from amcsearch.graph.folding import check_folded
from amcsearch.graph.modes import forget
from amcsearch.graph.packed_attention import free_heads
from amcsearch.graph.plain_code import CutArgument, GridAxis, ask_for, lower
from amcsearch.graph.slices import ArgumentSlice, Kept, NormSlice, TensorSlice, Trace, Vanishing, check_kept
from amcsearch.graph.vanished import emptied

__all__ = [
    "VanishedLayers",
    "duplicate",
    "leaving",
    "remove",
    "removed_positions",
    "renumbered",
    "tensors_of",
    "vanished_layers",
]

_Module = TypeVar("_Module", bound=nn.Module)
_ATOMIC = {int, float, str, bool, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size, torch.layout}
_ATOMIC |= {types.BuiltinFunctionType}
_OWN_COPYING = ("__deepcopy__", "__copy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")


def duplicate(module: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """Return a deep copy of ``module``; ``memo`` maps ids of objects already copied (or replaced) to their copies.

    A tensor that the module keeps from its last run is copied without the graph that made it.
    """
    copied: _Module = _copy(module, {} if memo is None else memo)
    return copied


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMIC:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is types.FunctionType:
        return _copy_function(value, memo)
    if kind is dict or kind is OrderedDict:
        return _copy_mapping(value, memo)
    if kind is list:
        copied: list[Any] = []
        memo[id(value)] = copied
        copied.extend(_copy(item, memo) for item in value)
        return copied
    if kind is nn.Parameter or kind is Tensor:
        return _copy_tensor(value, memo)
    if (kind is tuple or kind is set) and all(type(item) in _ATOMIC for item in value):
        return value if kind is tuple else set(value)
    if kind is tuple:
        return tuple(_copy(item, memo) for item in value)
    if isinstance(value, nn.Module) and _is_plain(kind):
        return _copy_module(value, memo)
    return copy.deepcopy(value, memo)


def _copy_function(value: types.FunctionType, memo: dict[int, Any]) -> Any:
    """Return the function itself, but one that closes over modules or tensors as a function of their copies.

    What ``torch.compile`` made of a method is copied as the method: compiled, it would run that of the dense module.
    """
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        return _copy(compiled, memo)
    if not _closes_over_tensors(value, set()):
        return value
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    copied = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    memo[id(value)] = copied
    copied.__kwdefaults__ = value.__kwdefaults__
    copied.__dict__.update(value.__dict__)
    for new, cell in zip(cells, value.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is not filled yet
            new.cell_contents = _copy(cell.cell_contents, memo)
    return copied


def _closes_over_tensors(value: object, visited: set[int]) -> bool:
    """Whether a function (or what it closes over) holds modules, tensors, or methods of modules."""
    if id(value) in visited:
        return False
    visited.add(id(value))
    if isinstance(value, types.MethodType):
        return isinstance(value.__self__, nn.Module)
    if isinstance(value, types.FunctionType):
        parts: Iterable[object] = value.__closure__ or ()
        if hasattr(value, "_torchdynamo_orig_callable"):
            return True
    elif isinstance(value, types.CellType):
        try:
            parts = (value.cell_contents,)
        except ValueError:
            return False
    elif isinstance(value, Mapping):
        parts = value.values()
    else:
        parts = value if isinstance(value, list | tuple) else ()
    return isinstance(value, nn.Module | Tensor) or any(_closes_over_tensors(part, visited) for part in parts)


def _copy_mapping(value: Any, memo: dict[int, Any]) -> Any:
    memo[id(value)] = copied = type(value)()
    for key, item in value.items():
        copied[_copy(key, memo)] = _copy(item, memo)
    return copied


def _copy_tensor(value: Tensor, memo: dict[int, Any]) -> Tensor:
    if value.is_leaf and value.__dict__:
        return copy.deepcopy(value, memo)
    data = value.detach().clone(memory_format=torch.preserve_format)
    is_parameter = type(value) is nn.Parameter
    requires_grad = value.requires_grad and value.is_leaf  # one that a module keeps from its last run is cut off it
    copied = nn.Parameter(data, requires_grad) if is_parameter else data.requires_grad_(requires_grad)
    memo[id(value)] = copied
    return copied


def _copy_module(value: nn.Module, memo: dict[int, Any]) -> nn.Module:
    memo[id(value)] = copied = type(value).__new__(type(value))
    state = copied.__dict__
    for name, item in value.__dict__.items():
        state[name] = _copy(item, memo)
    return copied


_PLAIN: dict[type, bool] = {}


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether the class copies as ``nn.Module`` itself does (a convolution only fills in what old pickles lack)."""
    if kind not in _PLAIN:
        base = nn.modules.conv._ConvNd if issubclass(kind, nn.modules.conv._ConvNd) else nn.Module
        _PLAIN[kind] = all(getattr(kind, name, None) is getattr(base, name, None) for name in _OWN_COPYING)
    return _PLAIN[kind]


Place = TypeVar("Place")
Slice = TypeVar("Slice", TensorSlice, NormSlice, ArgumentSlice)


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
    mode and ``requires_grad`` are kept. Where a group keeps no channels, its layers are replaced (``vanished``).

    Raises:
        BadInputError: kept channels that do not fit the trace, or as ``check_folded``.
    """
    check_folded(model, trace)
    removed = check_kept(trace, kept)
    branches = _gone_branches(trace, removed)
    for name, branch in branches.items():  # code that does not run on no channels is left ``width`` of zeros
        stand_ins = trace.units[name].ravel()[: branch.width]
        removed[name] = np.setdiff1d(removed[name], stand_ins)
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
        lower(modules[path], attribute, n)
    for (path, place), size in _sizes_left(trace, removed).items():
        ask_for(modules[path], place, size)
    for name, _ in positions:
        path = name.rpartition(".")[0]
        free_heads(modules[path])
        free_heads(modules[path.rpartition(".")[0]])  # of its output projection
    for (path, argument, dim, width), gone in leaving(trace.arguments, removed, _argument).items():
        modules[path].register_forward_pre_hook(CutArgument(argument, dim, width, gone), with_kwargs=True)
    emptied(small, branches)
    forget(small)
    return small


def _gone_branches(trace: Trace, removed: Mapping[str, NDArray[np.int64]]) -> dict[str, Vanishing]:
    """Return the branches of groups that keep no channels; ``removed``: as of ``check_kept``."""
    widths = {group.name: group.channels for group in trace.network.groups}
    return {name: trace.vanishing[name] for name, gone in removed.items() if len(gone) == widths[name]}


@dataclass(frozen=True)
class VanishedLayers:
    """Convolutions and linear layers of vanished branches, by path: those that write a constant, and those that write
    nothing any more."""

    constant: frozenset[str]
    silent: frozenset[str]


def vanished_layers(trace: Trace, kept: Kept) -> VanishedLayers:
    """Return the layers that ``remove(model, trace, kept)`` has replaced.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    branches = _gone_branches(trace, check_kept(trace, kept)).values()
    silent = frozenset(path for branch in branches for path in (*branch.writers, *branch.idle))
    return VanishedLayers(frozenset(path for branch in branches for path in branch.readers) - silent, silent)


def tensors_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Look up parameters and buffers by their state-dict names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        tensors[name] = getattr(modules[path], leaf)
    return tensors


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


def _sizes_left(trace: Trace, removed: Mapping[str, NDArray[np.int64]]) -> dict[tuple[str, GridAxis], int]:
    """Return what is left of the sizes that code states, by module and place."""
    left: dict[tuple[str, GridAxis], int] = {}
    for size in trace.sizes:
        if size.group in removed:
            lost = len(removed[size.group]) * size.lost // size.removed
            left[size.module, size.place] = left.get((size.module, size.place), size.now) - lost
    return left


def _argument(part: ArgumentSlice) -> tuple[str, str | int, int, int]:
    return part.module, part.name, part.dim, part.width


Indices = NDArray[np.int64]


def renumbered(trace: Trace, kept: Kept) -> Trace:
    """Return the trace of ``remove(model, trace, kept)``, its groups named and ordered as in ``trace``.

    Groups that keep no channels are gone, and so are others that only their branches read.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    removed = defaultdict(_nothing, check_kept(trace, kept))
    branches = _gone_branches(trace, removed)
    left = {name: np.setdiff1d(units, removed[name]) for name, units in trace.units.items()}
    in_tensors = defaultdict(_nothing, removed_positions(trace, removed))
    in_norms = defaultdict(_nothing, leaving(trace.norms, removed, lambda part: part.module))
    in_arguments = defaultdict(_nothing, leaving(trace.arguments, removed, _argument))
    sizes = _sizes_left(trace, removed)

    def in_tensor(part: TensorSlice, group: str) -> TensorSlice:
        positions = _closed_up(part.positions[left[group]], in_tensors[part.tensor, part.dim])
        return TensorSlice(part.tensor, part.dim, positions, part.side, part.layer)

    def in_norm(part: NormSlice, group: str) -> NormSlice:
        gone = in_norms[part.module]
        return NormSlice(part.module, part.width - len(gone), _closed_up(part.positions[left[group]], gone))

    def in_argument(part: ArgumentSlice, group: str) -> ArgumentSlice:
        gone = in_arguments[_argument(part)]
        return replace(part, width=part.width - len(gone), positions=_closed_up(part.positions[left[group]], gone))

    def unit_rows(units: Indices, group: str) -> Indices:
        return _closed_up(units[np.isin(units[:, 0], left[group])], removed[group])

    network = trace.network.with_channels(PruningPolicy({name: len(channels) for name, channels in left.items()}))
    smaller = replace(
        trace,
        network=network,
        slices={name: tuple(in_tensor(part, name) for part in parts) for name, parts in trace.slices.items()},
        units={name: unit_rows(units, name) for name, units in trace.units.items()},
        norms={name: tuple(in_norm(part, name) for part in parts) for name, parts in trace.norms.items()},
        arguments={name: tuple(in_argument(part, name) for part in parts) for name, parts in trace.arguments.items()},
        sizes=tuple(replace(size, now=sizes.get((size.module, size.place), size.now)) for size in trace.sizes),
    )
    return _without(smaller, branches)


def _without(trace: Trace, branches: Mapping[str, Vanishing]) -> Trace:
    """Return the trace of groups of its network alone, without what the modules of vanished branches held."""
    names = {group.name: group.couplings[0].layer for group in trace.network.groups}
    gone = {path for b in branches.values() for path in (*b.writers, *b.norms, *b.idle)}
    constants = {path for b in branches.values() for path in b.readers} - gone
    gone |= constants

    def parts_left(name: str) -> Iterable[TensorSlice]:
        parts = trace.slices[name]
        biased = {part.tensor for part in parts if part.tensor.endswith("bias")}
        for part in parts:
            path, _, leaf = part.tensor.rpartition(".")
            if path not in gone:
                yield part
            elif path in constants and leaf == "bias":
                yield replace(part, layer=f"{part.layer}.bias")
            elif path in constants and part.side is Side.OUT and f"{path}.bias" not in biased:  # a buffer of zeros
                yield TensorSlice(f"{path}.bias", 0, part.positions, Side.OUT, names[name])

    def branch_left(branch: Vanishing) -> Vanishing:
        roles = (branch.readers, branch.writers, branch.norms, branch.idle)
        readers, writers, norms, idle = (tuple(path for path in paths if path not in gone) for paths in roles)
        return replace(branch, readers=readers, writers=writers, norms=norms, idle=idle)

    return replace(
        trace,
        slices={name: tuple(parts_left(name)) for name in names},
        units={name: trace.units[name] for name in names},
        norms={name: tuple(p for p in trace.norms.get(name, ()) if p.module not in gone) for name in names},
        attributes=tuple(a for a in trace.attributes if a.group in names and a.module not in gone),
        vanishing={name: branch_left(branch) for name, branch in trace.vanishing.items() if name in names},
        arguments={name: parts for name, parts in trace.arguments.items() if name in names},
        sizes=tuple(size for size in trace.sizes if size.group in names and size.module not in gone),
    )


def _nothing() -> Indices:
    return np.zeros(0, dtype=np.int64)


def _closed_up(positions: Indices, gone: Indices) -> Indices:
    """Positions, any shape, after those of ``gone`` (sorted, none of them among ``positions``) have left."""
    return positions - np.searchsorted(gone, positions)
