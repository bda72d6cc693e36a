"""What every cost of shapes alone promises; latency and energy, which ask for measurements, have tests of their own."""

from collections.abc import Callable

import pytest

from amcsearch.config import read_device
from amcsearch.costs import CostModel, EnergyModel, Macs, Params
from amcsearch.testing import CostContract

MAKERS: dict[str, Callable[[], CostModel]] = {
    "macs": Macs,
    "params": Params,
    "energy_mj": lambda: EnergyModel(read_device("configs/devices/x86_server.yaml"), 1, None),
}


class TestCosts(CostContract):
    @pytest.fixture(params=MAKERS)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], CostModel]:
        return MAKERS[request.param]
