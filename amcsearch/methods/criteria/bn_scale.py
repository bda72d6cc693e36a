"""Batch-norm scale: |gamma| of the channel.

    score = mean (or sum) of |gamma| over the batch norms of the group

Liu et al. 2017, Network Slimming (arXiv 1708.06519), who train with an L1 penalty on gamma first: without it |gamma| is
a weak score. Groups without a batch norm (transformers, a hidden linear layer) are ranked by the L1 norm of what
writes them, which a norm's scale stands for. Departures: coupled channels are averaged, where the paper puts a channel
selection before the stream; beta is not thrown away: what is left of a removed channel, the mean of act(BN), goes into
the readers' biases (``fold_means``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from amcsearch.methods.needs import Need
from amcsearch.methods.statistics import Statistics

__all__ = ["BnScale"]


@dataclass(frozen=True)
class BnScale:
    """Batch-norm scale |gamma|, meant for networks trained with an L1 penalty on it."""

    combine: Literal["mean", "sum"] = "mean"
    fold_means: bool = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def reduction(self) -> str:
        """Mean or sum over the norms of a group."""
        return f"norms_{self.combine}"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return |w|, of which the reduction takes the norms'."""
        weights = statistics.weights.items()
        return {name: weight.abs() for name, weight in weights if not name.endswith("bias")}
