"""What every gate promises, over the registry."""

from collections.abc import Callable

import pytest

from amcsearch.methods.gate import GateMethod
from amcsearch.methods.gates import GATES
from amcsearch.testing import GateContract, network_example


class TestGates(GateContract):
    @pytest.fixture(params=GATES)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], GateMethod]:
        return GATES[request.param]


def test_only_slimming_leaves_its_density_alone() -> None:
    example = network_example("resnet20")
    gates = {name: method().attach(example.model, example.trace, 16) for name, method in GATES.items()}
    assert [name for name, gate in gates.items() if gate.drive == "fixed"] == ["slimming"]
    assert [name for name, gate in gates.items() if not list(gate.parameters())] == ["slimming"]
