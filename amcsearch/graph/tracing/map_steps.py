"""Operations without weights, as steps of the layers whose maps they change.

An operation without weights (an addition, an activation, pooling, a copy) belongs to the layer that wrote the map it
changes. If it reads two maps, it belongs to the layer that ran last. After a concatenation it belongs to each of the
layers, in proportion to its channels. Views and reshapes count as no work: a view's result lies in the same memory, and
whether a reshape copies depends on the widths and on the runtime's layout. The matrix products of attention belong to
the attention layer.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from amcsearch.core import LayerKind, LayerSpec, MapOp, MapStep
from amcsearch.graph.outputs import tensors_in

__all__ = ["MapFollower"]

_CONCATENATIONS: Final = frozenset({"cat", "concat", "concatenate"})
_OF_LAYERS: Final = frozenset(
    {
        *("matmul", "__matmul__", "mm", "bmm", "baddbmm", "addmm", "einsum", "tensordot", "linear"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("scaled_dot_product_attention", "multi_head_attention_forward"),
    }
)
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
        """Record that the last layer of ``layers`` wrote ``result``, or its first tensor, from ``operand``."""
        layer = self._layers[-1]
        result = next(tensors_in([result]), None)
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
            joined: Counter[int] = Counter()  # slices of one layer come together again
            for tensor in known:
                joined.update(self._of(tensor))
            self._keep(results[0], dict(joined))
            return
        if op is None and name not in _RESHAPES and _storage(results[0]) != _storage(source):
            op = MapOp.OTHER
        for output in results:
            if op is not None and output.is_floating_point():
                self._step(op, source, [tensor for tensor in known if tensor is not source], output)
            self._keep(output, self._shares(source, output))

    def _of(self, tensor: Tensor) -> _Parts:
        """Positions a channel of a tensor, by the layer that wrote them; none of a tensor that no layer wrote."""
        return self._parts[id(tensor)][1] if id(tensor) in self._parts else {}

    def _keep(self, tensor: Any, parts: _Parts) -> None:
        """Note which layers wrote a tensor, which is held so that no other takes its id."""
        if isinstance(tensor, Tensor):
            self._parts[id(tensor)] = (tensor, parts)

    def _shares(self, source: Tensor, other: Tensor) -> _Parts:
        """Positions of ``other``, a map that goes with the channels of ``source``, by layer."""
        return {layer: n * other.numel() // source.numel() for layer, n in self._of(source).items() if source.numel()}

    def _step(self, op: MapOp, source: Tensor, beside: list[Tensor], result: Tensor) -> None:
        """Add an operation to the layers that wrote ``source``, each with its part of what is read and written."""
        read = [self._shares(source, tensor) for tensor in (source, *beside)]
        for layer, writes in self._shares(source, result).items():
            step = MapStep(op, tuple(shares[layer] for shares in read), writes)
            spec = self._layers[layer]
            self._layers[layer] = replace(spec, steps=(*spec.steps, step))


def _storage(tensor: Tensor) -> int:
    """Where the memory of a tensor begins: a view's is that of the tensor it looks at."""
    return tensor.untyped_storage().data_ptr()
