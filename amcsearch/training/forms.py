"""Calls of a network from the items of a data set: which parts of an item are its inputs, and which is the target.

The rule, where ``data.inputs`` and ``data.target`` do not say it:

- the target is the second of a pair; of a longer tuple, the item after as many as ``forward`` takes; of a mapping or a
  data class, what is named label, labels, target, targets or y;
- what remains is the input. A mapping of inputs goes by name where ``forward`` has arguments of these names, else as
  one argument; a tuple of inputs as one argument or as several; a lone one by name where nothing goes by position;
- where more than one of these calls is possible, each is tried on one sample: the only one that runs is taken. Where
  several run, none is taken, and the error says how to choose.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, UserCode
from amcsearch.graph import Batch, PerSample, Tree, evaluating, map_tensors
from amcsearch.training.collation import Origin, as_tensor, children, has_only_numbers, kept_apart, stack, usual
from amcsearch.training.seeding import seeded

__all__ = ["PAIR", "Collate", "Form", "Inputs", "Key", "choose_form"]

TARGETS: Final = ("label", "labels", "target", "targets", "y")
"""Names of targets in mappings and data classes."""

Key = str | int
"""A part of an item: its name or position, or several with dots between them: ``image``, ``1``, ``0.boxes``."""
Inputs = Key | Sequence[Key] | Mapping[str, Key]
"""The inputs among the parts of an item: one argument, several, or keyword arguments by name."""
Collate = Callable[[list[Any]], Any]
"""Makes a batch of items, as that of a ``DataLoader`` does."""
Path = tuple[Key, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """How items become calls: the paths of positional and of keyword arguments, and of the target, if any.

    ``width`` is the length of a tuple, None of other items. ``is_ragged`` keeps targets in a list, one for each sample;
    those of a ``collate`` are one already.
    """

    args: tuple[Path, ...]
    kwargs: tuple[tuple[str, Path], ...] = ()
    target: Path | None = None
    width: int | None = None
    is_ragged: bool = False

    def batch(self, items: Sequence[object], numbers: Sequence[int], split: str, collate: Collate | None) -> Batch:
        """Return the samples of these numbers in a split as one batch.

        Raises:
            BadInputError: an item of another form, or samples that do not stack; names the split and the sample.
        """
        if collate is not None:
            with UserCode(f"data.collate, given {len(items)} samples of the {split} split,"):
                collated = collate(list(items))
            return self._call(self._collated(collated, len(items)), len(items))
        chosen = [self._chosen(item, Origin("", [n], split)) for item, n in zip(items, numbers, strict=True)]
        inputs = Origin("input", numbers, split)
        parts: dict[Key | None, Tree] = {
            key: stack([each[key] for each in chosen], inputs) for key in chosen[0] if key is not None
        }
        if self.target is not None:
            targets, origin = [each[None] for each in chosen], Origin("target", numbers, split)
            parts[None] = kept_apart(targets, origin) if self.is_ragged else stack(targets, origin)
        return self._call(parts, len(items))

    def sliced(self, tensors: Sequence[Tensor], rows: Tensor) -> Batch:
        """Return some samples of tensors that hold one part of all samples each."""
        parts: dict[Key | None, Tree] = {key: usual(tensors[int(path[0])][rows]) for key, path in self._paths()}
        return self._call(parts, len(rows))

    def _paths(self) -> Iterator[tuple[Key | None, Path]]:
        yield from enumerate(self.args)
        yield from self.kwargs
        if self.target is not None:
            yield None, self.target

    def _call(self, parts: Mapping[Key | None, Tree], size: int) -> Batch:
        args = tuple(parts[i] for i in range(len(self.args)))
        return Batch(args, {name: parts[name] for name, _ in self.kwargs}, map_tensors(parts.get(None), _ids), size)

    def _chosen(self, item: object, origin: Origin) -> dict[Key | None, object]:
        """Return the arguments of an item by position and name, and its target by None."""
        if self.width is not None and (not isinstance(item, tuple | list) or len(item) != self.width):
            kind = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
            expected = "a pair (input, target)" if self.width == 2 else f"a tuple of {self.width}, as the first"
            raise BadInputError(
                f"data: sample {origin.numbers[0]} of the {origin.split} split is {kind}, expected {expected}"
            )
        where = f"data: sample {origin.numbers[0]} of the {origin.split} split"
        return {key: _part(item, path, where) for key, path in self._paths()}

    def _collated(self, collated: object, size: int) -> dict[Key | None, Tree]:
        where = "data.collate: its batch"
        parts = {key: map_tensors(_part(collated, path, where), usual) for key, path in self._paths()}
        if self.is_ragged:
            targets = parts[None]
            if not isinstance(targets, list | tuple) or len(targets) != size:
                raise BadInputError(
                    f"{where} of {size} samples has a {type(targets).__name__} as targets, expected a list of {size}, "
                    "as that of other batches"
                )
            parts[None] = PerSample(targets)
        return parts

    @property
    def words(self) -> str:
        """The call, as an error names it: ``(0, 1)``, ``(input_ids=input_ids)``."""
        arguments = [_dotted(path) for path in self.args] + [f"{name}={_dotted(path)}" for name, path in self.kwargs]
        return f"({', '.join(arguments)})"

    @property
    def keys(self) -> str:
        """What chooses the form in a configuration."""
        inputs = f"[{', '.join(map(_dotted, self.args))}]" if len(self.args) != 1 else _dotted(self.args[0])
        if self.kwargs:
            inputs = "{" + ", ".join(f"{name}: {_dotted(path)}" for name, path in self.kwargs) + "}"
        return f"data.inputs: {inputs}" + ("" if self.target is None else f", data.target: {_dotted(self.target)}")


PAIR: Final = Form(((0,),), target=(1,), width=2)
"""An item is (input, target)."""


def _ids(targets: Tensor) -> Tensor:
    is_number = targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    return targets if is_number else targets.long()


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the item"


def _part(item: object, path: Path, where: str) -> object:
    """Follow a path into an item.

    Raises:
        BadInputError: there is no such part; names those there are.
    """
    for key in path:
        if str(key) in getattr(item, "_fields", ()):
            item = getattr(item, str(key))
            continue
        inner = children(item) or {}
        matching = next((name for name in inner if str(name) == str(key)), None)
        if matching is None:
            there = ", ".join(map(str, inner)) or f"none (a {type(item).__name__})"
            raise BadInputError(f"{where} has no part {key!r}, only {there}; see data.inputs and data.target")
        item = inner[matching]
    return item


@dataclass(frozen=True)
class _Forward:
    """Arguments of a network's ``forward``: how many it takes by position, and their names."""

    name: str
    least: int
    most: float
    names: frozenset[str]
    needed: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> "_Forward":
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return cls(type(model).__name__, 1, 1, frozenset(), frozenset())
        kinds = inspect.Parameter
        by_position = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        by_name = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        has_any = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        return cls(
            type(model).__name__,
            sum(p.default is kinds.empty for p in by_position),
            math.inf if has_any else len(by_position),
            frozenset(p.name for p in by_name),
            frozenset(p.name for p in by_name if p.default is kinds.empty),
        )

    @property
    def words(self) -> str:
        """Its arguments, as an error names them."""
        return ", ".join(sorted(self.names)) or "one argument"

    def takes(self, count: int) -> bool:
        """Whether it can be called with so many positional arguments."""
        return max(1, self.least) <= count <= self.most


