"""What every reward promises, over the registry."""

from collections.abc import Callable

import pytest

from amcsearch.search import REWARDS, Reward
from amcsearch.testing import RewardContract


class TestRewards(RewardContract):
    @pytest.fixture(params=REWARDS)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], Reward]:
        return lambda: REWARDS[request.param]
