"""Inputs and outputs of a network as a file has them: named tensors in order, and which axis has the samples.

A network takes and gives trees of tensors; an ONNX file takes and gives a list. A tensor's name is its path in the
tree made into an identifier (``heads.scores`` → ``heads_scores``); the only positional input is ``input``, one of
several is named as its parameter of ``forward``, and the only output is ``output``.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, as_batch, evaluating, map_tensors, tensors_of_tree

__all__ = [
    "Signature",
    "arrays_of",
    "call_of",
    "calls",
    "filled",
    "joined",
    "outputs_of",
    "sample_axis",
    "signature_of",
]

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Signature:
    """Names of a network's input and output tensors, in order; no name is both.

    ``axes`` says which axis of each output has the samples (that of an LSTM's hidden state is the second), None where
    none has. ``template`` is an output of the network: what comes from a file is put into its places.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[int | None, ...]
    template: Tree

    def filled(self, tensors: Iterable[Tensor]) -> Tree:
        """Return the network's output with these tensors in it."""
        return filled(self.template, tensors)


def signature_of(model: nn.Module, example: Batch | Tensor) -> Signature:
    """Run a network in eval mode on an example, and on its samples twice over, to see which axes have them.

    Raises:
        BadInputError: the network gives no tensor.
    """
    batch = as_batch(example)
    with evaluating(model), torch.no_grad():
        output = _copied(batch).through(model)
        paths = dict(outputs_of(output, type(model).__name__))
        twice = _shapes_of_twice(model, batch)
    shapes = [tuple(tensor.shape) for tensor in paths.values()]
    axes = [_grown(*pair) for pair in zip(shapes, twice, strict=True)] if len(twice) == len(shapes) else None
    inputs = _input_names(model, batch)
    return Signature(
        inputs,
        _output_names(list(paths), inputs),
        tuple(axes or [sample_axis(tensor, batch.size) for tensor in paths.values()]),
        map_tensors(output, Tensor.detach),
    )


def outputs_of(output: Tree, name: str) -> list[tuple[str, Tensor]]:
    """Return the tensors of an output with their paths, in order; ``name`` is the network's.

    Raises:
        BadInputError: there is none.
    """
    tensors = list(tensors_of_tree(output))
    if not tensors:
        raise BadInputError(
            f"{name} returns a {type(output).__name__} without a tensor; return a tensor, or a tuple, list, mapping or "
            "data class that holds tensors"
        )
    return tensors


def filled(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """Return a tree with other tensors in its places, in order."""
    left = iter(tensors)
    return map_tensors(tree, lambda _: next(left))


def call_of(args: Sequence[Tree], kwargs: Mapping[str, Any]) -> Batch:
    """Return the arguments of a call as a batch; its samples are those of the first tensor that has an axis."""
    tensors = Batch(tuple(args), kwargs).inputs.values()
    return Batch(tuple(args), kwargs, size=next((len(tensor) for tensor in tensors if tensor.ndim), 1))


def calls(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the samples of a batch, so many at a time; the last call is filled up with samples from the beginning."""
    if size == batch.size:
        yield batch
        return
    rows = torch.arange(-(-batch.size // size) * size) % batch.size
    yield from (batch.chosen(part) for part in torch.split(rows, size))


def joined(parts: Sequence[Sequence[Tensor]], axes: Sequence[int | None], count: int) -> list[Tensor]:
    """Return the outputs of calls (a list of tensors each) as those of one call of ``count`` samples.

    What has no axis of samples is stacked: an entry for each call.
    """
    if len(parts) == 1:
        pairs = zip(parts[0], axes, strict=True)
        return [tensor if axis is None else tensor.narrow(axis, 0, count) for tensor, axis in pairs]
    columns = zip(zip(*parts, strict=True), axes, strict=True)
    return [torch.stack(ts) if axis is None else torch.cat(ts, axis).narrow(axis, 0, count) for ts, axis in columns]


def arrays_of(batch: Batch | Tensor) -> list[NDArray[np.generic]]:
    """Return the input tensors as arrays, in the order of a file's inputs."""
    return [tensor.detach().cpu().numpy() for tensor in as_batch(batch).inputs.values()]


def sample_axis(tensor: Tensor, samples: int) -> int | None:
    """Return the first axis that is as long as there are samples, None if none is."""
    return next((axis for axis, length in enumerate(tensor.shape) if length == samples), None)


def _copied(batch: Batch) -> Batch:
    return batch.map(Tensor.clone)


def _shapes_of_twice(model: nn.Module, batch: Batch) -> list[tuple[int, ...]]:
    """Shapes of the outputs for the samples twice over; [] where the network takes no other number than the example's.

    One sample more would do as well, but networks that look at pairs of samples take even numbers alone.
    """
    try:
        output = _copied(batch.chosen([*range(batch.size)] * 2)).through(model)
    except Exception:  # whatever a forward raises that is made for one batch size
        return []
    return [tuple(tensor.shape) for _, tensor in tensors_of_tree(output)]


def _grown(shape: tuple[int, ...], twice: tuple[int, ...]) -> int | None:
    """The axis that has become longer with the number of samples."""
    pairs = zip(shape, twice, strict=False)
    return next((axis for axis, (before, after) in enumerate(pairs) if after != before), None)


def _input_names(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    paths = list(batch.inputs)
    if paths == ["0"]:
        return (INPUT,)
    if len(batch.args) == 1:  # the only positional argument is a tree: its name says nothing
        paths = [path.removeprefix("0.") for path in paths]
    else:
        for i, parameter in enumerate(_positional(model)[: len(batch.args)]):
            paths = [re.sub(rf"^{i}(?=\.|$)", parameter, path) for path in paths]
    return _identifiers(paths, INPUT, ())


def _positional(model: nn.Module) -> list[str]:
    """Names of the parameters of ``forward`` that arguments are given to by position; ``*args`` has none."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of code that is not Python's
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in by_position]


def _output_names(paths: Sequence[str], inputs: Sequence[str]) -> tuple[str, ...]:
    return _identifiers([OUTPUT] if len(paths) == 1 else paths, OUTPUT, inputs)


def _identifiers(paths: Sequence[str], kind: str, taken: Sequence[str]) -> tuple[str, ...]:
    names: list[str] = []
    for path in paths:
        name = re.sub(r"\W", "_", path)
        if not name or name[0].isdigit() or name in taken:
            name = f"{kind}_{name}"
        while name in names or name in taken:
            name += "_"
        names.append(name)
    return tuple(names)
