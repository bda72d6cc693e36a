"""Flow of labels through a running network: every operation is followed as it runs.

``Flow`` sees the operations that torch executes (ATen, below autograd and below the functions of Python), so that
views, splits, windows, heads, packed projections and weights used by plain code are a few dozen cases. The rules of
single operations are in ``operators``. An operation without a rule blocks the channels that reach it, and no others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.plain_code import Grid, line_of_code
from amcsearch.graph.tracing.labels import FRESH, NONE, Slots, small, tidy, varying
from amcsearch.graph.tracing.operations import OperationMode

__all__ = ["Call", "Choice", "Crossing", "Cut", "Flow", "Listener", "Shape", "Split", "filled", "outputs"]

_CANVAS: Final = 1 << 22  # elements of a tensor of zeros whose parts are labelled as they are written
_ATTRIBUTE: Final = "_amcsearch_labels"


@dataclass
class Call:
    """One operation: its name without a trailing underscore, what it was given and what it gave."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        for i, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if i < len(self.args):
                    return self.args[i]
                return self.kwargs.get(name, argument.default_value if argument.has_default_value() else default)
        return default


class Listener(Protocol):
    """Whoever is told of everything that runs, once its results are labelled."""

    def saw(self, call: Call) -> None:
        """Hear of an operation."""
        ...

    def ran(self, name: str, operands: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Hear of a module that is followed as a whole."""
        ...


@dataclass(frozen=True)
class Split:
    """A dimension of channels that plain code makes a grid of: ``labels`` (…, a, b[, c]), of ``axes`` axes."""

    labels: Tensor
    axes: int
    module: str


@dataclass(frozen=True)
class Shape:
    """A shape that a line of plain code asks for: its ``labels`` vary along its dimensions ``dims``."""

    labels: tuple[Tensor, ...]
    dims: tuple[int, ...]
    module: str
    line: str

    @property
    def grid(self) -> Grid:
        """The line, the rank, and the dimensions of channels with their sizes."""
        shape = self.labels[0].shape
        return self.line, len(shape), tuple((dim, shape[dim]) for dim in self.dims)


@dataclass(frozen=True)
class Cut:
    """A dimension of channels of which a line of plain code takes ``parts`` (start, length) first."""

    label: Tensor
    dim: int
    parts: tuple[tuple[int, int], ...]
    module: str
    line: str


@dataclass(frozen=True)
class Crossing:
    """A grid of channels that meets labels of some of its axes alone, spread over the others."""

    grid: Tensor
    other: Tensor
    reason: str


@dataclass(frozen=True)
class Choice:
    """Channels ``widths`` of a product in every head or expert: they stay where whole ``heads`` may leave."""

    heads: tuple[Tensor, ...]
    widths: Tensor
    reason: str


@dataclass
class _State:
    layers: tuple[Tensor, ...] = ()
    is_fresh: bool = False
    canvas: Tensor | None = None
    mixed: tuple[tuple[Tensor, str], ...] = ()


_NOTHING: Final = _State()
Rule = Callable[["Flow", Call], None]


class Flow(OperationMode):
    """Follows labels while a module runs under it; ``where`` names the running module, for reasons."""

    def __init__(self, slots: Slots, rules: dict[str, Rule], otherwise: Callable[[Any], Rule | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.slots, self.rules, self.otherwise = slots, rules, otherwise
        self.where: Callable[[], str] = str
        self.muted = 0
        self.splits, self.merges = list[Split](), list[Split]()
        self.shapes: list[Shape] = []
        self.crossings: list[Crossing] = []
        self.choices: list[Choice] = []
        self._cuts: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self._held: dict[int, tuple[Tensor, str, str]] = {}
        self.uses: dict[int, Tensor] = {}
        self.mixing: dict[str, None] = {}  # modules whose code combines channels
        self.listeners: list[Listener] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.muted:
            with torch._C.DisableTorchFunction():
                self._follow(func, args, kwargs, out)
                for listener in self.listeners:
                    listener.saw(Call(func._overloadpacket.__name__, func, args, kwargs, out))
        return out

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        inputs = list(tensors_in((*args, *kwargs.values())))
        outputs = list(tensors_in([out]))
        name = func._overloadpacket.__name__
        if name.endswith("_") and not name.startswith("__"):
            name = name.rstrip("_")
        if not inputs:
            for tensor in outputs:
                self._make(tensor)
            return
        states = [self._state(tensor) for tensor in inputs]
        for state in states:
            self._use(state)
        if all(state is _NOTHING for state in states):
            return
        call = Call(name, func, args, kwargs, out)
        rule = self.rules.get(name) or self.otherwise(func)
        if rule is None:
            self.lose(inputs, f"{name}{self.place()} cannot be followed")
            return
        try:
            rule(self, call)
        except Exception as error:  # a rule that does not fit costs what reaches it
            line = " ".join(str(error).split())[:100]
            self.lose(inputs, f"{name}{self.place()} cannot be followed ({type(error).__name__}: {line})")

    def _use(self, state: _State) -> None:
        """Block the channels that a result mixes, now that something reads it."""
        for label, reason in state.mixed:
            self.slots.block(label, reason)

    def place(self) -> str:
        """Return `` in MODULE`` for reasons."""
        path = self.where()
        return f" in {path}" if path else ""

    def why_combined(self, operation: str) -> str:
        """Return why channels stay that an operation computes one result of."""
        return f"its channels are combined with one another ({operation.lstrip('_')}{self.place()})"

    def lose(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Block every channel of some tensors."""
        for tensor in tensors:
            self._use(self._state(tensor))
            for label in self.labels(tensor):
                self.slots.block(small(label), reason)

    def _state(self, tensor: Tensor) -> _State:
        if id(tensor) in self.slots.of:
            self.uses[id(tensor)] = tensor
            return _State(self.slots.of[id(tensor)]) if self.slots.of[id(tensor)] else _NOTHING
        state = getattr(tensor, _ATTRIBUTE, _NOTHING)
        assert isinstance(state, _State)
        return state

    def _make(self, tensor: Tensor) -> None:
        canvas = None
        if tensor.is_floating_point() and 1 < tensor.numel() <= _CANVAS:
            canvas = torch.full(tensor.shape, FRESH)
        setattr(tensor, _ATTRIBUTE, _State((), True, canvas))

    def labels(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the label tensors of a tensor, each of its shape; none where it holds no channels."""
        state = self._state(tensor)
        if state.canvas is not None and bool((state.canvas > NONE).any()):
            return (tidy(filled(state.canvas)),)
        return state.layers

    def vectors(self, tensor: Tensor, dims: Iterable[int]) -> NDArray[np.int64] | None:
        """Return the labels that vary along some dimensions only, (n, size), flat; None where there are none.

        One dimension may have several: of heads, and of their widths.
        """
        inside = set(dims)
        matching = [label for label in self.labels(tensor) if varying(label) and set(varying(label)) <= inside]
        if not matching or len({varying(label) for label in matching}) > 1:
            return None
        return np.stack([np.asarray(small(label).reshape(-1).numpy()) for label in matching])

    def spread(self, tensor: Tensor, dims: Iterable[int]) -> NDArray[np.int64] | None:
        """Return the labels along some dimensions, (n, size), in full: those of each head for all of its channels."""
        inside = list(dims)
        matching = [label for label in self.labels(tensor) if varying(label) and set(varying(label)) <= set(inside)]
        if not matching:
            return None
        most = max(len(varying(label)) for label in matching)
        index = tuple(slice(None) if dim in inside else 0 for dim in range(tensor.ndim))
        return np.stack([label[index].reshape(-1).numpy() for label in matching if len(varying(label)) == most])

    def of_one_place(self, tensor: Tensor, dim: int) -> NDArray[np.int64] | None:
        """Return the labels along a dimension, (n, size), where they differ by place: those of the first place."""
        differing = [label for label in self.labels(tensor) if {dim} < set(varying(label))]
        first = tuple(slice(None) if d == dim else 0 for d in range(tensor.ndim))
        return np.stack([label[first].numpy() for label in differing]) if differing else None

    def is_fresh(self, tensor: Tensor) -> bool:
        """Whether a tensor was filled in by plain code: its width goes with what it meets."""
        return self._state(tensor).is_fresh and not self.labels(tensor)

    def canvas(self, tensor: Tensor) -> Tensor | None:
        """Return the labels that writing into the tensor changes, those of its views included."""
        return self._state(tensor).canvas

    def put(
        self,
        tensor: Any,
        layers: Iterable[Tensor],
        is_fresh: bool = False,
        canvas: Tensor | None = None,
        mixed: Iterable[tuple[Tensor, str]] = (),
    ) -> None:
        """Label a result; labels of a smaller shape are spread over the tensor's.

        ``mixed``: labels, with the reason, that are blocked once something reads the result.
        """
        if isinstance(tensor, Tensor) and id(tensor) not in self.slots.of:
            kept = tuple(label.expand(tensor.shape) for label in layers if bool((label != NONE).any()))
            setattr(tensor, _ATTRIBUTE, _State(kept, is_fresh, canvas, tuple(mixed)))

    def cut(self, label: Tensor, dim: int, start: int, length: int) -> None:
        """Note that plain code takes a part of a dimension of channels."""
        if not length:
            return
        self._held[id(label)] = (label, self.where(), line_of_code())
        self._cuts[id(label), dim].append((start, length))

    def cuts(self) -> list[Cut]:
        """Return all dimensions of channels that plain code takes parts of."""
        held = self._held
        return [Cut(held[k][0], dim, tuple(sorted(set(x))), *held[k][1:]) for (k, dim), x in self._cuts.items()]

    def asked(self, tensor: Tensor) -> None:
        """Note that plain code asks for the shape of a tensor of channels."""
        labels = self.labels(tensor)
        dims = sorted({dim for label in labels for dim in varying(label)})
        if dims:
            self.shapes.append(Shape(labels, tuple(dims), self.where(), line_of_code()))

    def grids(self) -> list[Split]:
        """Return the grids that plain code makes of channels: by views, and by cutting a dimension into equal parts."""
        grids = list(self.splits)
        for cut in self.cuts():
            count, length = len(cut.parts), cut.parts[0][1]
            tiles = cut.parts == tuple((i * length, length) for i in range(count))
            if count > 1 and tiles and count * length == cut.label.shape[cut.dim]:
                grid = small(cut.label).unflatten(cut.dim, (count, length))  # type: ignore[no-untyped-call]  # as above
                grids.append(Split(grid.movedim((cut.dim, cut.dim + 1), (-2, -1)), 2, cut.module))
        return grids

    def merged(self, layers: Sequence[Tensor], *, tied: bool = False) -> list[Tensor]:
        """Return label tensors (small, of one rank) without those that others imply.

        Where they overlap they leave together (a head's own label goes with the labels of its channels), unless that is
        ``tied`` already.
        """
        kept: list[Tensor] = []
        for label in sorted(layers, key=lambda layer: -len(varying(layer))):
            dims = set(varying(label))
            implied = False
            for other in kept:
                if not dims or dims & set(varying(other)):
                    if not tied:
                        self.slots.together(label, other)
                    implied = implied or dims <= set(varying(other))
            if not implied and bool((label != NONE).any()):
                kept.append(label)
        return kept

    def combined(self, operands: Sequence[Tensor], reason: str) -> list[Tensor]:
        """Tie what an element-wise operation combines; return the labels of its result, small, of the result's rank."""
        shape = np.broadcast_shapes(*(x.shape for x in operands))  # torch's imports sympy: half a second
        # what is repeated without a copy (expanded to as many heads) has no size of its own
        sizes = [(1,) * (len(shape) - operand.ndim) + tuple(small(operand).shape) for operand in operands]
        layers = [[_of_rank(small(label), len(shape)) for label in self.labels(operand)] for operand in operands]
        fresh = [self.is_fresh(operand) for operand in operands]
        dropped: set[int] = set()
        for i, mine in enumerate(layers):
            for label in mine:
                dims = set(varying(label))
                for j, others in enumerate(layers):
                    wide = {d for d in dims if sizes[j][d] > 1}
                    if j == i or not wide:
                        continue
                    if fresh[j]:
                        self._adopt(operands[j], label, wide)
                        continue
                    beside = [other for other in others if dims & set(varying(other))]
                    if not beside:
                        self.keeps(label, wide, reason)
                        dropped |= {id(label)} if wide == dims else set()
                    if j > i:
                        self._tie(label, beside, reason)
        kept = [label for mine in layers for label in mine if id(label) not in dropped]
        return self.merged(kept, tied=True)

    def _adopt(self, tensor: Tensor, label: Tensor, dims: set[int]) -> None:
        """What plain code fills in has the width of the first that it meets: whoever meets it next is as wide."""
        if dims != set(varying(label)) or self.labels(tensor):
            return
        label = small(label).reshape(label.shape[label.ndim - tensor.ndim :]).expand(tensor.shape)
        canvas = self.canvas(tensor)
        if canvas is None:
            self.put(tensor, [label])
        elif bool((label > NONE).all()):
            canvas.copy_(label)

    def keeps(self, label: Tensor, dims: Iterable[int], reason: str) -> None:
        """Some dimensions of a tensor keep their size: what lies along them leaves as a whole, or not at all."""
        dims = set(dims)
        if set(varying(label)) <= dims:
            self.slots.block(label, reason)
            return
        first = label
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.slots.together(first, label)

    def _tie(self, label: Tensor, others: Sequence[Tensor], reason: str) -> None:
        for other in others:
            mine, its = set(varying(label)), set(varying(other))
            if mine == its:
                self.slots.same(label, other, reason)
            elif mine < its:
                self.crossings.append(Crossing(other, label, reason))
            elif its < mine:
                self.crossings.append(Crossing(label, other, reason))
            else:
                self.slots.together(label, other)


def filled(canvas: Tensor) -> Tensor:
    """Labels of a tensor that was written in parts: what was left as filled in goes with the rest of its dimension."""
    for dim in range(canvas.ndim):
        most = canvas.amax(dim, keepdim=True)
        if bool(((canvas == most) | (canvas == FRESH)).all()):
            canvas = most.expand(canvas.shape)
    return canvas


def _of_rank(label: Tensor, rank: int) -> Tensor:
    return label.reshape((1,) * (rank - label.ndim) + tuple(label.shape))


def outputs(call: Call) -> list[Tensor]:
    """Return the tensors that an operation gave."""
    return list(tensors_in([call.out]))
