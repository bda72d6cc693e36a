"""Attributes of modules that state a width: integers of Python code that must fall with the channels of a group.

So do tensors that modules are given, which are cut there (``with_arguments``).

Modules of a known type say which they have. For other code an integer counts where it says the size of something that
shrinks: the number of heads where a view makes a grid of heads, the length of a part where code cuts a tensor, a width
of a weight in the module that holds it. Whether the right ones fall is found by experiment (``trace``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import Coupling, Side
from amcsearch.graph.batch import Batch
from amcsearch.graph.slices import ArgumentSlice, Trace, WidthAttribute
from amcsearch.graph.tracing.flow import Cut, Split
from amcsearch.graph.tracing.grouping import RawGroup
from amcsearch.graph.tracing.labels import Axis, small
from amcsearch.graph.tracing.layer_types import layer_type

__all__ = ["CodeWidths", "stated", "with_arguments"]

_HEADS: Final = frozenset({"nhead", "num_head", "n_head", "heads", "n_kv_head", "n_groups"})
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_SHARING: Final = frozenset({"num_key_value_groups", "n_rep", "num_queries_per_kv"})
"""Query heads of one key head: as many as there are query heads where there is one key head."""
_WIDTHS: Final = frozenset(
    {
        *("all_head_size", "inner_dim", "inner_size", "attention_dim", "attn_dim", "attention_width", "inner_width"),
        *("attention_head_size_all", "d_inner"),
    }
)
_READ: Final = frozenset({"nx", "in_features", "in_channels", "in_dim", "d_in", "input_size", "input_dim", "n_in"})
_WRITTEN: Final = frozenset({"nf", "out_features", "out_channels", "out_dim", "d_out", "output_size", "n_out"})

_NO_CONFIG: Final = type("NoConfig", (), {})()

Indices = NDArray[np.int64]


class CodeWidths:
    """The integers of a model's modules, and where its code makes grids of channels and cuts them."""

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        code: tuple[Sequence[Split], Sequence[Cut]],
        produced: NDArray[np.bool_],
    ) -> None:
        self.modules = dict(model.named_modules())
        self.tensors, self.produced = tensors, produced
        self.splits, self.cuts = code

    def of(self, name: str, group: RawGroup, unit_of: Indices) -> Iterator[WidthAttribute]:
        """Yield the attributes that fall with a group; ``unit_of`` maps slots to units."""
        width = group.units.shape[1]
        units = unit_of[group.slots]
        for split in self.splits:
            yield from self._counts(name, split, unit_of, units, width)
        for cut in self.cuts:
            yield from self._parts(name, cut, unit_of, units, width)
        yield from self._weights(name, group)

    def _integers(self, path: str) -> Iterator[tuple[str, int]]:
        for attribute, value in vars(self.modules[path]).items():
            if type(value) is int and not attribute.startswith("_"):
                yield attribute, value

    def _configured(self, path: str) -> Iterator[tuple[str, int]]:
        """Integers of the configuration that a module reads while it runs."""
        for attribute, value in vars(getattr(self.modules.get(path), "config", _NO_CONFIG)).items():
            if type(value) is int and not attribute.startswith("_"):
                yield f"config.{attribute}", value

    def _around(self, path: str) -> Iterator[str]:
        """The module and those that it is in."""
        while True:
            if path in self.modules:
                yield path
            if not path:
                return
            path = path.rpartition(".")[0]

    def _counts(
        self, name: str, split: Split, unit_of: Indices, units: Indices, width: int
    ) -> Iterator[WidthAttribute]:
        labels = split.labels.numpy()
        grid = np.where(labels > 0, unit_of[np.maximum(labels, 0)], 0)
        if not np.isin(grid, units).any():
            return
        unit = int(grid[np.isin(grid, units)].flat[0])
        total = int(np.prod(grid.shape[-split.axes :]))
        for axis in range(grid.ndim - split.axes, grid.ndim):
            moved = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
            here = (moved == unit).any(axis=1)
            if here.all():
                continue  # this axis keeps its size
            lost = int(here.sum())
            around = [(path, *integer) for path in self._around(split.module) for integer in self._integers(path)]
            around += [(split.module, *integer) for integer in self._configured(split.module)]
            stated = {attribute.rpartition(".")[2]: value for path, attribute, value in around if path == split.module}
            shared = any(stated.get(key) == 1 for key in _KEY_HEADS)
            for path, attribute, value in around:
                if shared and attribute in _SHARING and value == grid.shape[axis]:
                    yield WidthAttribute(path, attribute, name, lost, width)
                if _counts_heads(attribute) and value == grid.shape[axis]:
                    yield WidthAttribute(path, attribute, name, lost, width)
                if attribute.rpartition(".")[2] in _WIDTHS and value in (total, total // 3, 2 * total):
                    yield WidthAttribute(path, attribute, name, value // len(moved) * lost, width)

    def _parts(self, name: str, cut: Cut, unit_of: Indices, units: Indices, width: int) -> Iterator[WidthAttribute]:
        labels = small(cut.label)
        lost: dict[int, set[int]] = {}
        for start, length in cut.parts:
            part = np.moveaxis(labels.narrow(cut.dim, start, length).numpy(), cut.dim, 0).reshape(length, -1)
            here = np.where(part > 0, unit_of[np.maximum(part, 0)], 0)
            whole = here[(here == here[:, :1]).all(axis=1), 0]  # an index that heads share stays with those left
            inside = whole[np.isin(whole, units)]
            lost.setdefault(length, set()).add(int((whole == inside[0]).sum()) if inside.size else 0)
        integers = list(self._integers(cut.module)) if cut.module in self.modules else []
        heads = {value for attribute, value in integers if _counts_heads(attribute)}
        for attribute, value in integers:
            counts = lost.get(value, {0})
            is_other = value in heads and not _counts_heads(attribute)  # happens to equal the number of heads
            is_other |= attribute.endswith(("head_dim", "head_size"))  # heads leave whole, and keep their width
            if len(counts) == 1 and 0 not in counts and not is_other:
                yield WidthAttribute(cut.module, attribute, name, next(iter(counts)), width)

    def _weights(self, name: str, group: RawGroup) -> Iterator[WidthAttribute]:
        """Widths that modules of other types state of the weights that they hold."""
        axes = [(place, positions) for place, positions in group.positions.items() if isinstance(place, Axis)]
        for place, positions in axes:
            for tensor in place.names:
                path, _, leaf = tensor.rpartition(".")
                module = self.modules.get(path)
                if module is None or layer_type(module) is not None or self.tensors[tensor].ndim < 2:
                    continue
                factor = positions.shape[1]
                if isinstance(module, nn.RNNBase):
                    state = "proj_size" if module.proj_size else "hidden_size"
                    stated = {"weight_ih_l0": "input_size", "weight_hh_l0": state, "weight_hr_l0": "hidden_size"}.get(
                        leaf
                    )
                    if stated and place.dim == 1:
                        yield WidthAttribute(path, stated, name, factor)
                    continue
                other = _READ if self.produced[place.base] else _WRITTEN
                for attribute, value in self._integers(path):
                    if value == self.tensors[tensor].shape[place.dim] and attribute in (_READ | _WRITTEN) - other:
                        yield WidthAttribute(path, attribute, name, factor)


def _counts_heads(attribute: str) -> bool:
    """Whether an integer says how many heads there are: ``num_heads``, ``config.encoder_num_key_value_heads``, …"""
    name = attribute.rpartition(".")[2]
    return name in _HEADS or name.endswith("_heads")


def stated(model: nn.Module, trace: Trace, name: str, modules: Sequence[str] | None) -> list[WidthAttribute]:
    """Integers that equal a width of a group, in the first of some modules that has any.

    With None: those of all modules that equal the width of the layer that writes it.
    """
    group = next(group for group in trace.network.groups if group.name == name)
    widths: dict[int, Coupling] = {}
    for coupling in sorted(group.couplings, key=lambda coupling: coupling.side is not Side.OUT):
        if coupling.removed <= coupling.factor:  # numbers of heads are known by their names
            widths.setdefault(group.channels * coupling.factor // coupling.removed, coupling)
    known = {(a.module, a.attribute) for a in trace.attributes if a.group == name}
    held = dict(model.named_modules())
    entries = []
    for path in held if modules is None else modules:
        if layer_type(held[path]) is not None or isinstance(held[path], nn.RNNBase):
            continue
        entries += [
            WidthAttribute(path, attribute, name, widths[value].factor, widths[value].removed)
            for attribute, value in vars(held[path]).items()
            if type(value) is int and value in widths and not attribute.startswith("_")
            if (path, attribute) not in known and (modules is not None or value == next(iter(widths)))
        ]
        if entries and modules is not None:
            break
    return entries


def with_arguments(model: nn.Module, trace: Trace, name: str, batch: Batch) -> Iterator[Trace]:
    """Yield traces in which a tensor is cut where modules that hold layers of a group are given it.

    One of its dimensions is as long as the group has units. It keeps that width where it is made: integers of modules
    around them stay. Tensors of one shape, such as one given to every block, are cut together.
    """
    group = next(group for group in trace.network.groups if group.name == name)
    holders = dict.fromkeys(coupling.layer.rpartition(".")[0] for coupling in group.couplings)
    units = trace.units[name]
    positions = np.empty((group.channels, 1), dtype=np.int64)
    positions[units.ravel(), 0] = np.repeat(np.arange(len(units)), units.shape[1])
    arguments: dict[tuple[torch.Size, int], list[ArgumentSlice]] = {}
    for path, key, tensor in _arguments(model, [path for path in holders if path], batch):
        for dim in [d for d, size in enumerate(tensor.shape) if size == len(units)]:
            arguments.setdefault((tensor.shape, dim), []).append(ArgumentSlice(path, key, dim, len(units), positions))
    for slices in arguments.values():
        paths = tuple(part.module for part in slices)
        kept = (
            a for a in trace.attributes if a.group != name or f"{a.module}.".startswith(tuple(f"{p}." for p in paths))
        )
        yield replace(trace, attributes=tuple(kept), arguments={**trace.arguments, name: tuple(slices)})


def _arguments(model: nn.Module, paths: Sequence[str], batch: Batch) -> list[tuple[str, str | int, Tensor]]:
    """The floating-point tensors that some modules are given when they first run, with their keywords or numbers."""
    modules, given = dict(model.named_modules()), list[tuple[str, str | int, Tensor]]()

    def hear(path: str, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if all(path != known for known, _, _ in given):
            pairs: list[tuple[str | int, object]] = [*enumerate(args), *kwargs.items()]
            given.extend((path, key, x) for key, x in pairs if isinstance(x, Tensor) and x.is_floating_point())

    with ExitStack() as stack, torch.no_grad():
        for path in paths:
            if path in modules:
                hook = modules[path].register_forward_pre_hook(partial(hear, path), with_kwargs=True)
                stack.callback(hook.remove)
        batch.through(model)
    return given
