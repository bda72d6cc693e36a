"""Branches that forward takes by numbers it reads from tensors, and their sides that the example does not take.

``if x.mean() > 0`` and ``for _ in range(int(n))`` choose which layers run. An example shows one side. So the network
runs again for every such line, with another number read there the first time: the labels of channels are followed on
that side too, and the layers on it are cut where they read channels that are removed.
"""

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from amcsearch.core import described
from amcsearch.graph.batch import Batch
from amcsearch.graph.slices import Skipped
from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.operations import OperationMode
from amcsearch.graph.tracing.recorder import UNUSED, Observation, observe

__all__ = ["Decisions", "EvenRouting", "OtherSide", "branch_lines", "follow_other_sides"]

MOST_RUNS: Final = 12  # of the network, for numbers read otherwise
MOST_SIDES: Final = 6  # that every removal is checked on
ALL: Final = 64  # times that a line in a loop reads the same number, at most: the loop may wait for another one
_MOST_EXPERTS: Final = 1024  # places that an operation chooses from: more are no experts
_FAR: Final = 1e9  # beyond any threshold that a number is compared with
_READS: Final = frozenset({"__bool__", "__float__", "__int__", "__index__", "item", "equal", "allclose", "is_nonzero"})
_OF_TORCH: Final = str(Path(torch.__file__).parent)
_OF_TRACING: Final = str(Path(__file__).parents[1])

Number = bool | int | float


@dataclass(frozen=True)
class OtherSide:
    """The side of a branch that is taken where ``function`` reads ``value`` at ``place``, the first ``count`` times."""

    place: str
    function: str
    value: Number
    count: int = 1


