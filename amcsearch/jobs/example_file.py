"""One sample that a delivered network was called with, beside what it gave: written, and read back as the same call.

``example.safetensors`` holds every input and output tensor under its name in the ONNX file. Its texts say in JSON how
the inputs were nested: tuples, lists and dicts as such, other containers by the name of their class.
"""

import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, parse_json
from amcsearch.graph import Batch, Tree, as_batch, evaluating
from amcsearch.runtime import outputs_of, signature_of
from amcsearch.training import load_tensors, read_texts, save_tensors

__all__ = ["StoredExample", "read_example", "write_example"]

_CALL, _OUTPUTS = "amcsearch.call", "amcsearch.outputs"
_DEEPEST: Final = 32  # nesting of a call that is read


@dataclass(frozen=True)
class StoredExample:
    """A call of one sample, and the tensors that the network gave for it, in order; None of an older file."""

    batch: Batch
    outputs: tuple[Tensor, ...] | None


def write_example(path: Path, model: nn.Module, example: Batch | Tensor) -> None:
    """Write the first sample of an example and the network's outputs for it.

    Raises:
        BadInputError: a file that cannot be written, or a network that gives no tensor.
    """
    sample = as_batch(example).chosen([0])
    signature = signature_of(model, sample)
    with evaluating(model), torch.no_grad():
        outputs = [tensor for _, tensor in outputs_of(sample.map(Tensor.clone).through(model), type(model).__name__)]
    names = iter(signature.inputs)
    call = [_described(tuple(sample.args), names), _described(dict(sample.kwargs), names)]
    tensors = dict(zip(signature.inputs, sample.inputs.values(), strict=True))
    tensors |= dict(zip(signature.outputs, outputs, strict=True))
    texts = {_CALL: json.dumps(call), _OUTPUTS: json.dumps(signature.outputs)}
    save_tensors({name: tensor.detach().clone() for name, tensor in tensors.items()}, path, texts)


def read_example(path: Path) -> StoredExample:
    """Read what ``write_example`` wrote, or the ``input`` of a file without texts.

    Raises:
        BadInputError: a file that cannot be read or is damaged, or a class of its inputs that cannot be imported.
    """
    tensors, texts = load_tensors(path), read_texts(path)
    if _CALL not in texts:
        if "input" not in tensors:
            raise BadInputError(f"{path} holds {sorted(tensors)[:3]}, expected input; restore it")
        output = tensors.get("output")
        return StoredExample(Batch.of(tensors["input"]), None if output is None else (output,))
    try:
        args, kwargs = (_made(node, tensors, 0) for node in parse_json(texts[_CALL], path.name))
        outputs = tuple(tensors[name] for name in parse_json(texts[_OUTPUTS], path.name))
        return StoredExample(Batch(args, kwargs), outputs)
    except BadInputError:
        raise
    except Exception as error:  # a damaged text makes almost anything
        raise BadInputError(f"{path} is damaged ({type(error).__name__}: {error}); restore it") from error


def _described(tree: Tree, names: Iterator[str]) -> dict[str, Any]:
    """A tree as an object of JSON; tensors take the next name. What is neither a container nor a value becomes None."""
    if isinstance(tree, Tensor):
        return {"tensor": next(names)}
    if isinstance(tree, Mapping):
        items = [[key, _described(value, names)] for key, value in tree.items()]
        return {"items": items} if type(tree) is dict else {"items": items, "class": _name_of(tree)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"fields": [[n, _described(getattr(tree, n), names)] for n in tree._fields], "class": _name_of(tree)}
    if isinstance(tree, tuple | list):
        return {type(tree).__name__ if type(tree) in (tuple, list) else "list": [_described(v, names) for v in tree]}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [field.name for field in dataclasses.fields(tree)]
        return {"fields": [[n, _described(getattr(tree, n), names)] for n in fields], "class": _name_of(tree)}
    return {"value": tree if isinstance(tree, str | int | float | bool) else None}


def _made(node: Mapping[str, Any], tensors: Mapping[str, Tensor], depth: int) -> Tree:
    if depth > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "value" in node:
        return node["value"]
    for kind, make in (("tuple", tuple), ("list", list)):
        if kind in node:
            return make(_made(inner, tensors, depth + 1) for inner in node[kind])
    pairs = node["items"] if "items" in node else node["fields"]
    values = {key: _made(inner, tensors, depth + 1) for key, inner in pairs}
    if "class" not in node:
        return values
    made = _class_of(node["class"])
    return made(values) if "items" in node else made(**values)


def _name_of(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class_of(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise BadInputError(
            f"the network is called with a {name}, which cannot be imported ({error}); run where it can be, or load "
            "the network with source='program'"
        ) from error
    if not isinstance(value, type):
        raise BadInputError(f"{name} is no class; restore example.safetensors")
    return value
