"""Follow what layers wrote through the operations without weights: additions, activations, pooling, copies.

An operation belongs to the layer that wrote the map it changes, of two maps to the one that ran last; on a
concatenation, to each of the layers in its share. What only looks at a map in another shape or order moves nothing:
views, whose result lies in the same memory, and reshapes, which copy or not as widths and the runtime's layout have it.
The products of attention belong to its layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from amcsearch.core import LayerKind, LayerSpec, MapOp, MapStep

__all__ = ["PRODUCTS", "MapFollower"]

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
    """Knows of each tensor which layers wrote it, and adds the steps to ``layers``."""

    def __init__(self, layers: list[LayerSpec]) -> None:
        self._layers = layers
        self._parts: dict[int, tuple[Tensor, _Parts]] = {}  # tensors are held, or their ids would be used again

    def wrote(self, result: object, operand: Tensor | None = None) -> None:
        """The last layer of ``layers`` has written ``result``, from ``operand``."""
        layer = self._layers[-1]
        if layer.kind in _PASSING and operand is not None:
            self._keep(result, self._of(operand))
        elif isinstance(result, Tensor):
            self._keep(result, {len(self._layers) - 1: result.numel() // layer.out_channels})

    def saw(self, name: str, operands: list[Tensor], result: object) -> None:
        """A function outside the layers has run."""
        known = [tensor for tensor in operands if self._of(tensor)]
        results = [one for one in (result if isinstance(result, tuple | list) else [result]) if isinstance(one, Tensor)]
        if not known or not results or name in _OF_LAYERS:
            return
        own = max(known, key=lambda tensor: max(self._of(tensor)))
        op = _OPS.get(name.strip("_"))
        if name in _CONCATENATIONS:
            for tensor in known:
                self._step(MapOp.OTHER, tensor, [], tensor)
            self._keep(results[0], {layer: n for tensor in known for layer, n in self._of(tensor).items()})
            return
        if op is None and name not in _RESHAPES and _storage(results[0]) != _storage(own):
            op = MapOp.OTHER
        for one in results:
            if op is not None and one.is_floating_point():
                self._step(op, own, [tensor for tensor in known if tensor is not own], one)
            self._keep(one, self._shares(own, one))

    def _of(self, tensor: Tensor) -> _Parts:
        return self._parts[id(tensor)][1] if id(tensor) in self._parts else {}

    def _keep(self, tensor: Any, parts: _Parts) -> None:
        if isinstance(tensor, Tensor):
            self._parts[id(tensor)] = (tensor, parts)

    def _shares(self, own: Tensor, other: Tensor) -> _Parts:
        """Positions of a map that goes with the channels of ``own``, by layer."""
        return {layer: n * other.numel() // own.numel() for layer, n in self._of(own).items()}

    def _step(self, op: MapOp, own: Tensor, beside: list[Tensor], result: Tensor) -> None:
        read = [self._shares(own, tensor) for tensor in (own, *beside)]
        for layer, writes in self._shares(own, result).items():
            step = MapStep(op, tuple(shares[layer] for shares in read), writes)
            spec = self._layers[layer]
            self._layers[layer] = replace(spec, steps=(*spec.steps, step))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
