"""What plain code reads in a smaller network: lower integers, cut arguments, other numbers in the shapes it asks for.

``lower`` changes an integer that a module (or a configuration that it holds) states. ``CutArgument`` cuts a tensor that
a module is given. ``ask_for`` is for numbers that stand nowhere but in the code (``x.view(n, t, 4, 6)`` with four
heads, a constant of the file) and for those that it takes from another tensor (``x.view(n, t, heads, c // heads)``).
While such a module runs, the sizes that it asks for are replaced.
"""

import copy
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from operator import itemgetter
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["CutArgument", "Grid", "GridAxis", "ask_for", "line_of_code", "lower"]

Grid = tuple[str, int, tuple[tuple[int, int], ...]]
"""What code makes of channels: its line, the rank of a shape, and its dimensions of channels with their sizes.

Of rank 0: a dimension, counted from the last, and the length of the parts that ``split`` makes of it.
"""
GridAxis = tuple[Grid, int]
"""A grid, and which of its sizes."""


def lower(module: nn.Module, attribute: str, lost: int) -> None:
    """Lower a width, an integer or a tuple's first (``normalized_shape``); of a configuration, in a copy of its own."""
    holder: Any = module
    holding, _, attribute = attribute.rpartition(".")
    if holding:
        holder = copy.copy(getattr(module, holding))
        setattr(module, holding, holder)
    value = getattr(holder, attribute)
    lowered = (value[0] - lost, *value[1:]) if isinstance(value, tuple) else value - lost
    try:
        setattr(holder, attribute, lowered)
    except AttributeError:  # a frozen data class
        object.__setattr__(holder, attribute, lowered)


class CutArgument:
    """A hook that takes positions out of a tensor that a module is given."""

    def __init__(self, name: str | int, dim: int, width: int, gone: NDArray[np.int64]) -> None:
        self.name, self.dim, self.width = name, dim, width
        self.kept = np.delete(np.arange(width), gone).tolist()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments with the one cut."""
        if isinstance(self.name, str):
            return args, kwargs | {self.name: self._cut(kwargs.get(self.name))}
        return (*args[: self.name], self._cut(args[self.name]), *args[self.name + 1 :]), kwargs

    def _cut(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        before, after = tensor.shape[: self.dim], tensor.shape[self.dim + 1 :]
        apart = tensor.reshape(*before, -1, self.width, *after)
        kept = apart.index_select(self.dim + 1, torch.tensor(self.kept, device=tensor.device))
        return kept.reshape(*before, -1, *after)


def ask_for(module: nn.Module, place: GridAxis, size: int) -> None:
    """Let the code of a module ask for another size than it states, in place; a later call changes an earlier one's.

    Shapes that do not fit their tensor with that size stay.
    """
    hook = next((x for x in module._forward_pre_hooks.values() if isinstance(x, _OtherSizes)), None)
    if hook is None:
        hook = _OtherSizes()
        module.register_forward_pre_hook(hook)
        module.register_forward_hook(_leave, always_call=True)
    grid, axis = place
    hook.sizes.setdefault(grid, [stated for _, stated in grid[2]])[axis] = size


def line_of_code() -> str:
    """``function:line`` of the code that calls torch, lines counted from that of the function; empty if there is none.

    So a line is known again where others of its file have changed.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_OF_TORCH, _OF_GRAPH)):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_name}:{frame.f_lineno - frame.f_code.co_firstlineno}"


class _OtherSizes:
    """A hook that enters ``_Replacing`` before a module runs."""

    def __init__(self) -> None:
        self.sizes: dict[Grid, list[int]] = {}

    def __call__(self, *_: object) -> None:
        mode = _Replacing(self.sizes)
        mode.__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        _RUNNING[get_ident()].append(mode)


def _leave(*_: object) -> None:
    _RUNNING[get_ident()].pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # as above


