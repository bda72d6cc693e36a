"""The contract of every cost: a number for each layer, from its shapes alone."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec, MomentBytes

__all__ = ["BatchedCostModel", "CostModel", "JointCost", "PeakCost", "layer_amounts", "layer_costs"]


class CostModel(Protocol):
    """One cost of one inference; a network costs ``constant`` plus the sum of ``layer_cost`` over its layers.

    ``name`` is one of ``COST_NAMES``, which also fixes the unit, or any other name with its unit in it, such as
    ``activation_mib``. ``constant`` is what no layer carries
    (the overhead of a call). A model is a pure function: the same shapes always cost the same, so that
    ``CostGrid`` may ask once and remember.
    """

    @property
    def name(self) -> str:
        """Which cost this is, such as ``macs`` or ``activation_mib``."""
        ...

    @property
    def constant(self) -> float:
        """Cost that does not depend on any layer."""
        ...

    def layer_cost(self, layer: LayerSpec) -> float:
        """Cost of one layer; it may depend on every field but ``name``.

        Raises:
            BadInputError: the model knows nothing about such a layer; the message says how to teach it.
        """
        ...


@runtime_checkable
class JointCost(Protocol):
    """What a cost adds for all layers together, such as weights that do not fit into a cache.

    A function of sums over layers: still priced from per-layer tables, though it belongs to no single layer.
    """

    @property
    def has_joint(self) -> bool:
        """False where ``joint`` is 0 whatever the sums, so that nobody need gather them."""
        ...

    def layer_amounts(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What ``layer`` adds to the two sums at each of many widths (L,): (L, 2)."""
        ...

    def joint(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over layers (P, 2) → cost (P,), in the unit of the model."""
        ...


@runtime_checkable
class PeakCost(Protocol):
    """A cost that is a maximum over moments, not a sum over layers, such as the peak of what is live in memory.

    ``constant`` and ``layer_cost`` are 0; the price is the maximum over ``moments``.
    """

    @property
    def moments(self) -> MomentBytes:
        """What the cost is the maximum of, as polynomials in kept counts."""
        ...


@runtime_checkable
class BatchedCostModel(CostModel, Protocol):
    """A cost that prices many widths of one layer at once, where that is faster than one after another."""

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Costs (L,), each that of ``layer.resized(in_channels[l], out_channels[l])``.

        Raises:
            BadInputError: as ``layer_cost``.
        """
        ...


def layer_costs(
    model: CostModel, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Ask any model for ``layer`` at many widths (L,), at once where it can.

    A width may be 0, which no model sees: a layer that reads no channels costs what its bias does, one that writes none
    costs nothing.

    Raises:
        BadInputError: as ``CostModel.layer_cost``.
    """
    return _widths_asked(partial(_asked, model), layer, (in_channels, out_channels), ())


def layer_amounts(
    model: JointCost, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Ask a joint cost for the two sums of ``layer`` at many widths (L,): (L, 2); raises as ``layer_costs``."""
    return _widths_asked(model.layer_amounts, layer, (in_channels, out_channels), (2,))


_Ask = Callable[[LayerSpec, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def _widths_asked(
    ask: _Ask, layer: LayerSpec, widths: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Ask for widths (L,) of which some are 0: a layer that reads nothing is its bias, one that writes nothing is 0."""
    in_channels, out_channels = widths
    works, biased = (in_channels > 0) & (out_channels > 0), (in_channels == 0) & (out_channels > 0)
    if works.all():
        return ask(layer, in_channels, out_channels)
    values, bias = np.zeros((len(works), *shape)), layer.bias_alone()
    if works.any():
        values[works] = ask(layer, in_channels[works], out_channels[works])
    if bias is not None and biased.any():
        values[biased] = ask(bias, np.ones_like(out_channels[biased]), out_channels[biased])
    return values


def _asked(
    model: CostModel, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
) -> NDArray[np.float64]:
    if isinstance(model, BatchedCostModel):
        return model.layer_costs(layer, in_channels, out_channels)
    pairs = zip(in_channels.tolist(), out_channels.tolist(), strict=True)
    return np.array([model.layer_cost(layer.resized(i, o)) for i, o in pairs], dtype=np.float64)
