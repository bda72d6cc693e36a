"""Which multiple of channels does this device reward? Asked of whole networks, not of rules.

For each candidate, from one block of the runtime's layout downwards, pairs of networks are priced by the table: widths
on the candidate's grid but off the next coarser one, and the same widths rounded up to that. The finer grid is accepted
if the share of time it saves is at least 0.28 of the share of MACs it saves; the first refusal ends the descent. (Below
the step where kernels fall back to a slower layout the narrower network is even slower.) The table holds measured
networks on all of these grids, and predicts pairs without the noise of timing them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from amcsearch.core import NetworkSpec
from amcsearch.costs.compute import Macs
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.runtime.variants import neighbour_pairs

__all__ = ["GridStep", "accepted_multiple", "grid_info", "grid_steps"]

PAIRS = 48
LEAST_YIELD = (
    0.28  # useful and useless steps of five reference networks lie on either side: 0.32 and more, 0.24 and less
)
NO_BLOCK = 8  # coarsest multiple tried where the runtime has no blocked layout: a register of floats


@dataclass(frozen=True, slots=True)
class GridStep:
    """Median over pairs of the shares saved by a grid of ``multiple`` against twice that."""

    multiple: int
    macs_saved: float
    time_saved: float

    @property
    def is_worthwhile(self) -> bool:
        """Whether fewer MACs turned into less time."""
        return self.time_saved >= LEAST_YIELD * self.macs_saved


def accepted_multiple(coarsest: int, steps: list[GridStep]) -> int:
    """The finest multiple reached before the first refusal."""
    multiple = coarsest
    for step in steps:
        if not step.is_worthwhile:
            break
        multiple = step.multiple
    return multiple


def grid_steps(table: LatencyTable, network: NetworkSpec, coarsest: int, seed: int = 0) -> list[GridStep]:
    """Price every step from ``coarsest`` down to 1; steps that the network's groups cannot tell apart are left out."""
    rng = np.random.default_rng(seed)
    steps = []
    multiple = coarsest // 2
    while multiple >= 1:
        policies = [policy for pair in neighbour_pairs(network, PAIRS, multiple, rng) for policy in pair]
        if policies:
            layers = [network.with_channels(policy).layers for policy in policies]
            ms = table.predict_all(layers).reshape(-1, 2)
            macs = np.array([sum(map(Macs().layer_cost, one)) for one in layers]).reshape(-1, 2)
            saved = 1.0 - np.stack([macs[:, 0] / macs[:, 1], ms[:, 0] / ms[:, 1]])
            steps.append(GridStep(multiple, *(float(np.median(row)) for row in saved)))
        multiple //= 2
    return steps


def grid_info(table: LatencyTable, network: NetworkSpec) -> dict[str, Any]:
    """What a table says of its channel grid: ``channel_multiple`` and ``channel_grid`` (the rule and every step)."""
    coarsest = int(table.provenance.get("nchwc_block") or NO_BLOCK)
    steps = grid_steps(table, network, coarsest)
    tried = [{"multiple": s.multiple, "macs_saved": s.macs_saved, "time_saved": s.time_saved} for s in steps]
    rule = "the finest grid whose saved share of time is at least 0.28 of its saved share of MACs, on whole networks"
    return {
        "channel_multiple": accepted_multiple(coarsest, steps),
        "channel_grid": {"rule": rule, "tried": tried},
    }
