"""Random: a random order, the baseline of every criterion.

saliency = one standard normal draw a weight, so units of one group (slices of equal size) are exchangeable
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amcsearch.methods.needs import Need
from amcsearch.methods.statistics import Statistics

__all__ = ["RandomOrder"]


@dataclass(frozen=True)
class RandomOrder:
    """Random: ``seed`` decides the order; tensors draw in the order of their names."""

    seed: int = 0
    needs: ClassVar[frozenset[Need]] = frozenset()
    reduction: ClassVar[str] = "sum"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return normal noise, shape of the weight."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: torch.randn(statistics.weights[name].shape, generator=generator)
            for name in sorted(statistics.weights)
        }