def choose_form(
    model: nn.Module,
    item: object,
    *,
    split: str = "train",
    inputs: Inputs | None = None,
    target: Key | None = None,
    collate: Collate | None = None,
    is_judged: bool = True,
    is_ragged: bool = False,
) -> Form:
    """Choose how the items of a data set go through a network; see the module for the rule.

    Args:
        model: is called, in eval mode, where more than one call is possible.
        item: the first of the data set.
        split: its name, for errors.
        inputs: the inputs among the item's parts (``data.inputs``); None goes by the rule.
        target: the target among them (``data.target``); None goes by the rule.
        collate: makes batches of items; the form is that of its batches.
        is_judged: whether there must be a target.
        is_ragged: whether targets are kept in a list.

    Raises:
        BadInputError: no call, or several; says how to choose.
    """
    shown = item
    if collate is not None:
        with UserCode(f"data.collate, given 1 sample of the {split} split,"):
            shown = collate([item])
    where = f"data: sample 0 of the {split} split"
    forward = _Forward.of(model)
    forms = list(_forms(shown, forward, inputs, target, where, is_judged=is_judged))
    width = len(shown) if isinstance(shown, tuple | list) and collate is None else None
    forms = [replace(form, width=width, is_ragged=is_ragged) for form in dict.fromkeys(forms)]
    if len(forms) == 1:
        return forms[0]
    if not forms:
        raise BadInputError(f"{where}: forward of {forward.name} takes {forward.words}; name the inputs by data.inputs")
    problems = [_problem(model, form, item, split, collate) for form in forms]
    running = [form for form, problem in zip(forms, problems, strict=True) if problem is None]
    if len(running) == 1:
        _log.info("data: items are taken as %s%s, the only call that runs", forward.name, running[0].words)
        return running[0]
    if not running:
        raise next(problem for problem in problems if problem is not None)
    calls = " and as ".join(f"{forward.name}{form.words}" for form in running)
    raise BadInputError(f"{where} can go through the network as {calls}; say which is right, such as {running[0].keys}")


