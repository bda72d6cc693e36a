"""Random pruned versions of a network, spread so that few of them cover all widths.

Half the variants move all groups together (a common level plus noise: networks from tiny to dense), half draw every
group on its own (all pairs of input and output widths). Levels and widths are stratified over the variants, as in Latin
hypercube sampling (McKay et al. 1979), so that n variants visit n different quantiles of each group.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import ChannelGroup, NetworkSpec, PruningPolicy
from amcsearch.graph import Kept, Trace

__all__ = ["narrow_policy", "neighbour_pairs", "random_kept", "random_policies", "smallest", "stratified_policies"]

LEVEL_NOISE = 0.2


def _strata(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One number in each n-th of [0, 1), in random order: (n,)."""
    return (rng.permutation(n) + rng.random(n)) / max(n, 1)


def _pick(group: ChannelGroup, multiple: int, quantile: float) -> int:
    choices = group.choices(multiple)
    return choices[min(int(quantile * len(choices)), len(choices) - 1)]


def smallest(network: NetworkSpec, multiple: int) -> PruningPolicy:
    """The policy that keeps the least of every group on the channel grid."""
    return PruningPolicy({group.name: group.choices(multiple)[0] for group in network.groups})


def narrow_policy(network: NetworkSpec, rng: np.random.Generator) -> PruningPolicy:
    """Draw widths of which every octave is equally likely, off all grids: mostly narrow ones."""
    kept = {}
    for group in network.groups:
        choices = group.choices(1)
        kept[group.name] = choices[min(int(len(choices) ** rng.random()) - 1, len(choices) - 1)]
    return PruningPolicy(kept)


def random_policies(network: NetworkSpec, n: int, multiple: int, rng: np.random.Generator) -> list[PruningPolicy]:
    """Draw n policies on the channel grid of ``multiple``."""
    levels = _strata(n, rng)
    quantiles = np.stack([_strata(n, rng) for _ in network.groups] or [np.zeros(n)])  # (G, n)
    together = np.clip(levels + rng.normal(0.0, LEVEL_NOISE, quantiles.shape), 0.0, 1.0)
    chosen = np.where(np.arange(n) % 2 == 0, together, quantiles)
    return [
        PruningPolicy({g.name: _pick(g, multiple, float(chosen[i, v])) for i, g in enumerate(network.groups)})
        for v in range(n)
    ]


def stratified_policies(
    network: NetworkSpec, multiples: Sequence[int], rng: np.random.Generator
) -> list[PruningPolicy]:
    """Draw a policy on each of the channel grids; of every group they visit as many quantiles as there are policies."""
    quantiles = [_strata(len(multiples), rng) for _ in network.groups]
    return [
        PruningPolicy({g.name: _pick(g, multiple, float(q[v])) for g, q in zip(network.groups, quantiles, strict=True)})
        for v, multiple in enumerate(multiples)
    ]


def neighbour_pairs(
    network: NetworkSpec, n: int, multiple: int, rng: np.random.Generator
) -> list[tuple[PruningPolicy, PruningPolicy]]:
    """Draw n pairs (fine, coarse): widths on the grid of ``multiple`` but off that of twice it, and rounded up to that.

    [] where no group has a width that tells the two grids apart.
    """
    pairs = []
    for level in _strata(n, rng):
        fine, coarse = {}, {}
        for group in network.groups:
            wide = group.choices(2 * multiple)
            odd: Sequence[int] = [c for c in group.choices(multiple) if c not in wide] or wide
            quantile = float(np.clip(level + rng.normal(0.0, LEVEL_NOISE), 0.0, 1.0))
            fine[group.name] = odd[min(int(quantile * len(odd)), len(odd) - 1)]
            coarse[group.name] = next(c for c in wide if c >= fine[group.name])
        pairs.append((PruningPolicy(fine), PruningPolicy(coarse)))
    return [pair for pair in pairs if pair[0] != pair[1]]


def random_kept(trace: Trace, policy: PruningPolicy, rng: np.random.Generator) -> Kept:
    """Choose at random which units of each group stay; latency depends on how many alone."""
    kept = {}
    for group in trace.network.groups:
        units = trace.units[group.name]  # (n_units, unit)
        stay = rng.choice(len(units), policy[group.name] // group.unit, replace=False)
        kept[group.name] = np.sort(units[stay].ravel())
    return kept
