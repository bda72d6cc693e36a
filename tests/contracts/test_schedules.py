"""What every mask schedule promises, over the registry."""

from collections.abc import Callable

import pytest

from amcsearch.methods.mask_schedule import MaskSchedule
from amcsearch.methods.schedules import SCHEDULES
from amcsearch.methods.weights import sparse_weights
from amcsearch.testing import ScheduleContract, network_example


class TestSchedules(ScheduleContract):
    @pytest.fixture(params=SCHEDULES)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], MaskSchedule]:
        return SCHEDULES[request.param]


def test_tied_embeddings_are_left_alone() -> None:
    example = network_example("language_model")
    names = sparse_weights(example.model, example.trace)
    assert "head.weight" not in names
    assert "tokens.weight" not in names
    assert "blocks.0.up.weight" in names
