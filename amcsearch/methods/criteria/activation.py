"""Activation magnitude: score a channel by how active it is.

    mean_absolute  mean over samples and positions of |A_c|
    mean_square    mean of A_c^2
    active         share of values other than 0: 1 - APoZ (Hu et al. 2016, arXiv 1607.03250)

Molchanov et al. 2017 (arXiv 1611.06440) compare such scores. The tap is what every reader of the channel reads: after
the activation, the residual add and, in a transformer, the norm; several readers are averaged. Known weakness, held by
a test: scaling a producer by t and its readers by 1/t changes nothing but this score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from amcsearch.methods.needs import Need, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["ActivationMagnitude"]


@dataclass(frozen=True)
class ActivationMagnitude:
    """Activation magnitude: mean |A| (or A^2, or share of non-zeros) of what is read."""

    measure: Literal["mean_absolute", "mean_square", "active"] = "mean_absolute"
    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.INPUT_MOMENTS})
    reduction: ClassVar[str] = "consumers_mean"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return the channel's measure spread evenly over its weights, broadcastable to the weight."""
        spread = {}
        for name, moments in statistics.inputs.items():
            choices = {
                "mean_absolute": moments.absolute,
                "mean_square": moments.mean_square,
                "active": moments.active,
            }
            spread[name] = moments.spread(choices[self.measure], statistics.weights[name])
        return spread
