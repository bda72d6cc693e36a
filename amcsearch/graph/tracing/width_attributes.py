"""Attributes of modules that state a width: integers of Python code that must fall with the channels of a group.

So do tensors that modules are given, which are cut there (``with_arguments``).

Modules of a known type say which they have. For other code an integer counts where it says the size of something that
shrinks: the number of heads where a view makes a grid of heads, the length of a part where code cuts a tensor, a width
of a weight in the module that holds it. Whether the right ones fall is found by experiment (``trace``).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import Coupling, Side
from amcsearch.graph.batch import Batch
from amcsearch.graph.plain_code import Grid
from amcsearch.graph.slices import ArgumentSlice, StatedSize, Trace, WidthAttribute
from amcsearch.graph.tracing.flow import Cut, Shape, Split
from amcsearch.graph.tracing.grouping import RawGroup
from amcsearch.graph.tracing.labels import Axis, small
from amcsearch.graph.tracing.layer_types import layer_type

__all__ = ["CodeWidths", "Guess", "guessed", "pinned", "stated", "with_arguments"]

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

_GUESSES: Final = 4  # integers of unknown names that are tried together

_NO_CONFIG: Final = type("NoConfig", (), {})()

Indices = NDArray[np.int64]


class CodeWidths:
    """The integers of a model's modules, and where its code makes grids of channels and cuts them."""

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        code: tuple[Sequence[Split], Sequence[Cut], Sequence[Shape]],
        produced: NDArray[np.bool_],
    ) -> None:
        self.modules = dict(model.named_modules())
        self.tensors, self.produced = tensors, produced
        self.splits, self.cuts, shapes = code
        self.shapes = [shape for shape in shapes if layer_type(self.modules.get(shape.module)) is None]
        self.claims: list[set[tuple[int, str, int]]] = [set() for _ in self.shapes]

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

    @staticmethod
    def _axes(split: Split, unit_of: Indices, units: Indices) -> Iterator[tuple[int, int, int]]:
        """Yield the axes of a grid that shrink: how long, what a unit takes of it, and the size of the grid."""
        shape = split.labels.shape[-split.axes :]
        for axis, size in enumerate(shape):
            lost = _taken(split.labels, axis + split.labels.ndim - split.axes, unit_of, units)
            if lost:
                yield size, lost, int(np.prod(shape))

    def _counts(
        self, name: str, split: Split, unit_of: Indices, units: Indices, width: int
    ) -> Iterator[WidthAttribute]:
        for size, lost, total in self._axes(split, unit_of, units):
            around = [(path, *integer) for path in self._around(split.module) for integer in self._integers(path)]
            around += [(split.module, *integer) for integer in self._configured(split.module)]
            stated = {attribute.rpartition(".")[2]: value for path, attribute, value in around if path == split.module}
            shared = any(stated.get(key) == 1 for key in _KEY_HEADS)
            for path, attribute, value in around:
                if shared and attribute in _SHARING and value == size:
                    yield WidthAttribute(path, attribute, name, lost, width)
                if _counts_heads(attribute) and value == size:
                    yield WidthAttribute(path, attribute, name, lost, width)
                if attribute.rpartition(".")[2] in _WIDTHS and value in (total, total // 3, 2 * total):
                    yield WidthAttribute(path, attribute, name, value // size * lost, width)

    def guesses(self, name: str, group: RawGroup, unit_of: Indices) -> "Iterator[Guess]":
        """Yield what may state a width where code makes grids of a group, whatever it is called: to be tried.

        Integers of the modules around, of those that they hold, and of plain objects that they keep (a configuration),
        as long as an axis that shrinks; and the sizes of the shapes themselves, which may be numbers of the code.
        """
        width = group.units.shape[1]
        units = unit_of[group.slots]
        for split in self.splits:
            for size, lost, _ in self._axes(split, unit_of, units):
                for path, attribute, value in self._near(split.module):
                    if value == size:
                        yield WidthAttribute(path, attribute, name, lost, width)
        yield from self._sizes(name, unit_of, units, width)

    def _sizes(self, name: str, unit_of: Indices, units: Indices, width: int) -> Iterator[StatedSize]:
        for shape, claims in zip(self.shapes, self.claims, strict=True):
            for axis, dim in enumerate(shape.dims):
                lost = max(_taken(label, dim, unit_of, units) for label in shape.labels)
                if lost:
                    claims.add((axis, name, lost))
                    yield StatedSize(shape.module, (shape.grid, axis), shape.grid[2][axis][1], name, lost, width)
        for cut in self.cuts:
            for length, counts in self._lengths(cut, unit_of, units).items():
                if len(counts) == 1 and 0 not in counts:
                    place = (cut.line, 0, ((cut.dim - cut.label.ndim, length),)), 0
                    yield StatedSize(cut.module, place, length, name, next(iter(counts)), width)

    def clear(self, guesses: "Mapping[str, Sequence[Guess]]") -> "dict[str, list[Guess]]":
        """Return the guesses without sizes of a line that makes other groups of one tensor than of another."""
        made: dict[tuple[str, Grid], set[frozenset[tuple[int, str, int]]]] = defaultdict(set)
        for shape, claims in zip(self.shapes, self.claims, strict=True):
            made[shape.module, shape.grid].add(frozenset(claims))
        for name, entries in guesses.items():
            for size in entries:
                if isinstance(size, StatedSize) and not size.place[0][1]:
                    made[size.module, size.place[0]].add(frozenset([(0, name, size.lost)]))
        return {
            name: [x for x in entries if isinstance(x, WidthAttribute) or len(made[x.module, x.place[0]]) < 2]
            for name, entries in guesses.items()
        }

    def pins(self) -> Iterator[StatedSize]:
        """Yield the sizes of all grids: code that takes them from the width of another tensor asks for others."""
        for shape in self.shapes:
            yield StatedSize(shape.module, (shape.grid, 0), shape.grid[2][0][1], "", 0)

    def _near(self, path: str) -> Iterator[tuple[str, str, int]]:
        """Integers of a module, of those that it is in, and of plain objects that they keep: path, attribute, value."""
        for holder in self._around(path):
            module = self.modules[holder]
            for attribute, value in _attributes_of(module):
                if type(value) is int:
                    yield holder, attribute, value
                elif not isinstance(value, nn.Module | Tensor | type) and hasattr(value, "__dict__"):
                    for inner, number in _attributes_of(value):
                        if type(number) is int:
                            yield holder, f"{attribute}.{inner}", number

    @staticmethod
    def _lengths(cut: Cut, unit_of: Indices, units: Indices) -> dict[int, set[int]]:
        """Return what a unit takes of the parts of every length."""
        labels = small(cut.label)
        lost: dict[int, set[int]] = {}
        for start, length in cut.parts:
            part = np.moveaxis(labels.narrow(cut.dim, start, length).numpy(), cut.dim, 0).reshape(length, -1)
            here = np.where(part > 0, unit_of[np.maximum(part, 0)], 0)
            whole = here[(here == here[:, :1]).all(axis=1), 0]  # an index that heads share stays with those left
            inside = whole[np.isin(whole, units)]
            lost.setdefault(length, set()).add(int((whole == inside[0]).sum()) if inside.size else 0)
        return lost

    def _parts(self, name: str, cut: Cut, unit_of: Indices, units: Indices, width: int) -> Iterator[WidthAttribute]:
        lost = self._lengths(cut, unit_of, units)
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


def _taken(labels: Tensor, dim: int, unit_of: Indices, units: Indices) -> int:
    """Return what a unit takes of a dimension; 0 where it takes nothing, or a part of every index."""
    slots = np.moveaxis(small(labels).numpy(), dim, 0)
    grid = np.where(slots > 0, unit_of[np.maximum(slots, 0)], 0).reshape(len(slots), -1)
    inside = grid[np.isin(grid, units)]
    here = (grid == inside[0]).any(axis=1) if inside.size else np.ones(1, dtype=bool)
    return 0 if here.all() else int(here.sum())


def _counts_heads(attribute: str) -> bool:
    """Whether an integer says how many heads there are: ``num_heads``, ``config.encoder_num_key_value_heads``, …"""
    name = attribute.rpartition(".")[2]
    return name in _HEADS or name.endswith("_heads")


def _attributes_of(holder: object) -> Iterator[tuple[str, object]]:
    """Attributes of an object, and those of its class that its author wrote, without what torch and Python keep."""
    kinds = [kind for kind in type(holder).__mro__[:-1] if not kind.__module__.startswith("torch.")]
    stored = vars(nn.Module()) if isinstance(holder, nn.Module) else {}
    attributes = {name: value for kind in reversed(kinds) for name, value in vars(kind).items()} | vars(holder)
    return ((name, x) for name, x in attributes.items() if not name.startswith("__") and name not in stored)


Guess = WidthAttribute | StatedSize


def guessed(trace: Trace, guesses: Sequence[Guess]) -> Iterator[Trace]:
    """Yield traces in which some guesses about one group hold: all integers, some of them, sizes, and both."""
    known = {(a.module, a.attribute) for a in trace.attributes}
    integers = [a for a in guesses if isinstance(a, WidthAttribute) and (a.module, a.attribute) not in known]
    attributes = list({(a.module, a.attribute): a for a in integers}.values())[:_GUESSES]
    for size in [len(attributes), *range(1, len(attributes))]:
        for choice in combinations(attributes, size) if size else ():
            yield replace(trace, attributes=(*trace.attributes, *choice))
    sizes = tuple({(x.module, x.place): x for x in guesses if isinstance(x, StatedSize)}.values())
    if sizes:
        yield replace(trace, sizes=(*trace.sizes, *sizes))
        if attributes:
            yield replace(trace, attributes=(*trace.attributes, *attributes), sizes=(*trace.sizes, *sizes))


def pinned(trace: Trace, name: str, guesses: Mapping[str, Sequence[Guess]], modules: Sequence[str]) -> Trace | None:
    """Return the trace in which the code of the innermost of some modules asks for the sizes of its grids.

    They fall with the groups of which they are made, and with no other. None where that is so already.
    """
    sizes = [guess for entries in guesses.values() for guess in entries if isinstance(guess, StatedSize)]
    for path in modules:
        here = [size for size in sizes if size.module == path]
        pins = [replace(size, group=name) for size in here if not size.group]
        more = dict.fromkeys((*trace.sizes, *(size for size in here if size.group in trace.units), *pins))
        if len(more) > len(trace.sizes):
            return replace(trace, sizes=tuple(more))
    return None


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
