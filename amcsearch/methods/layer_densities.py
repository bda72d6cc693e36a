"""Densities of layers by rule, and the policy of channels nearest to given densities.

    ERK      d_l = eps * sum(shape_l) / prod(shape_l); layers that would exceed 1 are dense and eps is solved again
             (Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134)
    uniform  the same density in every layer but the first, which is dense

From densities to channels: a layer that keeps a of its input and b of its output channels keeps a * b of its weights.
So, with k_g the share that group g keeps, the densities d_l of the layers ask for

    sum_g m_lg * log k_g = log d_l,   log k_g <= 0,   m_lg = the part of the layer's two widths that is group g's

which rarely has a solution: it is solved by least squares, a layer counting by its weights (coordinate descent, the
bound kept at each step). What no layer asks for stays whole. Evci et al. 2020 and Kusupati et al. 2020 (arXiv
2002.03231) note that learned sparsities carry over to other methods; this form of it is ours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, PolicySpace, PruningPolicy

__all__ = ["erk_densities", "kept_shares", "policy_from_densities", "uniform_densities"]

SWEEPS: Final = 500
FLOOR: Final = 1e-6


def erk_densities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Density of each tensor by Erdos-Renyi-Kernel; together they keep 1 - sparsity of all weights."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = (1.0 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        free = [name for name in shapes if name not in dense]
        if left <= 0.0 or not free:
            break
        scale = left / sum(raw[name] * sizes[name] for name in free)
        over = {name for name in free if scale * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        largest = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == largest}
    return {name: 1.0 if name in dense else 0.0 for name in shapes}


def uniform_densities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """One density for all tensors but the first, which is dense unless it alone exceeds what is kept."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept, first = (1.0 - sparsity) * sum(sizes.values()), next(iter(sizes))
    others = sum(sizes.values()) - sizes[first]
    if others == 0 or kept <= sizes[first]:
        return dict.fromkeys(sizes, 1.0 - sparsity)
    return {name: 1.0 if name == first else (kept - sizes[first]) / others for name in sizes}


def kept_shares(
    memberships: NDArray[np.float64], densities: NDArray[np.float64], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share kept of each group, (G,), in (0, 1].

    Args:
        memberships: m, (L, G).
        densities: d, (L,), in [0, 1].
        sizes: weights of each layer, (L,).
    """
    wanted = -np.log(np.maximum(densities, FLOOR))  # >= 0
    weighted = memberships * sizes[:, None]
    curvature = np.einsum("lg,lg->g", weighted, memberships)
    given_up = np.zeros(memberships.shape[1])  # -log k
    for _ in range(SWEEPS):
        before = given_up.copy()
        for g in np.flatnonzero(curvature):
            gap = wanted - memberships @ given_up
            given_up[g] = max(0.0, given_up[g] + float(weighted[:, g] @ gap) / curvature[g])
        if np.abs(given_up - before).max(initial=0.0) < 1e-10:
            break
    return np.exp(-given_up)


def policy_from_densities(network: NetworkSpec, space: PolicySpace, densities: Mapping[str, float]) -> PruningPolicy:
    """Return the policy on the space's grid nearest to the densities, by layer name; layers not named do not count.

    Raises:
        BadInputError: a layer that the network has not, or a density outside [0, 1].
    """
    for name, density in densities.items():
        if name not in network.layer_index or not 0.0 <= density <= 1.0:
            raise BadInputError(f"density of layer {name!r} = {density}: a layer of the network, and from 0 to 1")
    rows, memberships = [network.layer_index[name] for name in densities], []
    channels = np.array([group.channels for group in network.groups], dtype=np.float64)
    lost_in, lost_out = network.removal_matrices  # (G, L)
    for i in rows:
        layer = network.layers[i]
        by_in, by_out = lost_in[:, i] * channels / layer.in_channels, lost_out[:, i] * channels / layer.out_channels
        memberships.append(by_out if layer.is_depthwise else by_in + by_out)
    sizes = np.array([network.layers[i].in_channels * network.layers[i].out_channels for i in rows], dtype=np.float64)
    table = np.array(memberships, dtype=np.float64).reshape(len(rows), len(channels))
    shares = kept_shares(table, np.array(list(densities.values()), dtype=np.float64), sizes)
    return network.policy(space.nearest(1.0 - shares))
