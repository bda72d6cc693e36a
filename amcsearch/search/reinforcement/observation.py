"""Observation of one channel group: AMC's features, and how much of every limit is still free.

AMC (He et al., 2018, arXiv 1802.03494, §3.1) describes a layer by eleven numbers, scaled to [0, 1] over all layers. A
channel group here has several layers, so: shapes are those of the group's first producer (the first layer, in order
of execution, whose output the group narrows); MACs, latency and energy are sums over all layers the group touches,
as producer or consumer. The budget's own features are added: the group's share of latency and energy, and how much
of each limit is still free.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import FIRST_COSTS, LayerKind, LayerSpec, NetworkSpec, Side
from amcsearch.search.budget import FeasibleSet

__all__ = ["FEATURES", "Observer"]

_STATIC: Final = (
    *("index", "type", "in_channels", "out_channels", "height", "width", "stride", "kernel"),
    *("macs", "latency_share", "energy_share"),
)
_SUMMED: Final = ("macs", "latency_ms", "energy_mj")  # the costs behind the last three
_DYNAMIC: Final = ("reduced", "rest", "previous_action", *(f"remaining_{name}" for name in FIRST_COSTS))
_KINDS: Final = tuple(LayerKind)

FEATURES: Final = (*_STATIC, *_DYNAMIC)
"""Names of the observation's entries, each in [0, 1].

- ``index`` … ``energy_share``: fixed for a group, min-max scaled over the groups (0 where all are equal, and for a
  cost that has no model).
- ``reduced``: share of the dense MACs that the decisions so far remove.
- ``rest``: share of the dense MACs in layers that groups after this one still touch.
- ``previous_action``: executed pruning ratio of the group before (0 at the first).
- ``remaining_<cost>``: share of the limit that stays free if all undecided groups take their cheapest known
  completion; 1 for a cost without a limit.
"""


class Observer:
    """Computes observations of one network under one budget; without state, so episodes may interleave."""

    def __init__(self, network: NetworkSpec, feasible: FeasibleSet) -> None:
        self._feasible = feasible
        self._dense = feasible.space.dense
        lost_in, lost_out = network.removal_matrices
        touched = (lost_in + lost_out) > 0  # (G, L)
        prices = feasible.grid.price_layers(self._dense[None, :])
        per_layer = {name: price[0] for name, price in prices.items()}  # name -> (L,)
        nothing = np.zeros(len(network.layers))
        shapes = np.array([_shape(g, _producer(network, g)) for g in range(len(network.groups))])
        sums = np.array([touched @ per_layer.get(name, nothing) for name in _SUMMED]).T  # (G, 3)
        self._static = _min_max(np.concatenate([shapes, sums], axis=1))
        macs = per_layer.get("macs", nothing)
        later = np.array([touched[g + 1 :].any(axis=0) for g in range(len(touched))])  # (G, L)
        self._rest = (later @ macs) / max(float(macs.sum()), 1.0)

    def observe(self, prefix: NDArray[np.int64], previous_action: float) -> NDArray[np.float32]:
        """Features (F,) of the group after ``prefix`` (g,); once all are decided, of the last group.

        Args:
            prefix: kept counts of the groups decided so far.
            previous_action: executed pruning ratio of the last of them, 0 if there is none.
        """
        g = min(len(prefix), len(self._static) - 1)
        undecided = self._rest[g] if len(prefix) < len(self._static) else 0.0
        dynamic = [self._reduced(prefix), undecided, previous_action, *self._remaining(prefix)]
        features = np.concatenate([self._static[g], dynamic]).clip(0.0, 1.0)
        return np.asarray(features, dtype=np.float32)

    def episode(self, kept: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (G + 1, F) of the whole episode that decides kept counts (G,); the last row follows its end."""
        executed = [0.0, *(1.0 - kept / self._dense)]
        return np.stack([self.observe(kept[:g], ratio) for g, ratio in enumerate(executed)])

    def _reduced(self, prefix: NDArray[np.int64]) -> float:
        rows = np.stack([self._dense, np.concatenate([prefix, self._dense[len(prefix) :]])])
        macs = self._feasible.grid.price(rows).get("macs")
        return 0.0 if macs is None else float(1.0 - macs[1] / max(macs[0], 1.0))

    def _remaining(self, prefix: NDArray[np.int64]) -> list[float]:
        prices = self._feasible.grid.price(self._feasible.completion(prefix)[None, :])
        limits = self._feasible.budget.limits
        return [1.0 - float(prices[name][0]) / limits[name] if name in limits else 1.0 for name in FIRST_COSTS]


def _producer(network: NetworkSpec, g: int) -> LayerSpec:
    """First layer whose output group ``g`` narrows (its first layer of all, if it narrows only inputs)."""
    order = network.layer_index
    couplings = network.groups[g].couplings
    writes = [order[c.layer] for c in couplings if c.side is Side.OUT] or [order[c.layer] for c in couplings]
    return network.layers[min(writes)]


def _shape(g: int, layer: LayerSpec) -> list[float]:
    """Unscaled ``index`` … ``kernel``; a depthwise convolution is a type of its own, after all kinds."""
    kind = len(_KINDS) if layer.is_depthwise else _KINDS.index(layer.kind)
    height, width = layer.out_size
    return [g, kind, layer.in_channels, layer.out_channels, height, width, layer.stride[0], layer.kernel[0]]


def _min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale columns of (G, S) to [0, 1]; constant columns become 0."""
    low, high = values.min(axis=0), values.max(axis=0)
    return np.asarray((values - low) / np.where(high > low, high - low, 1.0))