def _problem(model: nn.Module, form: Form, item: object, split: str, collate: Collate | None) -> BadInputError | None:
    """Try a call on one sample; return what is wrong with it."""
    try:
        batch = form.batch([item], [0], split, collate)
        call = f"model.factory: {type(model).__name__}, called as {form.words},"
        with UserCode(call), seeded(0), evaluating(model), torch.inference_mode():
            batch.through(model)
    except BadInputError as error:
        return error
    return None


def _forms(
    item: object, forward: _Forward, inputs: Inputs | None, target: Key | None, where: str, *, is_judged: bool
) -> Iterator[Form]:
    """Every form that an item may have."""
    parts = _parts_of(item)
    judged = [_path(target)] if target is not None else _targets(item, forward, inputs, where, is_judged=is_judged)
    for path in judged:
        if path is not None:
            _part(item, path, where)
        if inputs is not None:
            form = replace(_asked(inputs), target=path)
            for used in (*form.args, *(named for _, named in form.kwargs)):
                _part(item, used, where)
            yield form
        else:
            yield from (replace(form, target=path) for form in _calls_beside(parts, path, forward, where, target))


def _parts_of(item: object) -> dict[Any, object]:
    """The parts of an item by position or name; a lone tensor, or anything else, has none."""
    if as_tensor(item) is not None and not isinstance(item, list | tuple):
        return {}
    if isinstance(item, tuple) and hasattr(item, "_fields") and _named_targets(item._fields):
        return dict(zip(item._fields, item, strict=True))
    return children(item) or {}


def _named_targets(names: Sequence[object]) -> list[Path]:
    return [(name,) for name in names if isinstance(name, str) and name.lower() in TARGETS]


