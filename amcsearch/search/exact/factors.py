"""The cost of a network as a sum of tables, each over the kept counts of the few groups it depends on.

A layer's cost depends on its two widths, and these on the groups that its input and output belong to: one or two as a
rule, more behind a concatenation. A layer that serves a branch that may vanish depends on the group of the branch too.
Layers of the same groups share a table. The part of a cost that depends on all layers together (``JointCost``) is no
such sum and is left out.

A cost that is a maximum over moments (``PeakCost``) is no sum either. Each moment depends on the few groups whose
channels are live then, so it is a table of its own, and a limit on the maximum is a limit on every table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import NetworkSpec, PolicySpace
from amcsearch.costs import CostGrid

__all__ = ["Factor", "PeakFactor", "cost_factors", "layer_scopes", "peak_factors", "peak_scopes"]


@dataclass(frozen=True)
class Factor:
    """Costs by name over the choices of the groups ``scope`` (positions): one axis a group, in this order."""

    scope: tuple[int, ...]
    costs: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class PeakFactor:
    """The largest of some moments of the cost ``name``, over the choices of the groups ``scope``, as in ``Factor``."""

    name: str
    scope: tuple[int, ...]
    values: NDArray[np.float64]


def peak_scopes(
    space: PolicySpace, grid: CostGrid, allowed: Mapping[str, float]
) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    """Return the moments (positions) by the cost and the groups that they depend on.

    ``allowed`` are the bytes of each such cost that no policy need be refused for: moments that never exceed them are
    left out.
    """
    members: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, bound in allowed.items():
        moments = grid.peaks[name]
        largest = moments.of(space.dense[None, :])[0]  # no moment falls when a width grows
        for moment in np.flatnonzero(largest > bound).tolist():
            members.setdefault((name, moments.scope(moment)), []).append(moment)
    return members


def peak_factors(space: PolicySpace, grid: CostGrid, allowed: Mapping[str, float]) -> list[PeakFactor]:
    """Return the factors of which costs that are maxima are the largest, where they exceed what is ``allowed``."""
    factors = []
    for (name, scope), moments in peak_scopes(space, grid, allowed).items():
        rows, shape = _combinations(space, scope)
        values = grid.peaks[name].of(rows)[:, moments].max(axis=1)
        factors.append(PeakFactor(name, scope, values.reshape(shape)))
    return factors


def _combinations(space: PolicySpace, scope: tuple[int, ...]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Kept counts (combinations, G) of every combination of choices of some groups, and the shape of the table."""
    shape = tuple(len(space.choices[g]) for g in scope)
    index = np.indices(shape).reshape(len(scope), math.prod(shape))  # (scope, combinations)
    rows = np.repeat(space.dense[None, :], index.shape[1], axis=0)
    for g, column in zip(scope, index, strict=True):
        rows[:, g] = space.choices[g][column]
    return rows, shape


def layer_scopes(network: NetworkSpec) -> dict[tuple[int, ...], list[int]]:
    """Return the layers (positions) by the groups their costs depend on; () holds those that no group touches."""
    lost_in, lost_out = network.removal_matrices  # (G, L)
    touched = (lost_in != 0) | (lost_out != 0) | network.idles
    members: dict[tuple[int, ...], list[int]] = {}
    for layer in range(len(network.layers)):
        members.setdefault(tuple(np.flatnonzero(touched[:, layer]).tolist()), []).append(layer)
    return members


def cost_factors(space: PolicySpace, grid: CostGrid) -> list[Factor]:
    """Return the factors whose sum is the price of a policy; the constants are in scope ().

    Joint costs and maxima are left out.

    Raises:
        BadInputError: a layer a model cannot price.
    """
    scopes = layer_scopes(grid.network)
    factors = [Factor((), {model.name: np.array(model.constant, dtype=np.float64) for model in grid.models})]
    for scope, layers in scopes.items():
        rows, shape = _combinations(space, scope)
        prices = grid.price_layers(rows, layers)  # name → (combinations, layers)
        factors.append(Factor(scope, {name: p.sum(axis=1).reshape(shape) for name, p in prices.items()}))
    return factors