class Decisions(TorchFunctionMode):
    """Notes the first number that each line of code reads from a tensor, and lets a line read another one.

    Code of torch itself and of tracing is left as it is.
    """

    def __init__(self, other: OtherSide | None = None) -> None:
        super().__init__()
        self.other = other
        self.read: dict[tuple[str, str], Number] = {}
        self._counts = Counter[tuple[str, str]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        function = getattr(func, "__name__", "")
        if function not in _READS or not isinstance(result, Number):
            return result
        place = _place()
        if place is None:
            return result
        self.read.setdefault((place, function), result)
        self._counts[place, function] += 1
        other = self.other
        if other is None or (place, function) != (other.place, other.function):
            return result
        return other.value if self._counts[place, function] <= other.count else result

    def others(self) -> Iterator[OtherSide]:
        """Yield the sides that were not taken, in the order of their lines; last those of lines in loops."""
        for (place, function), value in self.read.items():
            yield from (OtherSide(place, function, other) for other in _others(value))
        for (place, function), value in self.read.items():
            if isinstance(value, bool) and self._counts[place, function] > 1:  # an expert for each time, say
                yield from (OtherSide(place, function, value=other, count=ALL) for other in (True, False))


def _others(value: Number) -> tuple[Number, ...]:
    if isinstance(value, bool):
        return (not value,)
    return (value + 1,) if isinstance(value, int) else (_FAR, -_FAR)


def _place() -> str | None:
    """``file.py:line`` of the code that reads a number; None where that is torch or tracing."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name in ("_place", "__torch_function__"):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return None if file.startswith((_OF_TORCH, _OF_TRACING)) else f"{Path(file).name}:{frame.f_lineno}"


def branch_lines(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """Lines of forward that read a number from a tensor, as ``file.py:line``: what runs may depend on the input."""
    with torch.no_grad(), Decisions() as decisions:
        batch.through(model)
    return tuple(dict.fromkeys(place for place, _ in decisions.read))


def follow_other_sides(
    model: nn.Module, batch: Batch, flow: Flow, observation: Observation, decisions: Decisions
) -> tuple[OtherSide, ...]:
    """Follow the sides of branches that the example did not take; return those that ran other layers.

    Why a layer that only they run is there joins the ``skipped`` of ``observation``, and so does a side that cannot be
    run.
    """
    waiting, tried, taken = list(decisions.others()), set[OtherSide](), list[OtherSide]()
    unused = {skipped.name for skipped in observation.skipped if skipped.reason == UNUSED}
    usual = _executed(observation)
    while waiting and len(tried) < MOST_RUNS:
        side = waiting.pop(0)
        if side in tried:
            continue
        tried.add(side)
        used_before, decided = set(flow.uses), Decisions(side)
        try:
            with decided:
                other = observe(model, batch, flow)
        except Exception as error:
            if not _is_refusal(error):
                reason = (
                    f"the other side of the branch at {side.place} does not run on the example ({described(error)}): "
                    "its layers are not followed and may not fit once channels are removed"
                )
                observation.skipped.append(Skipped(type(model).__name__, reason))
            continue
        known = {(each.place, each.function) for each in (*tried, *waiting)}
        waiting += [each for each in decided.others() if (each.place, each.function) not in known]
        if _executed(other) != usual and len(taken) < MOST_SIDES:
            taken.append(side)
        used = set(flow.uses) - used_before
        _explain(observation, {n for n, tensor in model.named_parameters() if id(tensor) in used} & unused, side)
    return tuple(taken)


def _executed(observation: Observation) -> list[str]:
    """The layers that ran, in their order; parameters that did not are counted as well, and are left out."""
    unused = {skipped.name for skipped in observation.skipped if skipped.reason == UNUSED}
    return [layer.name for layer in observation.layers if layer.name not in unused]


def _explain(observation: Observation, reached: set[str], side: OtherSide) -> None:
    reason = f"runs on the other side of the branch at {side.place} only: cut where it reads channels that are removed"
    for i, skipped in enumerate(observation.skipped):
        if skipped.reason == UNUSED and skipped.name in reached:
            observation.skipped[i] = Skipped(skipped.name, reason)


def _is_refusal(error: BaseException) -> bool:
    """Whether the network's code raises there on purpose: the side is a check, and computes nothing."""
    if isinstance(error, AssertionError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return line.startswith(("raise", "assert"))


class EvenRouting(OperationMode):
    """Lets tokens take experts in turn where ``is_even``; ``choices`` counts the operations that choose.

    Of the places that ``topk``, ``argmax``, ``max``, ``min`` and ``sort`` give, row r of k choices gets r·k, r·k + 1, …
    modulo the number of experts.
    """

    def __init__(self, *, is_even: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.is_even = is_even
        self.choices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = _CHOOSING.get(func)
        if read is not None and args[0].is_floating_point() and args[0].ndim:
            values, indices, dim = read(args, kwargs or {}, result)
            if dim is not None and 1 < args[0].shape[dim] <= _MOST_EXPERTS:
                self.choices += 1
                if self.is_even:
                    with _disable_current_modes():
                        _in_turn(args[0], values, indices, dim)
        return result


def _in_turn(scores: Tensor, values: Tensor | None, indices: Tensor, dim: int) -> None:
    """Write the places taken in turn into ``indices``, and the scores there into ``values``."""
    dim = dim % scores.ndim
    chosen = indices if indices.ndim == scores.ndim else indices.unsqueeze(dim)
    rows = chosen.movedim(dim, -1)
    in_turn = torch.arange(rows.numel(), device=scores.device).reshape(rows.shape) % scores.shape[dim]
    in_turn = in_turn.movedim(-1, dim)
    chosen.copy_(in_turn)
    if values is not None:
        values.copy_(scores.gather(dim, in_turn).reshape(values.shape))


_Choice = tuple[Tensor | None, Tensor, int | None]


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _values_and_places(position: int, default: int) -> Callable[[tuple[Any, ...], Mapping[str, Any], Any], _Choice]:
    return lambda args, kwargs, result: (*result, _argument(args, kwargs, position, "dim", default))


def _places_alone(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> _Choice:
    return None, result, _argument(args, kwargs, 1, "dim", None)


_ATEN: Final = torch.ops.aten
_CHOOSING: Final[Mapping[Any, Callable[[tuple[Any, ...], Mapping[str, Any], Any], _Choice]]] = {
    _ATEN.topk.default: _values_and_places(2, -1),
    _ATEN.max.dim: _values_and_places(1, -1),
    _ATEN.min.dim: _values_and_places(1, -1),
    _ATEN.sort.default: _values_and_places(1, -1),
    _ATEN.sort.stable: _values_and_places(2, -1),
    _ATEN.argmax.default: _places_alone,
    _ATEN.argmin.default: _places_alone,
}
