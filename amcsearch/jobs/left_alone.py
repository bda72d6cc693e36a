"""The largest layers that pruning cannot reach, with their share of the network's MACs and the reason."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from amcsearch.costs import macs
from amcsearch.graph import Trace

__all__ = ["LeftAlone", "largest_left_alone"]

NAMED: Final = 5
LEAST_SHARE: Final = 0.01


@dataclass(frozen=True)
class LeftAlone:
    """A layer whose width no group changes on either side; ``share`` is that of the network's MACs, in (0, 1]."""

    name: str
    share: float
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.share:.0%} of the MACs): {self.reason}"


def largest_left_alone(trace: Trace) -> tuple[LeftAlone, ...]:
    """Return up to five layers that are left alone, the largest first; those below 1 % of the MACs are not named."""
    network = trace.network
    lost_in, lost_out = network.removal_matrices  # (G, L)
    is_reached = (lost_in > 0).any(axis=0) | (lost_out > 0).any(axis=0)
    counts = np.array([macs(layer) for layer in network.layers], dtype=np.float64)
    shares = np.where(is_reached, 0.0, counts / max(1.0, float(counts.sum())))
    order = [int(i) for i in np.argsort(-shares, kind="stable")[:NAMED] if shares[i] >= LEAST_SHARE]
    return tuple(
        LeftAlone(network.layers[i].name, float(shares[i]), trace.reason(network.layers[i].name)) for i in order
    )
