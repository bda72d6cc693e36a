"""Recorder of a running module: its layers in order of execution, attention, and operations without weights.

``observe`` runs a module once. An operation without weights (an addition, an activation, pooling, a copy) belongs to
the layer that wrote the map it changes. If it reads two maps, it belongs to the layer that ran last. After a
concatenation it belongs to each of the layers, in proportion to its channels. Views and reshapes count as no work: a
view's result lies in the same memory, and whether a reshape copies depends on the widths and on the runtime's layout.
The matrix products of attention belong to the attention layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Size, Tensor, nn
from torch.overrides import TorchFunctionMode

from amcsearch.core import LayerKind, LayerSpec, MapOp, MapStep
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.slices import Skipped
from amcsearch.graph.tracing.layer_types import layer_type, plane

__all__ = [
    "PRODUCTS",
    "AttentionCall",
    "MapFollower",
    "Observation",
    "Recorder",
    "is_unknown",
    "loose_dim",
    "observe",
    "tensors_in",
]

PRODUCTS: Final = frozenset({"matmul", "__matmul__", "bmm"})
_CONCATENATIONS: Final = frozenset({"cat", "concat", "concatenate"})
_OF_LAYERS: Final = PRODUCTS | {"einsum", "linear", "scaled_dot_product_attention", "multi_head_attention_forward"}
_RESHAPES: Final = frozenset({"reshape", "flatten", "contiguous", "unflatten"})
_NAMES: Final[Mapping[MapOp, tuple[str, ...]]] = {
    MapOp.ADD: ("add", "radd", "iadd"),
    # those that ONNX Runtime fuses; the smoother ones (GELU, SiLU) are kernels of their own
    MapOp.ACTIVATION: ("relu", "relu6", "hardtanh", "clamp", "clip", "sigmoid", "tanh", "leaky_relu", "hardsigmoid"),
    MapOp.POOL: (
        "max_pool1d",
        "max_pool2d",
        "avg_pool1d",
        "avg_pool2d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "mean",
        "amax",
    ),
}
_OPS: Final = {name: op for op, names in _NAMES.items() for name in names}
_PASSING: Final = frozenset({LayerKind.BATCH_NORM, LayerKind.PARAMETER})  # norms and PReLU: the runtime folds them

_Parts = dict[int, int]  # layer → positions a channel that are of it


class MapFollower:
    """Tracks which layers wrote each tensor, and adds the steps to ``layers``."""

    def __init__(self, layers: list[LayerSpec]) -> None:
        self._layers = layers
        self._parts: dict[int, tuple[Tensor, _Parts]] = {}  # tensors are held, or their ids would be used again

    def wrote(self, result: object, operand: Tensor | None = None) -> None:
        """Record that the last layer of ``layers`` wrote ``result`` from ``operand``."""
        layer = self._layers[-1]
        if layer.kind in _PASSING and operand is not None:
            self._keep(result, self._of(operand))
        elif isinstance(result, Tensor):
            self._keep(result, {len(self._layers) - 1: result.numel() // layer.out_channels})

    def saw(self, name: str, operands: list[Tensor], result: object) -> None:
        """Record a function that ran outside the layers."""
        known = [tensor for tensor in operands if self._of(tensor)]
        results = [
            output
            for output in (result if isinstance(result, tuple | list) else [result])
            if isinstance(output, Tensor)
        ]
        if not known or not results or name in _OF_LAYERS:
            return
        source = max(known, key=lambda tensor: max(self._of(tensor)))
        op = _OPS.get(name.strip("_"))
        if name in _CONCATENATIONS:
            for tensor in known:
                self._step(MapOp.OTHER, tensor, [], tensor)
            self._keep(results[0], {layer: n for tensor in known for layer, n in self._of(tensor).items()})
            return
        if op is None and name not in _RESHAPES and _storage(results[0]) != _storage(source):
            op = MapOp.OTHER
        for output in results:
            if op is not None and output.is_floating_point():
                self._step(op, source, [tensor for tensor in known if tensor is not source], output)
            self._keep(output, self._shares(source, output))

    def _of(self, tensor: Tensor) -> _Parts:
        return self._parts[id(tensor)][1] if id(tensor) in self._parts else {}

    def _keep(self, tensor: Any, parts: _Parts) -> None:
        if isinstance(tensor, Tensor):
            self._parts[id(tensor)] = (tensor, parts)

    def _shares(self, source: Tensor, other: Tensor) -> _Parts:
        """Positions of a map that goes with the channels of ``own``, by layer."""
        return {layer: n * other.numel() // source.numel() for layer, n in self._of(source).items()}

    def _step(self, op: MapOp, source: Tensor, beside: list[Tensor], result: Tensor) -> None:
        read = [self._shares(source, tensor) for tensor in (source, *beside)]
        for layer, writes in self._shares(source, result).items():
            step = MapStep(op, tuple(shares[layer] for shares in read), writes)
            spec = self._layers[layer]
            self._layers[layer] = replace(spec, steps=(*spec.steps, step))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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

    def add(self, spec: LayerSpec, module: str) -> str:
        """Append a layer under the first free name ``name``, ``name#2``, … and return it."""
        name, n = spec.name, 1
        while name in self.modules:
            n += 1
            name = f"{spec.name}#{n}"
        self.layers.append(replace(spec, name=name))
        self.modules[name] = module
        return name


