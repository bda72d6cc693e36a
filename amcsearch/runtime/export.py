"""Export of a torch module to ONNX.

Weights are initializers, and the batch is that of the example.
The tracing exporter (``dynamo=False``) comes first: ten times faster, and its node names carry the module path, which
``attribution`` reads. Where it cannot follow a module (or a future torch has dropped it) the dynamo exporter takes
over and its nodes are renamed to the same convention, ``/outer/inner/Op``. Both give models of equal speed.
"""

import tempfile
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, ConstantLayer, as_batch, evaluating, tensors_of_tree
from amcsearch.runtime.comparison import Compared
from amcsearch.runtime.operators import further_operators
from amcsearch.runtime.session import OnnxModule
from amcsearch.runtime.signature import Signature, signature_of
from amcsearch.runtime.torch_programs import exporting, reason_of

__all__ = ["OPSET", "WRAPPER", "Flat", "OnnxSettings", "exported"]

WRAPPER: Final = "network"  # the attribute under which the module hangs while it is exported
OPSET: Final = 20  # the first with Gelu as one operator
_BIASED: Final = frozenset({"Conv", "BatchNormalization"})  # into which ONNX Runtime folds an addition behind them
BATCHES: Final = (1, 3, 8)  # on which a file of a free batch is tried


@dataclass(frozen=True)
class OnnxSettings:
    """How an ONNX file is made: ``opset``, and names of axes that are free, each with its axis in every input.

    ``{"batch": 0, "sequence": 1}`` frees the number of samples and the length of sequences of all inputs that have such
    an axis; ``{"frames": {"spectrum": 2}}`` frees the axis of the inputs that it names.
    """

    opset: int = OPSET
    dynamic: Mapping[str, int | Mapping[str, int]] = field(default_factory=dict)

    def free_axes(self, batch: Batch, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
        """Return name of an axis that is free → input name → the axis.

        Raises:
            BadInputError: an input that the network does not have, or an axis that no input has.
        """
        free: dict[str, dict[str, int]] = {}
        tensors = dict(zip(names, batch.inputs.values(), strict=True))
        for axis_name, where in self.dynamic.items():
            axes = where if isinstance(where, Mapping) else dict.fromkeys(names, where)
            unknown = sorted(set(axes) - set(names))
            if unknown:
                raise BadInputError(
                    f"device.export.dynamic.{axis_name}: the network has no input {unknown[0]!r}; it has {list(names)}"
                )
            having = {name: axis for name, axis in axes.items() if axis < tensors[name].ndim}
            if where == 0:
                having = {name: 0 for name in having if len(tensors[name]) == batch.size}
            if not having:
                shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                raise BadInputError(f"device.export.dynamic.{axis_name} = {where}: no input has such an axis: {shapes}")
            free[axis_name] = having
        return free

    def axes_of_inputs(self, batch: Batch, names: tuple[str, ...]) -> tuple[frozenset[int], ...]:
        """Return the axes of every input that are free. Raises as ``free_axes``."""
        free = self.free_axes(batch, names).values()
        return tuple(frozenset(axes[name] for axes in free if name in axes) for name in names)


FIXED: Final = OnnxSettings()


class Flat(nn.Module):
    """The network as files have it: tensors in, tensors out."""

    def __init__(self, network: nn.Module, example: Batch) -> None:
        super().__init__()
        self.network = network
        self._example = example

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Input tensors in order → the only output, or all of them in order."""
        left = iter(tensors)
        output = self._example.map(lambda _: next(left)).through(self.network)
        given = tuple(tensor for _, tensor in tensors_of_tree(output))
        return given[0] if len(given) == 1 else given


@dataclass(frozen=True)
class _Request:
    """What an exporter is given: the inputs as tensors, their names and those of the outputs, and what is free."""

    tensors: tuple[Tensor, ...]
    signature: Signature
    opset: int
    free: Mapping[str, Mapping[str, int]]

    @property
    def batch_axis(self) -> str | None:
        """The name under which the number of samples is free, None where it is not."""
        return next((name for name, axes in self.free.items() if 0 in axes.values()), None)

    @property
    def named_axes(self) -> dict[str, dict[int, str]]:
        """Name of an input or output → axis → the name under which it is free."""
        named: dict[str, dict[int, str]] = {name: {} for name in self.signature.inputs}
        for axis_name, axes in self.free.items():
            for name, axis in axes.items():
                named[name][axis] = axis_name
        if self.batch_axis is not None:
            pairs = zip(self.signature.outputs, self.signature.axes, strict=True)
            named |= {output: {axis: self.batch_axis} for output, axis in pairs if axis is not None}
        return named


def _by_tracing(model: nn.Module, request: _Request) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, further_operators():
        path = str(Path(folder) / "traced.onnx")
        torch.onnx.export(
            model,
            request.tensors,
            path,
            dynamo=False,
            opset_version=request.opset,
            input_names=list(request.signature.inputs),
            output_names=list(request.signature.outputs),
            dynamic_axes=request.named_axes if request.free else None,
        )
        return onnx.load(path)


def _by_dynamo(model: nn.Module, request: _Request) -> onnx.ModelProto:
    named = request.named_axes
    shapes = tuple(dict.fromkeys(named[name], torch.export.Dim.DYNAMIC) for name in request.signature.inputs)
    program = torch.onnx.export(
        model,
        request.tensors,
        dynamo=True,
        verbose=False,
        opset_version=request.opset,
        input_names=list(request.signature.inputs),
        output_names=list(request.signature.outputs),
        dynamic_shapes=(shapes,) if request.free else None,
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
    _name_axes(proto.graph, named)
    return proto


def _name_axes(graph: onnx.GraphProto, named: Mapping[str, Mapping[int, str]]) -> None:
    """Give free axes their names everywhere: the dynamo exporter has names of its own."""
    names = {
        port.type.tensor_type.shape.dim[axis].dim_param: name
        for port in graph.input
        for axis, name in named[port.name].items()
    }
    for port in (*graph.input, *graph.output, *graph.value_info):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


EXPORTERS: Final[dict[str, Callable[[nn.Module, _Request], onnx.ModelProto]]] = {
    "tracing": _by_tracing,
    "dynamo": _by_dynamo,
}


def exported(
    model: nn.Module, example: Batch | Tensor, settings: OnnxSettings = FIXED, signature: Signature | None = None
) -> bytes:
    """Return ``model`` as a serialised ONNX model with all of its outputs, named as ``Signature`` says.

    The module is unchanged. A file with free axes is run on other sizes than the example's before it is returned.

    Args:
        model: any module.
        example: what it is called with; a tensor (N, …) is its only argument. The sizes are the model's but where
            ``settings`` frees them.
        settings: the opset and the axes that are free.
        signature: of the network, or of the one that it was pruned from, where it is known; else the network is run to
            find it.

    Raises:
        BadInputError: no exporter can follow the module; the message holds the first one's reason. Or axes that the
            inputs do not have.
    """
    batch = as_batch(example)
    with evaluating(model), exporting(), torch.no_grad():
        try:
            signature = signature or signature_of(model, batch)
        except Exception as error:  # whatever user code raises
            raise _not_exported(model, reason_of(error)) from error
        free = settings.free_axes(batch, signature.inputs)
        if free:  # exporters take a batch of 1 for a constant
            batch = batch.chosen([row % batch.size for row in range(max(2, batch.size))])
        request = _Request(tuple(batch.inputs.values()), signature, settings.opset, free)
        reasons = []
        for name, exporter in EXPORTERS.items():
            try:
                proto = exporter(Flat(model, batch).eval(), request)
                _add_unused_inputs(proto.graph, request)
                if any(isinstance(module, ConstantLayer) for module in model.modules()):
                    _fold_vanished(proto)
                onnx.checker.check_model(proto)
                content = bytes(proto.SerializeToString())
                _check_free(model, batch, content, request)
                return content
            except Exception as error:  # whatever user code and two exporters may raise while tracing
                reasons.append(f"{name}: {reason_of(error)}")
    raise _not_exported(model, reasons[0], has_free_axes=bool(free))


def _add_unused_inputs(graph: onnx.GraphProto, request: _Request) -> None:
    """Add the inputs that the tracing exporter leaves out because nothing reads them: a file takes what torch takes."""
    ports = {port.name: port for port in graph.input}
    for name, tensor in zip(request.signature.inputs, request.tensors, strict=True):
        if name not in ports:
            shape = [request.named_axes[name].get(axis, length) for axis, length in enumerate(tensor.shape)]
            kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
            ports[name] = onnx.helper.make_tensor_value_info(name, kind, shape)
    ordered = [ports[name] for name in request.signature.inputs]
    del graph.input[:]
    graph.input.extend(ordered)


def _fold_vanished(proto: onnx.ModelProto) -> None:
    """Fold the batch norms of constants, which branches that have vanished leave, and drop additions of zeros.

    How other constants are added to maps is left to ``_keep_layout``.
    """
    graph, known = proto.graph, onnx.shape_inference.infer_shapes(proto).graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # inner graphs read names too
    types = {port.name: port.type for port in (*known.input, *known.output, *known.value_info)}
    outputs = {port.name for port in graph.output}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    additions: list[tuple[onnx.NodeProto, str, NDArray[np.generic]]] = []
    for node in list(graph.node):
        operands, result = {name: values.get(name) for name in node.input}, node.output[0]
        variable = [name for name, value in operands.items() if value is None]
        if node.op_type == "Identity" and not variable:
            values[result] = values[node.input[0]]
        elif node.op_type == "BatchNormalization" and not variable:
            (folded, *_) = ReferenceEvaluator(node).run(None, operands)
            values[result] = np.asarray(folded)
            graph.initializer.append(onnx.numpy_helper.from_array(values[result], result))
            graph.node.remove(node)
        elif node.op_type == "Add" and len(variable) == 1 and result in types and result not in outputs:
            constant = [value for value in operands.values() if value is not None]
            if not constant or types.get(variable[0]) != types[result]:
                continue
            if not constant[0].any():
                _rename(graph, result, variable[0])
                graph.node.remove(node)
            elif _is_a_number_a_map(constant[0], types[result]):
                additions.append((node, variable[0], constant[0]))
    _keep_layout(graph, additions)
    _drop_unread(graph, outputs)


def _is_a_number_a_map(constant: NDArray[np.generic], result: onnx.TypeProto) -> bool:
    """Whether a constant is (1, C, 1, 1) beside maps (N, C, H, W) in float32."""
    sizes = [axis.dim_value for axis in result.tensor_type.shape.dim]
    return len(sizes) == 4 and constant.shape == (1, sizes[1], 1, 1) and constant.dtype == np.float32


def _keep_layout(graph: onnx.GraphProto, additions: Iterable[tuple[onnx.NodeProto, str, NDArray[np.generic]]]) -> None:
    """Make additions of constants to maps convolutions of single channels, 1 · x + c, where no runtime folds them.

    ONNX Runtime has no addition of a constant in its layout of channel blocks: before and after one it reorders the
    maps, and neither the activation behind it nor later additions of these maps are fused. A convolution stays in the
    layout. (Measured on a Xeon, one thread: 16 channels of 16 x 16 took 6.7 µs more with an addition between two
    convolutions, and 1.2 µs with this; ``docs/own_network.md``.) What follows a convolution that nothing else reads is
    folded into its bias, and stays.
    """
    reads = Counter([*(name for node in graph.node for name in node.input), *(port.name for port in graph.output)])
    folding = {name for node in graph.node if node.op_type in _BIASED for name in node.output if reads[name] == 1}
    for node, maps, constant in additions:
        if maps not in folding:
            _add_by_convolution(graph, node, maps, constant)
        elif reads[node.output[0]] == 1:
            folding.add(node.output[0])


def _add_by_convolution(graph: onnx.GraphProto, node: onnx.NodeProto, maps: str, constant: NDArray[np.generic]) -> None:
    channels, result = constant.shape[1], node.output[0]
    shape, weight, bias = (f"{result}.{part}" for part in ("shape", "ones", "constant"))
    graph.initializer.append(onnx.numpy_helper.from_array(constant.reshape(channels), bias))
    filled_with = onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32))
    make_node, at = onnx.helper.make_node, list(graph.node).index(node)
    node.CopyFrom(make_node("Conv", [maps, weight, bias], [result], node.name, kernel_shape=[1, 1], group=channels))
    # no weight of the file: the runtime makes the ones when it loads it
    graph.node.insert(at, make_node("ConstantOfShape", [shape], [weight], f"{node.name}.ones", value=filled_with))
    graph.node.insert(at, make_node("Constant", [], [shape], f"{node.name}.shape", value_ints=[channels, 1, 1, 1]))


def _rename(graph: onnx.GraphProto, name: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if each == name else each for each in node.input]


def _drop_unread(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Leave out the copies and initializers that nothing reads."""
    read = {*outputs, *(name for node in graph.node if node.op_type != "Identity" for name in node.input)}
    for node in [node for node in graph.node if node.op_type == "Identity"][::-1]:
        if node.output[0] in read:
            read.add(node.input[0])
        else:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _not_exported(model: nn.Module, reason: str, *, has_free_axes: bool = False) -> BadInputError:
    cure = "make its forward traceable"
    if has_free_axes:
        cure = f"{cure} and fit for other lengths of the free axes, or free fewer by device.export.dynamic"
    return BadInputError(f"cannot export {type(model).__name__} to ONNX ({reason}); {cure}")


def _check_free(model: nn.Module, batch: Batch, content: bytes, request: _Request) -> None:
    """Run a file on other sizes of its free axes, and compare it with torch.

    Raises:
        BadInputError: it cannot be run on a size that torch takes, or gives something else.
    """
    for name, axes in request.free.items():
        input_axes = [axes.get(key) for key in request.signature.inputs]
        pairs = zip(request.tensors, input_axes, strict=True)
        lengths = [tensor.shape[axis] for tensor, axis in pairs if axis is not None]
        for size in BATCHES if 0 in input_axes else (max(1, lengths[0] // 2),):
            compared = Compared(model, OnnxModule(content, signature=request.signature), labels=False)
            _resized(batch, input_axes, size).through(compared)
            problem = compared.agreement().problem
            if problem is not None:
                raise BadInputError(f"run with {name} = {size} the file {problem}")


def _resized(batch: Batch, axes: list[int | None], size: int) -> Batch:
    """Return a batch with another length of an axis: samples are repeated, and rolled so that no two are the same."""
    left = iter(axes)

    def cut(tensor: Tensor) -> Tensor:
        axis = next(left)
        if axis is None:
            return tensor
        part = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
        if axis:
            return part
        return torch.stack([sample.roll(row, -1) if sample.ndim else sample for row, sample in enumerate(part)])

    return replace(batch.map(cut), size=size if 0 in axes else batch.size)
