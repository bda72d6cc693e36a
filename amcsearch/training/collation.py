"""Batches of samples: tensors, arrays and numbers of several samples, stacked along a new first axis.

What a sample holds may be a tree: tuples, lists, mappings and data classes of tensors, arrays and numbers, which keep
their places. Floating-point numbers become float32. Whatever else stands in a tree (text, None) is carried along.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.graph import PerSample, Tree, map_tensors, tensors_of_tree

__all__ = ["Origin", "as_tensor", "children", "has_only_numbers", "kept_apart", "stack", "usual"]


@dataclass(frozen=True)
class Origin:
    """Where values come from, for errors: ``part`` (input, target) of the samples of these numbers in a split."""

    part: str
    numbers: Sequence[int]
    split: str

    def at(self, i: int) -> str:
        """Name the value of the sample at position ``i``."""
        return f"data: the {self.part} of sample {self.numbers[i]} of the {self.split} split"

    def alone(self, i: int) -> "Origin":
        """The origin of the sample at position ``i`` alone."""
        return Origin(self.part, [self.numbers[i]], self.split)


def as_tensor(value: object) -> Tensor | None:
    """Return a tensor, an array, a number, or a list of numbers, as a dense tensor; None for anything else."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value if value.layout is torch.strided else value.to_dense()
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return torch.as_tensor(value)
    if isinstance(value, list | tuple) and not (value and _is_list_of_numbers(value)):
        return None
    if not isinstance(value, np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # torch warns of read-only ones
    except (TypeError, ValueError):
        return None


def _is_list_of_numbers(value: Sequence[object]) -> bool:
    """Whether a list holds numbers, or lists of them."""
    first = value[0]
    if isinstance(first, list | tuple):
        return bool(first) and _is_list_of_numbers(first)
    return isinstance(first, bool | int | float | np.number | np.bool_)


def usual(tensor: Tensor) -> Tensor:
    """Return a tensor cut off any gradient, of float32 where it has floating point."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def children(value: object) -> dict[Any, object] | None:
    """What a mapping, a tuple, a list or a data class holds, by key, position or field; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def has_only_numbers(value: object) -> bool:
    """Whether a value is a tensor, an array or a number, or a tree of nothing else; an empty tree is none."""
    if as_tensor(value) is not None:
        return True
    inner = children(value)
    return bool(inner) and all(map(has_only_numbers, (inner or {}).values()))


def stack(values: Sequence[object], origin: Origin) -> Tree:
    """Stack what some samples have in one place: (…) each → (n, …).

    Raises:
        BadInputError: no numbers, or shapes or structures that differ; names the first sample that differs.
    """
    tree = _stacked(values, origin)
    if not isinstance(tree, Tensor) and not any(True for _ in tensors_of_tree(tree)):
        raise BadInputError(
            f"{origin.at(0)} is a {type(values[0]).__name__}, expected a tensor, an array or a number; convert "
            "it in the data set"
        )
    return tree


def _stacked(values: Sequence[object], origin: Origin) -> Tree:
    tensors = [as_tensor(value) for value in values]
    first = tensors[0]
    if first is not None:
        return _stacked_tensors(values, tensors, first.shape, origin)
    inner = [children(value) for value in values]
    if inner[0] is None:
        return _carried(values, origin)
    for i, parts in enumerate(inner):
        if parts is None or parts.keys() != inner[0].keys():
            raise BadInputError(_differs(values, i, origin))
    columns = {key: _stacked([parts[key] for parts in inner if parts is not None], origin) for key in inner[0]}
    return _like(values[0], columns)


def _stacked_tensors(
    values: Sequence[object], tensors: Sequence[Tensor | None], shape: torch.Size, origin: Origin
) -> Tensor:
    for i, tensor in enumerate(tensors):
        if tensor is None or tensor.shape != shape:
            raise BadInputError(_differs(values, i, origin))
        if tensor.is_meta:
            raise BadInputError(f"{origin.at(i)} is on the device meta, expected values; read them in the data set")
    try:
        return usual(torch.stack([tensor for tensor in tensors if tensor is not None]))
    except (RuntimeError, TypeError) as error:
        raise BadInputError(f"{origin.at(0)} and others do not stack: {error}") from error


def _differs(values: Sequence[object], i: int, origin: Origin) -> str:
    """Say how a value differs from the first."""
    value, tensor, first = values[i], as_tensor(values[i]), as_tensor(values[0])
    if tensor is None and (first is not None or children(value) is None):
        return f"{origin.at(i)} is a {type(value).__name__}, expected a tensor, an array or a number"
    if tensor is None or first is None:
        return (
            f"{origin.at(i)} has other parts than that of sample {origin.numbers[0]}; give data.collate to make batches"
        )
    cure, first_number = "make them one shape, or give data.collate to make batches", origin.numbers[0]
    if isinstance(value, list | tuple) != isinstance(values[0], list | tuple):
        kind = type(value).__name__
        return f"{origin.at(i)} is a {kind}, that of sample {first_number} a {type(values[0]).__name__}; {cure}"
    shape = tuple(tensor.shape)
    return f"{origin.at(i)} has the shape {shape}, that of sample {first_number} {tuple(first.shape)}; {cure}"


def _carried(values: Sequence[object], origin: Origin) -> Tree:
    """What is no number stands for all samples where it is the same, else in a list."""
    if any(as_tensor(value) is not None or children(value) is not None for value in values):
        raise BadInputError(f"{origin.at(0)} is a {type(values[0]).__name__}, that of other samples is not")
    if all(value is None for value in values) or all(isinstance(v, str) and v == values[0] for v in values):
        return values[0]
    return list(values)


def _like(value: Any, columns: Mapping[Any, Tree]) -> Tree:
    """Return the stacked parts in a structure as that of one sample; mappings become dicts."""
    if isinstance(value, Mapping):
        return dict(columns)
    if isinstance(value, tuple | list):
        return type(value)(*columns.values()) if hasattr(value, "_fields") else type(value)(columns.values())
    changed = copy.copy(value)
    for name, column in columns.items():
        object.__setattr__(changed, name, column)
    return changed


def kept_apart(values: Sequence[object], origin: Origin) -> PerSample:
    """Return a list with what each sample has, its numbers as tensors: targets of various shapes.

    Raises:
        BadInputError: a sample without numbers.
    """
    return PerSample(
        map_tensors(stack([value], origin.alone(i)), lambda tensor: tensor[0]) for i, value in enumerate(values)
    )
