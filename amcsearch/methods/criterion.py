"""The contract every criterion keeps."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from amcsearch.methods.statistics import Statistic, Statistics

__all__ = ["Criterion"]


class Criterion(Protocol):
    """Saliency per weight, and the name of the reduction that makes scores of units from it.

    Promise: ``saliency`` is a pure function of one draw's statistics, returns tensors broadcastable to the weights of
    the same name (a tensor left out counts for nothing), and keeps signs: abs and squares across weights belong to the
    reduction. ``reduction`` is a row of ``REDUCTIONS``. ``needs`` names at most one kind of draw; a unit's score is the
    mean over those draws, weighted by their samples (over the whole set at once where nothing else is asked).
    """

    @property
    def needs(self) -> frozenset[Statistic]:
        """What to gather beyond the weights."""
        ...

    @property
    def reduction(self) -> str:
        """Row of ``REDUCTIONS``."""
        ...

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return saliency by tensor name for one draw."""
        ...
