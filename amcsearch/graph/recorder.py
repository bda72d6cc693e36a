"""Listen to a running module: its layers in order of execution, attention, and parameters used by plain code."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Size, Tensor, nn
from torch.overrides import TorchFunctionMode

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.graph.layer_types import layer_type, plane
from amcsearch.graph.map_steps import PRODUCTS, MapFollower
from amcsearch.graph.slices import Skipped

__all__ = ["AttentionCall", "Observation", "Recorder", "is_unknown", "loose_dim", "tensors_in"]


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
        self.seen = Observation()
        self.maps = MapFollower(self.seen.layers)
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

    def own(self, parameter: object) -> bool:
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
            before = len(self.seen.layers)
            if name == "linear" and id(operands[1]) in self.parameters:
                self._functional_linear(operands, result)
            for tensor in operands:
                if id(tensor) in self.loose and self.own(tensor):
                    self._parameter(self.loose[id(tensor)], tensor)
            self._product(name, operands, result)
            if any(layer.kind is not LayerKind.PARAMETER for layer in self.seen.layers[before:]):
                self.maps.wrote(result)
            else:
                self.maps.saw(name, operands, result)
        return result

    def _functional_linear(self, operands: list[Tensor], result: Tensor) -> None:
        name = self.parameters[id(operands[1])]
        has_weight, has_bias = self.own(operands[1]), len(operands) > 2 and self.own(operands[2])
        spec = LayerSpec(
            name, LayerKind.LINEAR, operands[1].shape[1], operands[1].shape[0], in_size=plane(operands[0].shape[1:-1]),
            out_size=plane(result.shape[1:-1]), has_weight=has_weight, has_bias=has_bias,
        )  # fmt: skip
        self.seen.add(spec, name)
        self.multiplied.append(name)
        self.seen.skipped.append(
            Skipped(name, "used as a weight by plain code (F.linear), not by a module: left alone")
        )

    def _parameter(self, name: str, tensor: Tensor) -> None:
        width = tensor.shape[loose_dim(tensor)] if tensor.ndim else 1
        self.seen.add(LayerSpec(name, LayerKind.PARAMETER, max(tensor.numel() // width, 1), width), name)

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
            self.seen.skipped.append(Skipped(self.here, "an einsum is not counted: write it as matmul or as a layer"))

    def _attention(self, query: Size, keys: int, value: Size) -> None:
        lead = 1
        for size in query[:-2]:
            lead *= size
        heads, width = lead, value[-1]
        spec = LayerSpec(
            f"{self.here}.attention".lstrip("."), LayerKind.ATTENTION, heads * width, heads * width, conv_groups=heads,
            in_size=(int(keys), 1), out_size=(int(query[-2]), 1), has_weight=False,
        )  # fmt: skip
        name = self.seen.add(spec, self.here)
        if query[-1] != width:
            self.seen.skipped.append(
                Skipped(name, f"keys of width {query[-1]} and values of width {width}: MACs guessed")
            )
        self.seen.attentions.append(AttentionCall(name, self.here, heads, int(width), len(self.seen.layers) - 1))

    def called(self, module: nn.Module, x: Size, y: Size) -> None:
        """Record one call of a known layer."""
        kind = layer_type(module)
        assert kind is not None
        name = self.names[id(module)] or type(module).__name__.lower()
        spec = kind.spec(name, module, x, y)
        has_weight = self.own(getattr(module, "weight", None)) and spec.has_weight
        has_bias = self.own(getattr(module, "bias", None)) and spec.has_bias
        self.seen.add(replace(spec, has_weight=has_weight, has_bias=has_bias), self.names[id(module)])

    def packed_attention(self, module: nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> None:
        """Record nn.MultiheadAttention, which runs no child module, as the three layers it computes."""
        name, width, first = self.names[id(module)], module.embed_dim, 1 if module.batch_first else 0
        queries, keys = inputs[0].shape[first], inputs[1].shape[first]
        if module.in_proj_weight is None or inputs[0].ndim != 3:
            self.seen.skipped.append(
                Skipped(name, "nn.MultiheadAttention with other key or value widths: MACs not counted")
            )
            return
        tokens = (queries, 1)
        has_weight, has_bias = self.own(module.in_proj_weight), self.own(module.in_proj_bias)
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
        self.seen.add(spec, f"{name}.in_proj")
        core = LayerSpec(
            f"{name}.attention", LayerKind.ATTENTION, width, width, conv_groups=module.num_heads, in_size=(keys, 1),
            out_size=(queries, 1), has_weight=False,
        )  # fmt: skip
        self.seen.add(core, name)
        has_weight, has_bias = self.own(module.out_proj.weight), self.own(module.out_proj.bias)
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
        self.seen.add(spec, f"{name}.out_proj")
        reason = "nn.MultiheadAttention packs q, k and v in one tensor: its heads and its width are left alone"
        self.seen.skipped.append(Skipped(name, reason))


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
