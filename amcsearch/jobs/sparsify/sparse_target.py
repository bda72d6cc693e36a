"""What a training-time method has to reach, measured while it trains and met exactly afterwards.

Channels: a share of units (channels or heads), or a cost priced on the device. Single weights: a share of weights, MACs
of the weights that are left, or the bytes that they take with the overhead of a sparse format. While gates are soft,
the cost of the expected widths is their cost on the grid plus slopes to the neighbouring widths, so that any cost that
can be priced has a gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import BadInputError, PolicySpace, PruningPolicy
from amcsearch.costs import StorageFormat, macs, params, stored_bits
from amcsearch.graph import Trace
from amcsearch.jobs.device import Device
from amcsearch.methods import keep_most, keep_overall, keep_top, layer_of, n_kept
from amcsearch.search import global_sequence

__all__ = ["UnitTarget", "WeightTarget"]

_TOLERANCE: Final = 1e-9  # the same share summed in another order is still the same share


@dataclass(frozen=True)
class UnitTarget:
    """Keep the share ``goal`` of the units, or of the dense network's ``cost``; masks are (n_units,) a group.

    Raises:
        BadInputError: the goal lies beyond ``search.max_pruning_ratio``.
    """

    trace: Trace
    device: Device
    cost: str | None
    goal: float

    def __post_init__(self) -> None:
        least = self._shares(self.device.space.floor[None, :])
        if self.cost is None and not self._within(least).all():
            raise BadInputError(
                f"sparsify.target.sparsity = {1.0 - self.goal:.6g}: every group at search.max_pruning_ratio still "
                f"keeps {least[0]:.4f} of the units; raise the ratio"
            )

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

    def measured(self, masks: Mapping[str, Tensor]) -> float:
        """Share that masks really keep."""
        kept = self.trace.network.kept_array(self.policy(masks))[None, :]
        return float(self._shares(kept)[0])

    def policy(self, masks: Mapping[str, Tensor]) -> PruningPolicy:
        """Channels that each group keeps under masks."""
        return PruningPolicy({g.name: int(masks[g.name].sum()) * g.unit for g in self.trace.network.groups})

    def cut(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Close blocks of units on the device's grid, lowest mean score first, until the goal is met.

        The last block closed is the one that was needed.
        """
        by_group = {name: value.double().cpu().numpy() for name, value in scores.items()}
        rows = global_sequence(self.device.space, by_group)
        within = self._within(self._shares(rows))
        row = rows[int(np.argmax(within))] if within.any() else self.device.feasible.repair(rows[-1])
        groups = zip(self.trace.network.groups, row, strict=True)
        return {group.name: keep_top(scores[group.name], int(n_keep) // group.unit) for group, n_keep in groups}

    def finish(self, masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut so that what ``masks`` close goes before anything that they leave open, by scores among both.

        Open units go where ``masks`` miss the goal, and closed ones return where they exceed it.
        """
        every = torch.cat([value.double() for value in scores.values()])
        below = 2.0 * float(every.max() - every.min()) or 1.0
        return self.cut({name: value.double() - below * ~masks[name] for name, value in scores.items()})

    def _within(self, shares: NDArray[np.float64]) -> NDArray[np.bool_]:
        return shares <= self.goal + _TOLERANCE

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
        nearest = [int(np.abs(c - k).argmin()) for c, k in zip(choices, kept, strict=True)]
        base = np.array([c[i] for c, i in zip(choices, nearest, strict=True)])
        rows = np.repeat(base[None, :], 2 * len(base) + 1, axis=0)
        for g, (c, i) in enumerate(zip(choices, nearest, strict=True)):
            rows[1 + 2 * g, g], rows[2 + 2 * g, g] = c[max(i - 1, 0)], c[min(i + 1, len(c) - 1)]
        shares = self._shares(rows)
        low, high = rows[1::2].diagonal(), rows[2::2].diagonal()
        slopes = (shares[2::2] - shares[1::2]) / np.maximum(high - low, 1)
        return base.astype(np.float64), float(shares[0]), slopes


@dataclass(frozen=True)
class WeightTarget:
    """Keep the share ``goal`` of the weights in ``shapes`` (tensor name → shape), or of the network's MACs or bytes.

    ``space`` is the device's grid, for the policy that the densities are turned into. For bytes, each tensor lies in
    the smaller of dense and ``storage``, as a matrix of ``shape[0]`` rows, in words of ``bits``; what is not in
    ``shapes`` is dense.

    Raises:
        BadInputError: a cost that zeros in dense tensors do not lower, or a goal below what one weight a tensor costs.
    """

    trace: Trace
    space: PolicySpace
    shapes: Mapping[str, tuple[int, ...]]
    cost: str | None
    goal: float
    storage: StorageFormat = StorageFormat.BITMAP
    bits: int = 32

    def __post_init__(self) -> None:
        if self.cost not in (None, "macs", "bytes"):
            raise BadInputError(
                f"sparsify.target.{self.cost}: single weights are counted by sparsity, macs or bytes, dense kernels do "
                f"not skip them; use one of these, or a method that closes channels"
            )
        least = self._share_at(dict.fromkeys(self.shapes, 1))
        if self.cost is not None and not self._within(least):
            how = f" in {self.storage} storage" if self.cost == "bytes" else ""
            raise BadInputError(
                f"sparsify.target.{self.cost} = {self.goal:.6g}x of dense: one weight a tensor and all that cannot go "
                f"take {least:.6g}x{how}; raise the target to more than that"
            )

    @property
    def count(self) -> int:
        """Weights in all."""
        return sum(map(prod, self.shapes.values()))

    def share(self, densities: Mapping[str, Tensor]) -> Tensor:
        """Share that stays, a scalar, of densities by tensor."""
        prices, fixed = self._prices()
        kept = torch.stack([self._share_of(name, densities[name].double()) * price for name, price in prices.items()])
        return (kept.sum() + fixed) / (sum(prices.values()) + fixed)

    def measured(self, masks: Mapping[str, Tensor]) -> float:
        """Share that masks really keep."""
        return float(self.share({name: mask.double().mean() for name, mask in masks.items()}))

    def cut(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the best weights: exact to one weight."""
        if self.cost is None:
            return keep_overall(scores, n_kept(self.count, 1.0 - self.goal))
        return keep_most(scores, lambda kept: self._within(self._share_at(kept)))

    def _share_at(self, kept: Mapping[str, int]) -> float:
        shares = {name: torch.tensor(n / prod(self.shapes[name]), dtype=torch.float64) for name, n in kept.items()}
        return float(self.share(shares))

    def _within(self, share: float) -> bool:
        return share <= self.goal + _TOLERANCE

    def _share_of(self, name: str, density: Tensor) -> Tensor:
        """Share of a dense tensor's cost that a density, a scalar, leaves.

        The slope of stored bytes is a weight's mean cost beyond the first: a gate is to close also where the next
        weight alone saves nothing, because dense is still smaller, or because only a power of two shortens pointers.
        """
        if self.cost != "bytes":
            return density
        one_weight = 1.0 / prod(self.shapes[name])
        at = max(float(density.detach()), one_weight)
        now, far = self._stored(name, at), max(at, 2.0 * one_weight)
        slope = (self._stored(name, far) - self._stored(name, one_weight)) / (far - one_weight)
        return now + slope * (density - density.detach())

    def _stored(self, name: str, density: float) -> float:
        """Share of its dense size that a tensor takes as stored."""
        rows, count = float(self.shapes[name][0]), float(prod(self.shapes[name]))
        bits = stored_bits(self.storage, density, np.array([rows]), np.array([count / rows]), self.bits)
        return float(bits[0]) / (count * self.bits)

    def _prices(self) -> tuple[dict[str, float], float]:
        """Return what each tensor costs whole, and what the rest of the network costs; bytes in words of ``bits``."""
        sizes = {name: float(prod(shape)) for name, shape in self.shapes.items()}
        layers, index = self.trace.network.layers, self.trace.network.layer_index
        if self.cost is None:
            return sizes, 0.0
        if self.cost == "bytes":
            return sizes, sum(map(params, layers)) - sum(sizes.values())
        prices = {name: float(macs(layers[index[layer_of(name)]])) for name in self.shapes}
        return prices, sum(map(macs, layers)) - sum(prices.values())