class _Replacing(TorchFunctionMode):
    """Replaces sizes in the shapes that code asks for."""

    def __init__(self, sizes: Mapping[Grid, Sequence[int]]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor) and name in ("view", "reshape", "unflatten", "split"):
            args, kwargs = getattr(self, f"_{name}")(*args, **kwargs) or (args, kwargs)
        return func(*args, **kwargs)

    def _view(self, x: Tensor, *size: Any, **kwargs: Any) -> tuple[Any, Any] | None:
        shape = size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size
        if kwargs or not _is_shape(shape):
            return None
        return (x, self._fitting(x.numel(), shape, len(shape), 0)), kwargs

    def _reshape(self, x: Tensor, *size: Any, **kwargs: Any) -> tuple[Any, Any] | None:
        return self._view(x, *((kwargs["shape"],) if "shape" in kwargs else size))

    def _unflatten(self, x: Tensor, dim: Any, sizes: Any) -> tuple[Any, Any] | None:
        if not isinstance(dim, int) or not _is_shape(sizes):
            return None
        dim = dim % x.ndim
        return (x, dim, self._fitting(x.shape[dim], sizes, x.ndim - 1 + len(sizes), dim)), {}

    def _split(self, x: Tensor, split_size: Any, dim: int = 0) -> tuple[Any, Any] | None:
        lengths = split_size if isinstance(split_size, Sequence) else [split_size]
        from_last = dim % x.ndim - x.ndim
        line = line_of_code()
        grids: list[Grid] = [(line, 0, ((from_last, n),) if type(n) is int else ()) for n in lengths]
        others = [self.sizes[grid][0] if grid in self.sizes else n for grid, n in zip(grids, lengths, strict=True)]
        if isinstance(split_size, Sequence):
            return None if sum(lengths) == x.shape[dim] else ((x, others, dim), {})
        return (x, others[0], dim), {}

    def _fitting(self, numel: int, stated: Sequence[int], rank: int, first: int) -> list[int]:
        """The sizes stated for dimensions ``first`` … of ``rank``, or others that hold ``numel`` numbers.

        Of several grids of this line, one with exactly the sizes stated goes first, then the one that changes the
        fewest; and sizes stay that fit as they are stated. A multiple of a size is the same multiple of the other
        (heads of all samples).
        """
        line, choices = line_of_code(), []
        grids = [(dims, sizes) for (*of, dims), sizes in self.sizes.items() if of == [line, rank]]
        if len(grids) > 1 and -1 not in stated and _holds(stated, numel):
            return list(stated)
        for dims, sizes in grids:
            inside = [dim - first for dim, _ in dims]
            if not all(0 <= i < len(stated) for i in inside):
                continue
            same = all(stated[i] in (-1, dense) for i, (_, dense) in zip(inside, dims, strict=True))
            for are_scaled in (False, True):
                other = list(stated)
                for i, (_, dense), size in zip(inside, dims, sizes, strict=True):
                    other[i] = -1 if stated[i] == -1 else size * (_multiple(stated[i], dense) if are_scaled else 1)
                if _holds(other, numel):
                    choices.append((not same, sum(a != b for a, b in zip(other, stated, strict=True)), other))
        return min(choices, key=itemgetter(0, 1))[2] if choices else list(stated)


def _is_shape(sizes: Any) -> bool:
    return isinstance(sizes, Sequence) and all(not isinstance(size, torch.dtype | str | Sequence) for size in sizes)


def _multiple(stated: Any, dense: int) -> int:
    """How many times a size is stated; once where it is no multiple."""
    return stated // dense if type(stated) is int and stated > 0 and stated % dense == 0 else 1


def _holds(sizes: Sequence[int], numel: int) -> bool:
    known = prod(size for size in sizes if size != -1)
    return known != 0 and (numel % known == 0 if -1 in sizes else numel == known)


_OF_TORCH: Final = str(Path(torch.__file__).parent)
_OF_GRAPH: Final = str(Path(__file__).parent)
_RUNNING: Final[dict[int, list[_Replacing]]] = defaultdict(list)  # by thread, the innermost last
