"""Wanda: the size of a weight times the norm of what it reads.

    weights   S_ij = |W_ij| * ||X_j||_2, the norm over all samples and positions, not its square: S_ij^2 is exactly the
              increase of the output's squared error from zeroing that one entry
    channels  (sum over readers of tr(W_c G_cc W_c'))^(1/2), G_cc the products of the channel's kernel patches: the
              exact error of the readers' outputs from dropping channel c alone; ||W[:, j]||_2 ||X_j||_2 in a linear
              layer or 1x1 convolution

Sun et al. 2023 (arXiv 2306.11695); convolutions are matrices over unfolded patches. Squares are divided by the number
of positions, which changes no order. The paper compares weights within an output row or in runs of m: the schedule
``one_shot`` with ``within: row`` or a ``pattern``.
Departure: inputs are those of the dense network; the paper's code takes them anew after each block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amcsearch.methods.moments import aligned
from amcsearch.methods.needs import Need, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["Wanda", "WandaChannels"]


@dataclass(frozen=True)
class Wanda:
    """Wanda for single weights: |w| times the norm of its input; a channel adds squares, blind to cross terms."""

    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.PATCH_PRODUCTS})
    reduction: ClassVar[str] = "consumers_root"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return S^2, whose root the reduction takes, shape of the weight."""
        patches, weights = statistics.patches.items(), statistics.weights
        return {name: weights[name].square() * inputs.squares(weights[name]) for name, inputs in patches}


@dataclass(frozen=True)
class WandaChannels(Wanda):
    """Wanda for channels: the exact output error of dropping a channel, with the cross terms within its kernels."""

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return the channel's squared error spread evenly over its weights, broadcastable to the weight."""
        spread = {}
        for name, inputs in statistics.patches.items():
            weight = statistics.weights[name]
            errors = inputs.channel_errors(weight)
            spread[name] = aligned(errors * (len(errors) / weight.numel()), weight, transposed=False)
        return spread
