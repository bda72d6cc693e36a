"""Memory of the delivered file: bytes of its weights, and the peak of what is live while it runs.

    model_bytes = Σ_l bytes(weights of l)         peak_memory_bytes = max_m Σ_t bytes(t),   t: tensors live at moment m

The first is a sum over layers, as any cost. The second is a maximum over moments (operations in order of execution, see
``core.Execution``), and each moment is a sum of terms over few groups:

- pricing: all moments are polynomials in the kept counts, linear but where one tensor has two dimensions of channels.
  A batch of policies is one matrix product and a maximum. Moments that another exceeds in every term are left out;
- blocks that vanish: some terms count only while certain groups keep channels, for their tensors are not written
  otherwise. They never grow as groups shrink, so all else holds. The addition of a constant counts as an operation,
  also where the constant is 0 and the file does without;
- a limit on the maximum is the same limit on every moment, so feasibility is exact;
- the exact programme (``search.exact``) excludes every combination of choices that exceeds the limit at a moment, or
  has the maximum itself as its axis.

Weights in float32 take 4 bytes a number. In int8 those of convolutions and linear layers take 1, with a scale (4) and a
zero point (1) for each output channel, and their biases 4 with a scale (4); all else stays float32. A batch norm behind
a convolution is folded into it, and a head that shares its embedding's weight is stored beside it. Not counted:
parameters that the traced example never used (of a head for training only), which the file is without; the graph itself
(100 to 300 bytes for each operation), tables that are no parameters, and weights that the exporter stores once because
they happen to be equal.

A batch of N samples takes N times every tensor, also of the few that all samples share (a mask). Weights are not part
of the peak: add ``model_bytes`` where they lie in the same memory.

Maps take 4 bytes a number in float32 and 1 in int8; inputs and outputs keep their data type. In int8, operations that
the file leaves in float32 (softmax, layer norms) are counted as if they were integers.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, LayerSpec, MomentBytes, NetworkSpec, Stored
from amcsearch.costs.compute import params_at

__all__ = ["MAP_BYTES", "ModelBytes", "PeakMemory"]

MAP_BYTES: Final = {"float32": 4, "int8": 1}
"""Bytes of a number of a map, by data type of the delivered file."""
_FLOAT: Final = 4
_QUANTISED: Final = (LayerKind.CONV, LayerKind.LINEAR)
_NORM_VECTORS: Final = {Stored.ALL: 4, Stored.BIAS: 1, Stored.NOTHING: 0}
_SCALE: Final = 4
_ZERO: Final = 1


class ModelBytes:
    """Bytes of the delivered file's weights, as a cost.

    Raises:
        BadInputError: a data type that no file is delivered in.
    """

    name = "model_bytes"
    constant = 0.0

    def __init__(self, dtype: str = "float32") -> None:
        _check(dtype)
        self.dtype = dtype

    def layer_cost(self, layer: LayerSpec) -> float:
        """Bytes of one layer; every kind is known, so nothing is raised."""
        widths = np.array([layer.in_channels]), np.array([layer.out_channels])
        return float(self.layer_costs(layer, *widths)[0])

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Bytes of one layer at many widths."""
        if layer.kind is LayerKind.PARAMETER and layer.stored is Stored.NOTHING:
            return np.zeros(np.shape(out_channels))
        if layer.stored is Stored.COPY:
            layer = replace(layer, has_weight=True)
        numbers = params_at(layer, in_channels, out_channels)
        if layer.kind is LayerKind.BATCH_NORM and layer.has_weight:
            numbers = np.asarray(_NORM_VECTORS[layer.stored] * out_channels, dtype=np.float64)
        if self.dtype == "float32":
            return numbers * _FLOAT
        if layer.stored is Stored.BIAS:
            return numbers * (_FLOAT + _SCALE)
        if layer.kind not in _QUANTISED or not layer.has_weight:
            return numbers * _FLOAT
        biases = out_channels * layer.has_bias
        return (numbers - biases) + out_channels * (_SCALE + _ZERO) + biases * (_FLOAT + _SCALE)


class PeakMemory:
    """Peak bytes of the tensors that are live together in one inference, as a cost.

    It is no sum over layers: ``layer_cost`` is 0, and ``moments`` has what it is the maximum of.

    Args:
        network: with its order of execution, as ``trace`` returns it.
        dtype: of the delivered file.
        batch: samples of one inference.

    Raises:
        BadInputError: a data type that no file is delivered in, or a network whose order of execution is not known.
    """

    name = "peak_memory_bytes"
    constant = 0.0

    def __init__(self, network: NetworkSpec, dtype: str = "float32", batch: int = 1) -> None:
        _check(dtype)
        if not network.execution.moments:
            raise BadInputError("peak_memory_bytes: the network's order of execution is not known; trace the module")
        names = [group.name for group in network.groups]
        self._moments = network.execution.moment_bytes(names, MAP_BYTES[dtype], batch).largest()

    @property
    def moments(self) -> MomentBytes:
        """Live bytes of every moment that can be the largest."""
        return self._moments

    def layer_cost(self, layer: LayerSpec) -> float:
        """0 for every layer."""
        del layer
        return 0.0


def _check(dtype: str) -> None:
    if dtype not in MAP_BYTES:
        raise BadInputError(f"memory: dtype = {dtype!r}, must be one of {', '.join(MAP_BYTES)}")