def _targets(
    item: object, forward: _Forward, inputs: Inputs | None, where: str, *, is_judged: bool
) -> list[Path | None]:
    """Paths that may be the target's, by the rule."""
    parts = _parts_of(item)
    names = list(parts)
    is_tuple = names == list(range(len(names)))
    paths: list[Path] = []
    if not is_tuple:
        paths = _named_targets(names)
        if len(paths) > 1:
            raise BadInputError(
                f"{where} holds {', '.join(_dotted(p) for p in paths)}, any of which may be the target; set data.target"
            )
    elif len(names) == 2:
        paths = [(1,)]
    elif len(names) > 2:
        last = len(names) - 1
        counts = [1] if inputs is not None else [n for n in range(1, last + 1) if forward.takes(n)]
        paths = [(n,) for n in counts if has_only_numbers(parts[n])] or [(n,) for n in counts]
    if paths or not is_judged:
        return [*paths] or [None]
    held = "None" if item is None else f"a {type(item).__name__}"
    if names:
        held = f"{held} of {len(names)}" if is_tuple else f"a mapping or data class of {', '.join(map(str, names))}"
    raise BadInputError(
        f"{where} is {held}, expected a pair (input, target), or a mapping whose target is named "
        f"{', '.join(TARGETS)}; name the target by data.target, or write data.targets: dense to need none"
    )


def _calls_beside(
    parts: Mapping[Any, object], target: Path | None, forward: _Forward, where: str, key: Key | None
) -> Iterator[Form]:
    """Calls with what there is beside the target."""
    names = list(parts)
    if not names:
        yield Form(((),))
    elif names == list(range(len(names))):
        before = [n for n in names if (n,) != target] if key is not None else names[: _position(target, len(names))]
        yield from (
            _calls(parts[before[0]], (before[0],), forward) if len(before) == 1 else [Form(tuple((n,) for n in before))]
        )
    else:
        inner = {name: part for name, part in parts.items() if (name,) != target}
        yield from _named_calls(inner, forward, where)


def _position(target: Path | None, width: int) -> int:
    return width if target is None or not isinstance(target[0], int) else target[0]


def _named_calls(inner: Mapping[Any, object], forward: _Forward, where: str) -> Iterator[Form]:
    """Calls with the inputs of a mapping: by name, or its only tensor."""
    by_name = _by_name(inner, (), forward)
    if by_name is not None:
        yield by_name
        return
    usable = [name for name, part in inner.items() if has_only_numbers(part)]
    if len(usable) != 1:
        raise BadInputError(
            f"{where} holds {', '.join(map(str, inner)) or 'nothing'} beside the target, and forward of {forward.name} "
            f"takes {forward.words}; name the inputs by data.inputs"
        )
    yield from _calls(inner[usable[0]], (usable[0],), forward)


def _by_name(inner: Mapping[Any, object], path: Path, forward: _Forward) -> Form | None:
    """The call with keyword arguments, where ``forward`` takes what is there by name."""
    taken = [name for name in inner if name in forward.names]
    if not taken or not forward.needed <= set(taken):
        return None
    left = [str(name) for name in inner if name not in forward.names]
    if left:
        _log.info("data: %s of an item are no arguments of %s and are left out", ", ".join(left), forward.name)
    return Form((), tuple((str(name), (*path, name)) for name in taken))


def _calls(value: object, path: Path, forward: _Forward) -> Iterator[Form]:
    """Calls with one part of an item: as one argument, or as several where it is a tree."""
    inner = None if as_tensor(value) is not None else children(value)
    if inner is None:
        has_one_name = forward.most == 0 and len(forward.needed) == 1  # def forward(self, *, image)
        yield Form((), ((next(iter(forward.needed)), path),)) if has_one_name else Form((path,))
        return
    if isinstance(value, tuple | list) and forward.takes(len(value)) and len(value) > 1:
        yield Form(tuple((*path, i) for i in range(len(value))))
    elif (by_name := _by_name(inner, path, forward)) is not None:
        yield by_name
    if forward.takes(1):
        yield Form((path,))


def _path(key: Key) -> Path:
    return (key,) if isinstance(key, int) else tuple(key.split("."))


def _asked(inputs: Inputs) -> Form:
    if isinstance(inputs, str | int):
        return Form((_path(inputs),))
    if isinstance(inputs, Mapping):
        return Form((), tuple((name, _path(key)) for name, key in inputs.items()))
    return Form(tuple(_path(key) for key in inputs))
