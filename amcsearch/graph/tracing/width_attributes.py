"""Attributes of modules that state a width: integers of Python code that must fall with the channels of a group.

Modules of a known type say which they have. For other code an integer counts where it says the size of something that
shrinks: the number of heads where a view makes a grid of heads, the length of a part where code cuts a tensor, a width
of a weight in the module that holds it. Whether the right ones fall is found by experiment (``trace``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.graph.slices import WidthAttribute
from amcsearch.graph.tracing.flow import Cut, Split
from amcsearch.graph.tracing.grouping import RawGroup
from amcsearch.graph.tracing.labels import Axis, small
from amcsearch.graph.tracing.layer_types import layer_type

__all__ = ["CodeWidths"]

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
