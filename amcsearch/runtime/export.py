"""Export of a torch module: to ONNX, and to a program of ``torch.export`` that needs no source code.

In ONNX, weights are initializers, and the batch is that of the example.
The tracing exporter (``dynamo=False``) comes first: ten times faster, and its node names carry the module path, which
``attribution`` reads. Where it cannot follow a module (or a future torch has dropped it) the dynamo exporter takes
over and its nodes are renamed to the same convention, ``/outer/inner/Op``. Both give models of equal speed.
"""

import io
import logging
import tempfile
import warnings
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import evaluating, first_tensor
from amcsearch.runtime.comparison import InBatches

__all__ = ["WRAPPER", "exported", "program_module", "torch_program"]

WRAPPER: Final = "network"  # the attribute under which the module hangs while it is exported
OPSET: Final = 20  # the first with Gelu as one operator
INPUT, OUTPUT = "input", "output"


class _FirstTensor(nn.Module):
    """The module, returning only its first float tensor: ONNX graphs have no mappings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = first_tensor(self.network(x))
        return output


@contextmanager
def _exporting() -> Iterator[None]:
    """Keep the exporters quiet: they warn of their own deprecations, log, and print the graph that they fail on.

    Torch's fused fast path of ``nn.TransformerEncoderLayer`` is switched off meanwhile: it has no ONNX form.
    """
    logger = logging.getLogger("torch")
    level, fast_path = logger.level, torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logger.setLevel(level)


def _by_tracing(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "traced.onnx")
        torch.onnx.export(
            model, (example,), path, dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT]
        )
        return onnx.load(path)


def _by_dynamo(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        external_data=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    proto: onnx.ModelProto = program.model_proto
    for index, node in enumerate(proto.graph.node):
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "['']")
        module = (literal_eval(scopes)[:-1] or [""])[-1]
        node.name = "/".join(["", *filter(None, module.split(".")), f"{node.op_type}.{index}"])
        del node.metadata_props[:]
    return proto


EXPORTERS: Final[dict[str, Callable[[nn.Module, Tensor], onnx.ModelProto]]] = {
    "tracing": _by_tracing,
    "dynamo": _by_dynamo,
}


def exported(model: nn.Module, example: Tensor) -> bytes:
    """Return ``model`` as a serialised ONNX model, input ``input``, output ``output``; the module is unchanged.

    Args:
        model: any module of one tensor argument; of its outputs the first float tensor is kept.
        example: input with batch dimension; its batch size becomes the model's.

    Raises:
        BadInputError: no exporter can follow the module; the message holds the first one's reason.
    """
    reasons = []
    with evaluating(model), _exporting(), torch.no_grad():
        wrapped = _FirstTensor(model).eval()
        for name, exporter in EXPORTERS.items():
            try:
                proto = exporter(wrapped, example)
                onnx.checker.check_model(proto)
                return bytes(proto.SerializeToString())
            except Exception as error:  # whatever user code and two exporters may raise while tracing
                first_line = next(iter(str(error).strip().splitlines()), "no reason given")
                reasons.append(f"{name}: {type(error).__name__}: {first_line}")
    raise BadInputError(f"cannot export {type(model).__name__} to ONNX ({reasons[0]}); make its forward traceable")


def torch_program(model: nn.Module, example: Tensor) -> bytes:
    """Return ``model`` as a serialised ``torch.export`` program; the module is unchanged.

    ``torch.export.load`` reads it back where neither the module's source nor this package is installed. Inputs may
    have any batch size, or that of ``example`` alone where the module depends on it.

    Args:
        model: any module of one tensor argument.
        example: input with batch dimension.

    Raises:
        BadInputError: torch cannot follow the module's forward, or cannot read back what it wrote; the message holds
            its reason.
    """
    pair = torch.cat([example, example])[:2]  # torch.export takes a batch of 1 for a constant
    free = {0: torch.export.Dim("batch", min=1)}
    reason = "no reason given"
    with evaluating(model), _exporting(), torch.no_grad():
        for inputs, shapes in (((pair,), (free,)), ((example,), None)):
            try:
                file = io.BytesIO()
                torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), file)
                torch.export.load(io.BytesIO(file.getvalue()))  # it fails where a module has an unusual name
                return file.getvalue()
            except Exception as error:  # whatever user code and torch may raise while tracing
                reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), reason)}"
    raise BadInputError(f"torch.export cannot follow {type(model).__name__} ({reason}); make its forward traceable")


def program_module(path: Path) -> nn.Module:
    """Return the network of a ``torch.export`` program that ``torch_program`` made, for any number of samples.

    Raises:
        BadInputError: the file cannot be read.
    """
    try:
        program = torch.export.load(path)
        inputs = set(program.graph_signature.user_inputs)
        sizes = [node.meta["val"].shape[0] for node in program.graph.nodes if node.name in inputs]
        module: nn.Module = program.module()
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise BadInputError(f"cannot read {path}: {next(iter(str(error).splitlines()), 'damaged')}") from error
    return _Program(module, sizes[0] if sizes and isinstance(sizes[0], int) else None)


class _Program(InBatches):
    def train(self, mode: bool = True) -> "_Program":
        """Stay as it is: a program has the mode that it was exported in."""
        del mode
        return self
