"""Which multiple of channels does this device reward? Asked of whole networks, not of rules.

For each candidate, from one block of the runtime's layout downwards, pairs of networks are timed: widths on the
candidate's grid but off the next coarser one, and the same widths rounded up to that. The finer grid is accepted if
the share of time it saves is at least 0.28 of the share of MACs it saves; the first refusal ends the descent. (Below
the step where kernels fall back to a slower layout the narrower network is even slower.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from amcsearch.core import NetworkSpec, PruningPolicy
from amcsearch.costs.compute import Macs
from amcsearch.graph.slices import Trace
from amcsearch.runtime.measuring import measure_variants
from amcsearch.runtime.session import detect_nchwc_block
from amcsearch.runtime.variants import neighbour_pairs

__all__ = ["GridStep", "accepted_multiple", "measure_grid"]

PAIRS = 6
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


def accepted_multiple(coarsest: int, steps: Sequence[GridStep]) -> int:
    """The finest multiple reached before the first refusal."""
    multiple = coarsest
    for step in steps:
        if not step.is_worthwhile:
            break
        multiple = step.multiple
    return multiple


def _macs(network: NetworkSpec, policy: PruningPolicy) -> float:
    model = Macs()
    return sum(model.layer_cost(layer) for layer in network.with_channels(policy).layers)


def measure_grid(
    model: nn.Module, trace: Trace, example: Tensor, *, threads: int, rng: np.random.Generator
) -> tuple[int, list[GridStep]]:
    """Time the descent; return the device's multiple for this network and every step tried.

    A network whose groups cannot tell two grids apart is not measured for that step.
    """
    coarsest = detect_nchwc_block() or NO_BLOCK
    steps: list[GridStep] = []
    multiple = coarsest // 2
    while multiple >= 1 and accepted_multiple(coarsest, steps) == (2 * multiple if steps else coarsest):
        pairs = neighbour_pairs(trace.network, PAIRS, multiple, rng)
        if not pairs:
            break
        policies = [policy for pair in pairs for policy in pair]
        measured = measure_variants(model, trace, example, policies, threads=threads, rng=rng, profile=False)[1:]
        ms = np.array([variant.latency_ms for variant in measured]).reshape(-1, 2)  # (pairs, fine and coarse)
        macs = np.array([_macs(trace.network, policy) for policy in policies]).reshape(-1, 2)
        saved = 1.0 - np.stack([macs[:, 0] / macs[:, 1], ms[:, 0] / ms[:, 1]])
        steps.append(GridStep(multiple, *(float(np.median(row)) for row in saved)))
        multiple //= 2
    return accepted_multiple(coarsest, steps), steps
