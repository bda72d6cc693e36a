"""Registry of gates: name → what makes a gate's method from its parameters, one formula a file."""

from collections.abc import Mapping
from typing import Final

from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.gates.gumbel import GumbelSoftmax
from amcsearch.methods.gates.hard_concrete import HardConcrete
from amcsearch.methods.gates.slimming import NetworkSlimming
from amcsearch.methods.gates.soft_threshold import SoftThreshold
from amcsearch.methods.gates.variational import VariationalDropout

__all__ = ["GATES", "Gate", "GateMethod"]

GATES: Final[Mapping[str, type[GateMethod]]] = {
    "gumbel_softmax": GumbelSoftmax,
    "hard_concrete": HardConcrete,
    "slimming": NetworkSlimming,
    "soft_threshold": SoftThreshold,
    "variational_dropout": VariationalDropout,
}
