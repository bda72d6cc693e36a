"""Weights made on the device: a kit carries shapes, not numbers.

Speed does not depend on the numbers as long as activations stay normal: denormal numbers cost up to 50 times as much
(onnxruntime issue 6865). So weights are normal with variance 2 / fan-in, which keeps the size of activations from layer
to layer (He et al. 2015, arXiv 1502.01852). We depart from it in that a block of random numbers is repeated.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.protobuf import tensor, weights_message

__all__ = ["DATA_TYPES", "WeightSpec", "weight_bytes", "with_weights"]

DATA_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10, "float64": 11, "bfloat16": 16}
"""Number of each type in ONNX's TensorProto.DataType."""
ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "float16": 2, "float64": 8, "bfloat16": 2}
INTEGERS = {"uint8": (64, 192), "int8": (-64, 64), "int32": (-64, 64)}
BLOCK = 4099  # numbers; a prime, so that no row of a matrix is a shifted copy of its neighbour


class WeightSpec(NamedTuple):
    """An initializer that travels without its numbers; ``scale`` is their standard deviation, unused for integers."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    scale: float

    @property
    def items(self) -> int:
        """How many numbers."""
        return int(np.prod(self.dims, dtype=np.int64))


def weight_bytes(weights: Sequence[WeightSpec]) -> int:
    """Bytes of these weights in memory."""
    return sum(weight.items * ITEM_BYTES[weight.dtype] for weight in weights)


def _block(spec: WeightSpec, rng: np.random.Generator) -> bytes:
    if spec.dtype in INTEGERS:
        low, high = INTEGERS[spec.dtype]
        return rng.integers(low, high, BLOCK).astype(spec.dtype).tobytes()
    values = spec.scale * rng.standard_normal(BLOCK)
    if spec.dtype == "bfloat16":  # the upper half of a float32; numpy has no such type
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(np.dtype(spec.dtype).newbyteorder("<")).tobytes()


def _raw(spec: WeightSpec, rng: np.random.Generator) -> bytes:
    block, wanted = _block(spec, rng), weight_bytes([spec])
    return (block * (wanted // len(block) + 1))[:wanted]


def with_weights(skeleton: bytes, weights: Sequence[WeightSpec], seed: int = 0) -> bytes:
    """Append weights to a serialised model that lacks them; equal arguments give equal bytes.

    Raises:
        DeviceError: a weight of a type that is not in ``DATA_TYPES``.
    """
    if not weights:
        return skeleton
    unknown = next((spec for spec in weights if spec.dtype not in DATA_TYPES), None)
    if unknown is not None:
        raise DeviceError(f"weight {unknown.name} has type {unknown.dtype}; known are {', '.join(DATA_TYPES)}")
    made = [
        tensor(spec.name, spec.dims, DATA_TYPES[spec.dtype], _raw(spec, np.random.default_rng((seed, i))))
        for i, spec in enumerate(weights)
    ]
    return skeleton + weights_message(made)
