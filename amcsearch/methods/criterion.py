"""The contract of criteria: saliency per weight, and the reduction that makes scores of units from it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.needs import Need
from amcsearch.methods.statistics import Statistics

__all__ = ["Criterion", "saliency_of"]


class Criterion(Protocol):
    """Saliency per weight, and the name of the reduction that makes scores of units from it.

    Promise: ``saliency`` is a pure function of one draw's statistics, returns tensors broadcastable to the weights of
    the same name (a tensor left out counts for nothing; after an axis of samples in a ``SAMPLE`` draw), and keeps
    signs: abs and squares across weights belong to the reduction. ``reduction`` is a row of ``REDUCTIONS``. ``needs``
    names at most one kind of draw; a unit's score is the mean over those draws, weighted by their samples (over the
    whole set at once where nothing else is asked). What is known of a channel alone is spread evenly over the weights
    that read it. A criterion that has a true field or property ``fold_means`` expects the means of removed channels
    in the readers' biases (``folding.py``). The weights are the network's own: a criterion that writes into them is
    refused.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What to gather beyond the weights."""
        ...

    @property
    def reduction(self) -> str:
        """Row of ``REDUCTIONS``."""
        ...

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return saliency by tensor name for one draw."""
        ...


def saliency_of(criterion: Criterion, statistics: Statistics) -> Mapping[str, Tensor]:
    """Return what a criterion says of one draw, if it left the weights alone: they are the network's own.

    Raises:
        BadInputError: a weight was written in place; names it.
    """
    weights = {name: weight for name, weight in statistics.weights.items() if not weight.is_inference()}
    before = {name: weight._version for name, weight in weights.items()}  # torch counts what is written in place
    saliency = criterion.saliency(statistics)
    changed = next((name for name, weight in weights.items() if weight._version != before[name]), None)
    if changed is not None:
        raise BadInputError(
            f"{type(criterion).__name__}: saliency changed the network's own weight {changed!r} in place; work on "
            "statistics.weights[name].clone()"
        )
    return saliency
