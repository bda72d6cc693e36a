"""Magnitude: score a weight by its size.

    saliency = |w|^p,  score of a unit = mean over its coupled tensors of ||slice||_p^p

Li et al., Pruning Filters for Efficient ConvNets, 2017 (arXiv 1608.08710) use p = 1 on the producer alone; over coupled
members the mean is taken, since a sum favours long residual groups (as DepGraph, Fang et al. 2023, arXiv 2301.12900).
Biases are left out: their size says nothing of how much a channel moves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.needs import Need
from amcsearch.methods.statistics import Statistics

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """Magnitude: ``p`` is the power of the norm; ``reduction`` says how coupled tensors are combined.

    Raises:
        BadInputError: a power that is not above 0.
    """

    p: float = 2.0
    reduction: Literal["mean", "sum", "max", "first"] = "mean"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise BadInputError(f"magnitude: p = {self.p}, must be above 0 (1 or 2 as a rule)")

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return |w|^p, shape of the weight."""
        weights = statistics.weights.items()
        return {name: weight.abs().pow(self.p) for name, weight in weights if not name.endswith("bias")}
