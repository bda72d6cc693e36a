"""Fisher: the expected squared derivative of the log-likelihood, hence of the loss, by a gate or by a weight.

    channels   (1/2N) sum_n s_nc^2,  s_nc = sum over all that reads channel c of its part of dL_n/da_c
    weights    1/2 F_ii w_i^2,       F_ii = mean_n (dL_n/dw_i)^2     (``per_weight``; a unit sums its weights)

Members are added BEFORE squaring, so that contributions of a sample that cancel do cancel. ``labels`` data: the
empirical Fisher; model: labels drawn from the model's own distribution (alias ``true_fisher``), which estimates the
Gauss-Newton matrix of softmax cross-entropy. Theis et al. 2018 (arXiv 1801.05787); Liu et al. 2021 (arXiv 2108.00708).
Departure: for sequences a sample's loss is its share of the mean over all targets of its minibatch. Dividing by the
saved cost, as Liu et al. do, compares groups alone: see ``global_ranking``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from amcsearch.methods.needs import Labels, Need, SampleGates, SquaredGradients
from amcsearch.methods.statistics import Statistics

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher:
    """Fisher: half the mean over samples of the squared derivative by the gate, with the data's labels by default."""

    labels: Labels = "data"
    per_weight: bool = False
    seed: int = 0

    @property
    def needs(self) -> frozenset[Need]:
        """Gates of single samples, or squared gradients."""
        return frozenset({self._need})

    @property
    def reduction(self) -> str:
        """Members are added, then squared; squares are added."""
        return "consumers_sum" if self.per_weight else "consumers_half_squared"

    @property
    def _need(self) -> SampleGates | SquaredGradients:
        return (SquaredGradients if self.per_weight else SampleGates)(self.labels, self.seed)

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return s_nc spread over its readers, (N, *weight), or 1/2 F w^2, shape of the weight."""
        derivatives = statistics.by_need[self._need]
        if not self.per_weight:
            return derivatives
        return {name: 0.5 * value * statistics.weights[name].square() for name, value in derivatives.items()}
