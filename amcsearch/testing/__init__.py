"""Contract tests for methods of one's own: a class to inherit for each contract, collected by pytest.

    from amcsearch.testing import CriterionContract

    class TestMine(CriterionContract):
        def make(self):
            return MyCriterion()

Each class makes its own small networks and problems. A fixture named ``maker`` gives the tests ``make``.
"""

import pytest

for _room in ("runtime", "search", "selection", "sparsification", "task"):
    pytest.register_assert_rewrite(f"amcsearch.testing.{_room}_contracts")  # before they are imported

from amcsearch.testing.made_up import MadeUpEvaluator, chain, make_study  # noqa: E402
from amcsearch.testing.runtime_contracts import RuntimeContract  # noqa: E402
from amcsearch.testing.search_contracts import AgentContract, CostContract, RewardContract  # noqa: E402
from amcsearch.testing.selection_contracts import (  # noqa: E402
    CriterionContract,
    NetworkExample,
    SelectorContract,
    network_example,
)
from amcsearch.testing.sparsification_contracts import GateContract, ScheduleContract  # noqa: E402
from amcsearch.testing.task_contracts import TaskContract, TaskExample  # noqa: E402

__all__ = [
    "AgentContract",
    "CostContract",
    "CriterionContract",
    "GateContract",
    "MadeUpEvaluator",
    "NetworkExample",
    "RewardContract",
    "RuntimeContract",
    "ScheduleContract",
    "SelectorContract",
    "TaskContract",
    "TaskExample",
    "chain",
    "make_study",
    "network_example",
]
