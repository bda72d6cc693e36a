"""A criterion of one's own: a channel matters as much as what reads it would lose with it.

    saliency = |w| * E|x|,  summed over the weights that read a channel (a channel-wise form of Wanda, arXiv 2306.11695)

Name it in a configuration, with its parameters:

    selection: {criterion: "examples/my_criterion.py:ReadActivation", params: {power: 1.0}}

and hold it to the promise in a test:

    class TestReadActivation(CriterionContract):
        def make(self): return ReadActivation()
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amcsearch.methods import Need, Statistic, Statistics


@dataclass(frozen=True)
class ReadActivation:
    """|w| times the mean |x| it reads, to the power ``power``, summed over a channel's readers."""

    power: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.INPUT_MOMENTS})
    reduction: ClassVar[str] = "consumers_mean"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return the saliency of each weight, the shape of the weight."""
        read = statistics.inputs.items()  # moments of what each weight reads, broadcastable to the weight
        return {name: statistics.weights[name].abs() * inputs.absolute.pow(self.power) for name, inputs in read}