class Recorder(TorchFunctionMode):
    """Sees every torch function: finds attention, and parameters used outside any known layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.observation = Observation()
        self.maps = MapFollower(self.observation.layers)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.owned: set[int] = set()  # parameters already counted
        known = [m for m in model.modules() if layer_type(m) is not None or isinstance(m, nn.MultiheadAttention)]
        inside = {id(p) for m in known for p in m.parameters()}
        self.parameters = {id(p): name for name, p in model.named_parameters()}
        self.loose = {key: name for key, name in self.parameters.items() if key not in inside}
        self.multiplied: list[str] = []  # parameters that plain code used as a weight
        self.scores: list[tuple[str, tuple[int, ...], bool]] = []  # (module, shape, softmax seen) of open products

    @property
    def here(self) -> str:
        """Name of the innermost running module."""
        return self.names[id(self.stack[-1])] if self.stack else ""

    def claim(self, parameter: object) -> bool:
        """Claim a parameter; false for None and for one counted before."""
        fresh = isinstance(parameter, Tensor) and id(parameter) not in self.owned
        if fresh:
            self.owned.add(id(parameter))
        return fresh

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.stack or layer_type(self.stack[-1]) is None:
            name = getattr(func, "__name__", "")
            operands = [*tensors_in(args), *tensors_in((kwargs or {}).values())]
            before = len(self.observation.layers)
            if name == "linear" and id(operands[1]) in self.parameters:
                self._functional_linear(operands, result)
            for tensor in operands:
                if id(tensor) in self.loose and self.claim(tensor):
                    self._parameter(self.loose[id(tensor)], tensor)
            self._product(name, operands, result)
            if any(layer.kind is not LayerKind.PARAMETER for layer in self.observation.layers[before:]):
                self.maps.wrote(result)
            else:
                self.maps.saw(name, operands, result)
        return result

    def _functional_linear(self, operands: list[Tensor], result: Tensor) -> None:
        name = self.parameters[id(operands[1])]
        has_weight, has_bias = self.claim(operands[1]), len(operands) > 2 and self.claim(operands[2])
        spec = LayerSpec(
            name, LayerKind.LINEAR, operands[1].shape[1], operands[1].shape[0], in_size=plane(operands[0].shape[1:-1]),
            out_size=plane(result.shape[1:-1]), has_weight=has_weight, has_bias=has_bias,
        )  # fmt: skip
        self.observation.add(spec, name)
        self.multiplied.append(name)
        self.observation.skipped.append(
            Skipped(name, "used as a weight by plain code (F.linear), not by a module: left alone")
        )

    def _parameter(self, name: str, tensor: Tensor) -> None:
        width = tensor.shape[loose_dim(tensor)] if tensor.ndim else 1
        self.observation.add(LayerSpec(name, LayerKind.PARAMETER, max(tensor.numel() // width, 1), width), name)

    def _product(self, name: str, operands: list[Tensor], result: Any) -> None:
        """Follow QKᵀ → softmax → ·V, written out or fused."""
        if name == "scaled_dot_product_attention":
            self._attention(operands[0].shape, operands[1].shape[-2], operands[2].shape)
        elif name == "softmax" and isinstance(result, Tensor):
            self.scores = [(m, s, done or s == tuple(result.shape)) for m, s, done in self.scores]
        elif name in PRODUCTS and all(t.ndim > 2 and id(t) not in self.parameters for t in operands[:2]):
            left, right = operands[0].shape, operands[1].shape
            for entry in self.scores:
                if entry == (self.here, tuple(left), True):
                    self.scores.remove(entry)
                    self._attention(Size((*left[:-1], right[-1])), left[-1], right)
                    return
            self.scores.append((self.here, tuple(result.shape), False))
        elif name == "einsum":
            self.observation.skipped.append(
                Skipped(self.here, "an einsum is not counted: write it as matmul or as a layer")
            )

    def _attention(self, query: Size, keys: int, value: Size) -> None:
        lead = 1
        for size in query[:-2]:
            lead *= size
        heads, width = lead, value[-1]
        spec = LayerSpec(
            f"{self.here}.attention".lstrip("."), LayerKind.ATTENTION, heads * width, heads * width, conv_groups=heads,
            in_size=(int(keys), 1), out_size=(int(query[-2]), 1), has_weight=False,
        )  # fmt: skip
        name = self.observation.add(spec, self.here)
        if query[-1] != width:
            self.observation.skipped.append(
                Skipped(name, f"keys of width {query[-1]} and values of width {width}: MACs guessed")
            )
        self.observation.attentions.append(
            AttentionCall(name, self.here, heads, int(width), len(self.observation.layers) - 1)
        )

    def called(self, module: nn.Module, x: Size, y: Size) -> None:
        """Record one call of a known layer."""
        kind = layer_type(module)
        assert kind is not None
        name = self.names[id(module)] or type(module).__name__.lower()
        spec = kind.spec(name, module, x, y)
        has_weight = self.claim(getattr(module, "weight", None)) and spec.has_weight
        has_bias = self.claim(getattr(module, "bias", None)) and spec.has_bias
        self.observation.add(replace(spec, has_weight=has_weight, has_bias=has_bias), self.names[id(module)])

    def packed_attention(self, module: nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> None:
        """Record nn.MultiheadAttention, which runs no child module, as the three layers it computes."""
        name, width, first = self.names[id(module)], module.embed_dim, 1 if module.batch_first else 0
        queries, keys = inputs[0].shape[first], inputs[1].shape[first]
        if module.in_proj_weight is None or inputs[0].ndim != 3:
            self.observation.skipped.append(
                Skipped(name, "nn.MultiheadAttention with other key or value widths: MACs not counted")
            )
            return
        tokens = (queries, 1)
        has_weight, has_bias = self.claim(module.in_proj_weight), self.claim(module.in_proj_bias)
        spec = LayerSpec(
            f"{name}.in_proj",
            LayerKind.LINEAR,
            width,
            3 * width,
            in_size=tokens,
            out_size=tokens,
            has_weight=has_weight,
            has_bias=has_bias,
        )
        self.observation.add(spec, f"{name}.in_proj")
        core = LayerSpec(
            f"{name}.attention", LayerKind.ATTENTION, width, width, conv_groups=module.num_heads, in_size=(keys, 1),
            out_size=(queries, 1), has_weight=False,
        )  # fmt: skip
        self.observation.add(core, name)
        has_weight, has_bias = self.claim(module.out_proj.weight), self.claim(module.out_proj.bias)
        spec = LayerSpec(
            f"{name}.out_proj",
            LayerKind.LINEAR,
            width,
            width,
            in_size=tokens,
            out_size=tokens,
            has_weight=has_weight,
            has_bias=has_bias,
        )
        self.observation.add(spec, f"{name}.out_proj")
        reason = "nn.MultiheadAttention packs q, k and v in one tensor: its heads and its width are left alone"
        self.observation.skipped.append(Skipped(name, reason))


def loose_dim(tensor: Tensor) -> int:
    """Channel dimension of a parameter outside any layer: the last that is longer than one (0 if none is)."""
    return max((i for i, size in enumerate(tensor.shape) if size > 1), default=0)


def is_unknown(module: nn.Module) -> bool:
    """Whether a module of no known type holds weight matrices of its own."""
    if layer_type(module) is not None or isinstance(module, nn.MultiheadAttention):
        return False
    return any("weight" in name and p.ndim > 1 for name, p in module.named_parameters(recurse=False))


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among some arguments, and those inside tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (v for v in value if isinstance(v, Tensor))


@contextmanager
def _hooked(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keep the recorder's stack of running modules, and tell it of every call of a known layer."""

    def enter(module: nn.Module, _: Any) -> None:
        recorder.stack.append(module)

    def leave(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        recorder.stack.pop()
        operands = [*tensors_in(inputs), *tensors_in(kwargs.values())]
        result = next(output_tensors(output), None)
        if result is None or not operands:
            return
        before = len(recorder.observation.layers)
        if isinstance(module, nn.MultiheadAttention):
            keys = operands if len(operands) > 1 else operands * 2
            recorder.packed_attention(module, tuple(keys))
        elif layer_type(module) is not None:
            recorder.called(module, operands[0].shape, result.shape)
        if len(recorder.observation.layers) > before:
            recorder.maps.wrote(result, operands[0])

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def observe(model: nn.Module, example: Tensor) -> Observation:
    """Run ``model`` on ``example`` (1, …) and return its layers; what could not be counted is in ``skipped``.

    The module should be in eval mode with gradients on, or torch may take a fused path that calls no child.
    """
    recorder = Recorder(model)
    with _hooked(model, recorder), recorder, torch.enable_grad():
        model(example)
    observation = recorder.observation
    for here, shape, _ in recorder.scores:
        observation.skipped.append(Skipped(here, f"a product of two activations of shape {shape} is not counted"))
    for path, module in model.named_modules():
        if is_unknown(module) and path not in {name.rpartition(".")[0] for name in recorder.multiplied}:
            reason = f"layers of type {type(module).__name__} are not known: MACs not counted, widths left alone"
            observation.skipped.append(Skipped(path, reason))
    for key, name in recorder.parameters.items():
        if key not in recorder.owned:
            tensor = dict(model.named_parameters())[name]
            recorder._parameter(name, tensor)
            observation.skipped.append(Skipped(name, "a parameter that this example never used: counted, left alone"))
    return observation
