"""Activation variance: score a channel by how much it varies; a constant fits in the readers' biases.

    weighted   Var_c * ||W[:, c]||^2, summed over all that reads channel c (the default)
    bare       Var_c, averaged over the readers

With the means of removed channels folded into the readers' biases (``fold_means``, see ``folding.py``) the first is the
expected squared error of a reader's output, up to correlations of positions. An et al. 2024, "Fluctuation-based
Adaptive Structured Pruning" (FLAP, arXiv 2312.11983): WIFV and IFV. Departure: moments of batches are merged exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amcsearch.methods.needs import Need, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["ActivationVariance"]


@dataclass(frozen=True)
class ActivationVariance:
    """Activation variance times the readers' squared weights; the means of removed channels go into biases."""

    weighted: bool = True
    fold_means: bool = True
    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.INPUT_MOMENTS})

    @property
    def reduction(self) -> str:
        """Errors of readers add; bare variances are averaged."""
        return "consumers_sum" if self.weighted else "consumers_mean"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return Var * w^2, shape of the weight, or Var spread evenly over the weights."""
        inputs, weights = statistics.inputs.items(), statistics.weights
        if self.weighted:
            return {name: moments.variance * weights[name].square() for name, moments in inputs}
        return {name: moments.spread(moments.variance, weights[name]) for name, moments in inputs}
