"""The cost of a network as a sum of tables, each over the kept counts of the few groups it depends on.

A layer's cost depends on its two widths, and these on the groups that its input and output belong to: one or two as a
rule, more behind a concatenation. Layers of the same groups share a table. The part of a cost that depends on all
layers together (``JointCost``) is no such sum and is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import NetworkSpec, PolicySpace
from amcsearch.costs import CostGrid

__all__ = ["Factor", "cost_factors", "layer_scopes"]


@dataclass(frozen=True)
class Factor:
    """Costs by name over the choices of the groups ``scope`` (positions): one axis a group, in this order."""

    scope: tuple[int, ...]
    costs: Mapping[str, NDArray[np.float64]]


def layer_scopes(network: NetworkSpec) -> dict[tuple[int, ...], list[int]]:
    """Return the layers (positions) by the groups their widths depend on; () holds those that nothing resizes."""
    lost_in, lost_out = network.removal_matrices  # (G, L)
    touched = (lost_in != 0) | (lost_out != 0)
    members: dict[tuple[int, ...], list[int]] = {}
    for layer in range(len(network.layers)):
        members.setdefault(tuple(np.flatnonzero(touched[:, layer]).tolist()), []).append(layer)
    return members


def cost_factors(space: PolicySpace, grid: CostGrid) -> list[Factor]:
    """Return the factors whose sum is the price of a policy, joint costs left out; the constants are in scope ().

    Raises:
        BadInputError: a layer a model cannot price.
    """
    scopes = layer_scopes(grid.network)
    factors = [Factor((), {model.name: np.array(model.constant, dtype=np.float64) for model in grid.models})]
    for scope, layers in scopes.items():
        shape = tuple(len(space.choices[g]) for g in scope)
        index = np.indices(shape).reshape(len(scope), -1)  # (scope, combinations)
        rows = np.repeat(space.dense[None, :], index.shape[1], axis=0)
        for g, column in zip(scope, index, strict=True):
            rows[:, g] = space.choices[g][column]
        prices = grid.price_layers(rows)  # name → (combinations, L)
        factors.append(Factor(scope, {name: p[:, layers].sum(axis=1).reshape(shape) for name, p in prices.items()}))
    return factors
