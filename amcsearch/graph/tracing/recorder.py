"""Recorder of a running module: its layers in order of execution, attention, and operations without weights.

``observe`` runs a module once. Modules of a known type say their shapes themselves; sums of products that run outside
them (``contractions``) become layers of their own, named after the parameter that they multiply with.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amcsearch.core import LayerKind, LayerSpec, Stored
from amcsearch.graph.batch import Batch, tensors_of_tree
from amcsearch.graph.modes import unfused
from amcsearch.graph.outputs import output_tensors, tensors_in
from amcsearch.graph.slices import Skipped
from amcsearch.graph.tracing.contractions import (
    Attention,
    Channels,
    Contraction,
    ContractionLog,
    Convolution,
    Product,
    Uncounted,
    Weight,
)
from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.grouping import OUTPUT
from amcsearch.graph.tracing.labels import loose_dim, small, varying
from amcsearch.graph.tracing.layer_types import affine, layer_type, norm_dim, tokens
from amcsearch.graph.tracing.map_steps import MapFollower
from amcsearch.graph.tracing.module_rules import entered, left

UNUSED: Final = "a parameter that this example never used: counted in params, not in model_bytes, and left alone"

__all__ = ["UNUSED", "AttentionCall", "Observation", "Recorder", "observe"]


@dataclass(frozen=True)
class AttentionCall:
    """One softmax(QKᵀ)V: its layer, the module whose code ran it, and how many layers were recorded before it."""

    layer: str
    module: str
    heads: int
    head_width: int
    position: int


@dataclass
class Observation:
    """Layers in order of execution; ``modules`` maps each layer's name to its module's (or parameter's) name."""

    layers: list[LayerSpec] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    attentions: list[AttentionCall] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    channels: dict[str, Channels] = field(default_factory=dict)  # layer → labels of its input and output channels
    output: Any = None  # what the network returned

    def add(self, spec: LayerSpec, module: str) -> str:
        """Append a layer under the first free name ``name``, ``name#2``, … and return it."""
        return self.insert(len(self.layers), spec, module)

    def insert(self, position: int, spec: LayerSpec, module: str) -> str:
        """Put a layer before the one at ``position``, under the first free name, and return that."""
        name, n = spec.name, 1
        while name in self.modules:
            n += 1
            name = f"{spec.name}#{n}"
        self.layers.insert(position, replace(spec, name=name))
        self.modules[name] = module
        self.attentions = [
            replace(call, position=call.position + (call.position >= position)) for call in self.attentions
        ]
        return name


@dataclass(frozen=True)
class _OpenProduct:
    """A product of two maps that no attention has claimed: where it ran, and how many layers came before."""

    here: str
    position: int
    product: Product


class Recorder(TorchFunctionMode):
    """Sees every torch function, and in ``log`` the contractions below it: what runs outside any known layer."""

    def __init__(self, model: nn.Module, flow: Flow | None = None) -> None:
        super().__init__()
        self.observation = Observation()
        self.flow = flow
        self.log = ContractionLog(model) if flow is None else ContractionLog(model, flow.spread)
        self.maps = MapFollower(self.observation.layers)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.owned: set[int] = set()  # parameters already counted
        inside = {id(p) for m in model.modules() if _counts_itself(m) for p in m.parameters()}
        self.tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self.parameters = {id(p): name for name, p in model.named_parameters()}
        self.loose = {key: name for key, name in self.parameters.items() if key not in inside}
        self.multiplied: dict[str, str] = {}  # parameters that plain code used as a weight → the module that ran it
        self.open: dict[int, _OpenProduct] = {}

    @property
    def here(self) -> str:
        """Name of the innermost running module."""
        return self.names[id(self.stack[-1])] if self.stack else ""

    def claim(self, parameter: object) -> bool:
        """Claim a parameter; false for one counted before, and for what is none (None, a computed weight)."""
        fresh = id(parameter) in self.parameters and id(parameter) not in self.owned
        if fresh:
            self.owned.add(id(parameter))
        return fresh

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.stack or not _counts_itself(self.stack[-1]):
            name = getattr(func, "__name__", "")
            operands = [*tensors_in(args), *tensors_in((kwargs or {}).values())]
            before = len(self.observation.layers)
            for contraction in self.log.take():
                self.contracted(contraction, operands)
            for tensor in operands:
                if id(tensor) in self.loose and tensor.numel() and self.claim(tensor):  # none: of a vanished branch
                    self._parameter(self.loose[id(tensor)], tensor)
            if any(layer.kind is not LayerKind.PARAMETER for layer in self.observation.layers[before:]):
                self.maps.wrote(result)
            else:
                self.maps.saw(name, operands, result)
        return result

    def contracted(self, contraction: Contraction, operands: list[Tensor]) -> None:
        """Record a sum of products that no known layer ran, in a function of ``operands``."""
        match contraction:
            case Attention():
                self._attention(contraction, operands)
            case Uncounted():
                reason = f"{contraction.operation} fits no kind of layer: its {contraction.macs:,} MACs are not counted"
                self.observation.skipped.append(Skipped(self.here, reason))
            case Convolution():
                spec = contraction.layer
                name = self._weighted(spec, contraction.weight, prod(spec.kernel) * _pairs(spec), operands)
                self._label(name, contraction.channels)
            case Product(weight=None):
                self.open[contraction.number] = _OpenProduct(self.here, len(self.observation.layers), contraction)
            case Product():
                spec = _product_layer(contraction, operands)
                whole = _pairs(spec) if contraction.groups == 1 else 0  # a weight of each head: a tensor of its own
                name = self._weighted(spec, contraction.weight, whole, operands)
                self._label(name, contraction.channels)

    def _label(self, name: str, channels: Channels) -> None:
        """Note the labels of a layer's channels, those of one window where several are folded into the batch."""
        spec = next(layer for layer in reversed(self.observation.layers) if layer.name == name)
        widths = spec.in_channels, spec.out_channels
        read, written = (
            None if vector is None else _of_width(vector, width) for vector, width in zip(channels, widths, strict=True)
        )
        self.observation.channels[name] = read, written

    def _weighted(self, spec: LayerSpec, weight: Weight | None, numel: int, operands: list[Tensor]) -> str:
        """Add a layer that plain code runs; ``numel`` is the size of the weight that its shapes stand for."""
        if weight is None or not weight.name:
            return self.observation.add(replace(spec, name=f"{self.here}.{spec.name}".lstrip(".")), self.here)
        whole = self.tensors[weight.name]
        has_weight = weight.row is None and whole.numel() == numel and self.claim(whole)
        if id(whole) in self.parameters and self.claim(whole):
            self._parameter(weight.name, whole)  # a slice, or one expert: its numbers are counted with the whole
        biases = [x for x in operands if x.ndim == 1 and len(x) == spec.out_channels and id(x) in self.parameters]
        has_bias = any(self.claim(bias) for bias in biases if bias is not whole)
        if id(whole) in self.parameters:
            self.multiplied.setdefault(weight.name, self.here)
        name = self._layer_name(weight)
        return self.observation.add(replace(spec, name=name, has_weight=has_weight, has_bias=has_bias), name)

    def _layer_name(self, weight: Weight) -> str:
        """The parameter's name, with the first row of a slice; nn.MultiheadAttention's are named as its layers."""
        name = weight.name
        if self.stack and isinstance(self.stack[-1], nn.MultiheadAttention):
            name = name.removesuffix(".weight").removesuffix("_weight")
        return name if weight.row is None else f"{name}.{weight.row}"

    def _parameter(self, name: str, tensor: Tensor, stored: Stored = Stored.ALL) -> None:
        width = tensor.shape[loose_dim(tensor)] if tensor.ndim else 1
        spec = LayerSpec(name, LayerKind.PARAMETER, max(tensor.numel() // width, 1), width, stored=stored)
        self.observation.add(spec, name)

    def _attention(self, attention: Attention, operands: list[Tensor]) -> None:
        if attention.product is not None:
            self.open.pop(attention.product, None)
        windows = self._windows(attention, operands)
        heads = attention.heads // windows
        spec = LayerSpec(
            f"{self.here}.attention".lstrip("."), LayerKind.ATTENTION, heads * attention.key_width,
            heads * attention.value_width, conv_groups=heads, in_size=(attention.keys, 1),
            out_size=(windows * attention.queries, 1), has_weight=False,
        )  # fmt: skip
        name = self.observation.add(spec, self.here)
        self.observation.attentions.append(
            AttentionCall(name, self.here, heads, attention.value_width, len(self.observation.layers) - 1)
        )
        self._label(name, attention.channels)

    def _windows(self, attention: Attention, operands: list[Tensor]) -> int:
        """How many of the leading dimensions are windows (or frames) and not heads."""
        module = self.stack[-1] if self.stack else None
        if isinstance(module, nn.MultiheadAttention):
            return max(attention.heads // int(module.num_heads), 1)
        lead = next((tuple(x.shape[:-2]) for x in operands if prod(x.shape[:-2]) == attention.heads), ())
        linear = [x for x in self.observation.layers if x.kind is LayerKind.LINEAR]
        inside = [x for x in linear if f"{self.observation.modules[x.name]}.".startswith(f"{self.here}.")]
        recent = [x.out_channels for x in (inside or linear)[-3:]]
        for start in range(len(lead)):
            width = prod(lead[start:]) * attention.value_width
            if width in recent or 3 * width in recent:
                return int(prod(lead[:start]))
        return int(lead[0]) if len(lead) > 1 else 1

    def add_open_products(self) -> None:
        """Add the products of maps that became no attention where they ran; equal ones of a module are one layer."""
        equal: dict[tuple[str, Product], list[_OpenProduct]] = {}
        for entry in self.open.values():
            equal.setdefault((entry.here, replace(entry.product, number=0)), []).append(entry)
        for (here, product), entries in sorted(equal.items(), key=lambda item: -item[1][0].position):
            spec = _product_layer(replace(product, rows=product.rows * len(entries)), [])
            spec = replace(spec, name=f"{here}.product".lstrip("."))
            self._label(self.observation.insert(entries[0].position, spec, here), product.channels)

    def returned(self, module: nn.Module, x: Tensor, y: Tensor, inside: list[Contraction]) -> None:
        """Record one call of any module; ``inside``: what it computed by itself."""
        if isinstance(module, nn.RNNBase):
            self.recurrent(module, x)
        elif layer_type(module) is not None and 0 not in getattr(affine(module)[0], "shape", ()):  # of no inputs
            self.called(module, x, y)
            for contraction in _besides(inside, self.observation.layers[-1]):
                self.contracted(contraction, [])

    def called(self, module: nn.Module, x: Tensor, y: Tensor) -> None:
        """Record one call of a known layer, of its first input and output."""
        kind = layer_type(module)
        assert kind is not None
        name = self.names[id(module)] or type(module).__name__.lower()
        spec = kind.spec(name, module, x.shape, y.shape)
        weight, bias = affine(module)
        has_weight, has_bias = self.claim(weight) and spec.has_weight, self.claim(bias) and spec.has_bias
        name = self.observation.add(replace(spec, has_weight=has_weight, has_bias=has_bias), self.names[id(module)])
        if self.flow is not None:
            self._label(name, (self._channels(module, spec, x), self._channels(module, spec, y)))

    def _channels(self, module: nn.Module, spec: LayerSpec, x: Tensor) -> NDArray[np.int64] | None:
        """Labels of a layer's input or output, along its channels alone where positions have labels too."""
        assert self.flow is not None
        dim = norm_dim(module, x.shape)
        if spec.kind is LayerKind.LAYER_NORM and not any(dim in varying(label) for label in self.flow.labels(x)):
            return None  # a norm over positions, of every channel by itself
        is_depthwise = spec.kind is LayerKind.CONV and spec.conv_groups == spec.in_channels
        for label in self.flow.labels(x) if is_depthwise else ():
            if {dim} < set(varying(label)):  # heads as maps: all of a channel leave together
                return small(label).movedim(dim, 0).flatten(1)[:, 0].numpy()[None]
        last = spec.kind in (LayerKind.LINEAR, LayerKind.EMBEDDING)
        shuffled = None if last or spec.kind is LayerKind.LAYER_NORM else self.flow.of_one_place(x, dim)
        if shuffled is not None:  # all of a channel leave together
            return shuffled
        vector = self.flow.vectors(x, range(x.ndim))
        if vector is None:
            return self.flow.vectors(x, (x.ndim - 1 if last else dim,))
        # positions made of channels: one row tells, since what lies behind the other rows leaves with it
        return vector[:, : x.shape[-1]] if last and self.flow.vectors(x, range(x.ndim - 1)) is None else vector

    def recurrent(self, module: nn.RNNBase, x: Tensor) -> None:
        """Record a recurrent module as the products that every step takes: inputs, hidden state and projection."""
        path = self.names[id(module)]
        positions = (x.numel() // x.shape[-1], 1)
        for key, weight in module.named_parameters(recurse=False):
            if not key.startswith("weight"):
                continue
            outputs, inputs = weight.shape
            name = f"{path}.{key}".lstrip(".")
            has_bias = self.claim(getattr(module, key.replace("weight", "bias"), None))
            spec = LayerSpec(
                name, LayerKind.LINEAR, inputs, outputs, in_size=positions, out_size=positions,
                has_weight=self.claim(weight), has_bias=has_bias,
            )  # fmt: skip
            self.observation.add(spec, name)
            if self.flow is not None:
                rows, columns = (self.flow.vectors(weight, (dim,)) for dim in (0, 1))
                self._label(name, (columns, rows))


def _of_width(vectors: NDArray[np.int64], width: int) -> NDArray[np.int64] | None:
    """The labels of ``width`` channels out of several windows that have the same; None if they are others."""
    if width < 2 or not vectors.size or vectors.shape[-1] % width:
        return None  # none at all: an expert that is given no tokens
    windows = vectors.reshape(*vectors.shape[:-1], -1, width)
    return windows[..., 0, :] if (windows == windows[..., :1, :]).all() else None


def _counts_itself(module: nn.Module) -> bool:
    """Whether a module is recorded when it returns, and not operation by operation."""
    return layer_type(module) is not None or isinstance(module, nn.RNNBase)


def _pairs(layer: LayerSpec) -> int:
    """Pairs of an input and an output channel that meet."""
    return layer.in_channels * layer.out_channels // layer.conv_groups


def _product_layer(product: Product, operands: list[Tensor]) -> LayerSpec:
    """A linear layer, or a grouped one by one convolution for a batch of products with different second operands."""
    x = next((x for x in operands if x.numel() == product.groups * product.rows * product.terms), None)
    is_plain = x is not None and product.groups == 1 and x.ndim > 0 and x.shape[-1] == product.terms
    size = tokens(x.shape) if x is not None and is_plain else (product.rows, 1)
    kind = LayerKind.LINEAR if product.groups == 1 else LayerKind.CONV
    return LayerSpec(
        "product", kind, product.groups * product.terms, product.groups * product.columns,
        conv_groups=product.groups, in_size=size, out_size=size, has_weight=False,
    )  # fmt: skip


def _besides(contractions: list[Contraction], layer: LayerSpec) -> list[Contraction]:
    """What a module of a known type computes besides its own product, the first that writes as many channels."""
    if layer.kind in (LayerKind.CONV, LayerKind.LINEAR):
        for i, contraction in enumerate(contractions):
            if isinstance(contraction, Convolution) or (
                isinstance(contraction, Product) and contraction.columns == layer.out_channels
            ):
                return contractions[:i] + contractions[i + 1 :]
    return contractions


@contextmanager
def _hooked(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keep the recorder's stack of running modules, and tell it of every call of a known layer."""

    flow = recorder.flow

    def enter(module: nn.Module, _: Any) -> None:
        for contraction in recorder.log.take():
            recorder.contracted(contraction, [])
        recorder.stack.append(module)
        if flow is not None:
            entered(flow, module)

    def leave(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        inside = recorder.log.take() if _counts_itself(module) else []
        recorder.stack.pop()
        operands = [*tensors_in(inputs), *tensors_in(kwargs.values())]
        if flow is not None:
            left(flow, module, recorder.names[id(module)], operands, output)
        result = next(output_tensors(output), None)
        if result is None or not operands:
            return
        before = len(recorder.observation.layers)
        recorder.returned(module, operands[0], result, inside)
        if len(recorder.observation.layers) > before:
            recorder.maps.wrote(result, operands[0])

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def observe(model: nn.Module, batch: Batch, flow: Flow | None = None) -> Observation:
    """Run ``model`` on one sample and return its layers; what could not be counted is in ``skipped``.

    With ``flow`` the labels of channels are followed in the same run, and those of the outputs are blocked.
    """
    recorder = Recorder(model, flow)
    with unfused(), torch.no_grad(), ExitStack() as stack:
        if flow is not None:
            flow.where = lambda: recorder.here
            stack.enter_context(flow)
        stack.enter_context(_hooked(model, recorder))
        stack.enter_context(recorder.log)
        stack.enter_context(recorder)
        recorder.observation.output = batch.through(model)
    if flow is not None:
        flow.lose((tensor for _, tensor in tensors_of_tree(recorder.observation.output)), OUTPUT)
    recorder.add_open_products()
    observation = recorder.observation
    for key, name in recorder.parameters.items():
        if key not in recorder.owned and recorder.tensors[name].numel():
            is_read = flow is not None and key in flow.uses  # by code, as the bias of a layer that it does not call
            recorder._parameter(name, recorder.tensors[name], Stored.ALL if is_read else Stored.NOTHING)
            if not is_read:
                observation.skipped.append(Skipped(name, UNUSED))
    return observation
