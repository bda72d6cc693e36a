"""What a training-time method has to reach, measured while it trains and met exactly afterwards.

Channels: a share of units (channels or heads), or a cost priced on the device. Single weights: a share of weights, or
MACs of the weights that are left. While gates are soft, the cost of the expected widths is their cost on the grid plus
slopes to the neighbouring widths, so that any cost that can be priced has a gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import BadInputError, PolicySpace, PruningPolicy
from amcsearch.costs.compute import macs
from amcsearch.graph.slices import Trace
from amcsearch.methods.weight_choice import keep_overall, keep_top, n_kept
from amcsearch.methods.weights import layer_of
from amcsearch.pipeline.device import Device
from amcsearch.search.ladder import global_ladder

__all__ = ["UnitTarget", "WeightTarget"]


@dataclass(frozen=True)
class UnitTarget:
    """Keep the share ``goal`` of the units, or of the dense network's ``cost``."""

    trace: Trace
    device: Device
    cost: str | None
    goal: float

    def share(self, densities: Mapping[str, Tensor]) -> Tensor:
        """Share expected to stay, a scalar, of open probabilities (n_units,) a group."""
        groups = self.trace.network.groups
        open_units = torch.stack([densities[group.name].sum() for group in groups]).double()  # (G,)
        if self.cost is None:
            return open_units.sum() / sum(group.channels // group.unit for group in groups)
        kept = open_units * torch.tensor([group.unit for group in groups], device=open_units.device)
        base, value, slopes = self._linearised(kept.detach().cpu().numpy())
        offset = kept - torch.from_numpy(base).to(kept.device)
        return value + (torch.from_numpy(slopes).to(kept.device) * offset).sum()

    def measured(self, policy: PruningPolicy) -> float:
        """Share that a policy really keeps."""
        kept = self.trace.network.kept_array(policy)[None, :]
        return float(self._shares(kept)[0])

    def cut(self, scores: Mapping[str, Tensor]) -> tuple[PruningPolicy, dict[str, NDArray[np.int64]]]:
        """Remove blocks of units on the device's grid, lowest mean score first, until the goal is met.

        Returns the policy, and the channels that each group keeps. The last block removed is the one that was needed.

        Raises:
            BadInputError: the goal lies beyond ``search.max_pruning_ratio``.
        """
        by_group = {name: value.double().cpu().numpy() for name, value in scores.items()}
        rows = global_ladder(self.device.space, by_group)
        within = self._shares(rows) <= self.goal + 1e-9
        if within.any():
            row = rows[int(np.argmax(within))]
        elif self.cost is not None:
            row = self.device.feasible.repair(rows[-1])
        else:
            raise BadInputError(
                f"sparsify.target.sparsity = {1.0 - self.goal:.6g}: every group at search.max_pruning_ratio still "
                f"keeps {self._shares(rows[-1:])[0]:.4f} of the units; raise the ratio"
            )
        kept = {}
        for group, n_keep in zip(self.trace.network.groups, row, strict=True):
            best = keep_top(scores[group.name], int(n_keep) // group.unit).cpu().numpy()
            kept[group.name] = np.sort(self.trace.units[group.name][best].ravel())
        return self.trace.network.policy(row), kept

    def _shares(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.cost is not None:
            price: NDArray[np.float64] = self.device.grid.price(rows)[self.cost] / self.device.dense[self.cost]
            return price
        units = np.array([group.unit for group in self.trace.network.groups])
        shares: NDArray[np.float64] = (rows // units).sum(1) / (self.device.space.dense // units).sum()
        return shares

    def _linearised(self, kept: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """Return the grid point nearest to widths (G,), its share, and slopes to its neighbours (G,)."""
        choices = self.device.space.choices
        places = [int(np.abs(c - k).argmin()) for c, k in zip(choices, kept, strict=True)]
        base = np.array([c[i] for c, i in zip(choices, places, strict=True)])
        rows = np.repeat(base[None, :], 2 * len(base) + 1, axis=0)
        for g, (c, i) in enumerate(zip(choices, places, strict=True)):
            rows[1 + 2 * g, g], rows[2 + 2 * g, g] = c[max(i - 1, 0)], c[min(i + 1, len(c) - 1)]
        shares = self._shares(rows)
        low, high = rows[1::2].diagonal(), rows[2::2].diagonal()
        slopes = (shares[2::2] - shares[1::2]) / np.maximum(high - low, 1)
        return base.astype(np.float64), float(shares[0]), slopes


@dataclass(frozen=True)
class WeightTarget:
    """Keep the share ``goal`` of the weights in ``shapes`` (tensor name → shape), or of the network's MACs.

    ``space`` is the device's grid, for the policy that the densities are turned into.

    Raises:
        BadInputError: a cost that zeros in dense tensors do not lower.
    """

    trace: Trace
    space: PolicySpace
    shapes: Mapping[str, tuple[int, ...]]
    cost: str | None
    goal: float

    def __post_init__(self) -> None:
        if self.cost not in (None, "macs"):
            raise BadInputError(
                f"sparsify.target.{self.cost}: single weights are counted by sparsity or macs, dense kernels do not "
                f"skip them; use one of these, or a method that closes channels"
            )

    @property
    def count(self) -> int:
        """Weights in all."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def share(self, densities: Mapping[str, Tensor]) -> Tensor:
        """Share that stays, a scalar, of densities by tensor."""
        prices, fixed = self._prices()
        kept = torch.stack([densities[name].double() * price for name, price in prices.items()]).sum()
        return (kept + fixed) / (sum(prices.values()) + fixed)

    def measured(self, masks: Mapping[str, Tensor]) -> float:
        """Share that masks really keep."""
        return float(self.share({name: mask.double().mean() for name, mask in masks.items()}))

    def cut(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the best weights: exact to one weight.

        Raises:
            BadInputError: the goal is less than what cannot be removed.
        """
        if self.cost is None:
            return keep_overall(scores, n_kept(self.count, 1.0 - self.goal))
        prices, fixed = self._prices()
        left = self.goal * (sum(prices.values()) + fixed) - fixed
        order = torch.cat([value.flatten().double() for value in scores.values()]).argsort(descending=True, stable=True)
        each = [torch.full((value.numel(),), prices[name] / value.numel()) for name, value in scores.items()]
        spent = torch.cat(each).double()[order.cpu()].cumsum(0)
        n_keep = int((spent <= left * (1.0 + 1e-9)).sum())
        if n_keep < len(scores):
            raise BadInputError(
                f"sparsify.target.macs: {fixed:.6g} MACs of the network are no weight's that can go; raise the target"
            )
        return keep_overall(scores, n_keep)

    def _prices(self) -> tuple[dict[str, float], float]:
        """Return what each tensor costs whole, and what the rest of the network costs."""
        if self.cost is None:
            return {name: float(np.prod(shape)) for name, shape in self.shapes.items()}, 0.0
        layers, index = self.trace.network.layers, self.trace.network.layer_index
        prices = {name: float(macs(layers[index[layer_of(name)]])) for name in self.shapes}
        return prices, sum(map(macs, layers)) - sum(prices.values())
