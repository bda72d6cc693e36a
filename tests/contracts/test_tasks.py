"""What every task promises, over the registry and each metric."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
import torch
from torch.nn import functional as F

from amcsearch.testing import TaskContract, TaskExample
from amcsearch.training.task import Task
from amcsearch.training.tasks import TASKS

SIZE = 6
HERE = "tests.contracts.test_tasks"


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, *shape, generator=torch.Generator().manual_seed(seed))


def one_hot(ids: torch.Tensor, classes: int, axis: int) -> torch.Tensor:
    return 20.0 * F.one_hot(ids.clamp(min=0), classes).movedim(-1, axis).float()


def vectors() -> TaskExample:
    wanted = numbers(4, seed=1)
    return TaskExample(numbers(4), wanted, 1.0 * wanted, SIZE)


def classes() -> TaskExample:
    ids = torch.tensor([0, 1, 2, 0, 1, -100])
    return TaskExample(numbers(3), ids, one_hot(ids, 3, -1), SIZE)


def tokens() -> TaskExample:
    ids = torch.arange(SIZE * 5).reshape(SIZE, 5) % 7
    ids[:, 4] = -100
    return TaskExample(numbers(5, 7), ids, one_hot(ids, 7, -1), SIZE)


def pixels() -> TaskExample:
    ids = torch.arange(SIZE * 16).reshape(SIZE, 4, 4) % 3
    ids[:, 0, 0] = -100
    return TaskExample(numbers(3, 4, 4), ids, one_hot(ids, 3, 1), SIZE)


def answers(labels: int) -> TaskExample:
    wanted = (numbers(labels, seed=2) > 0.0).float()
    return TaskExample(numbers(labels), wanted, 20.0 * (2.0 * wanted - 1.0), SIZE)


def squares(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (output - targets).square().mean()


def distances(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (output - targets).abs().mean(1)


OWN: Final = {"loss": f"{HERE}:squares", "metric": f"{HERE}:distances", "higher_is_better": False}
Row = tuple[Callable[[], TaskExample], tuple[Mapping[str, Any], ...]]
EXAMPLES: Final[Mapping[str, Row]] = {
    "classification": (classes, ({},)),
    "language_modelling": (tokens, ({}, {"metric": "perplexity"})),
    "segmentation": (pixels, ({}, {"metric": "pixel_accuracy"})),
    "regression": (
        vectors,
        (
            *({"loss": loss, "metric": metric} for loss in ("mse", "l1", "huber") for metric in ("mse", "mae")),
            *({"metric": metric} for metric in ("rmse", "r2")),
        ),
    ),
    "binary": (lambda: answers(1), ({}, {"metric": "f1"})),
    "multilabel": (lambda: answers(3), ({}, {"metric": "accuracy"}, {"metric": "map"})),
    "embedding": (vectors, ({},)),
    "custom": (vectors, (OWN,)),
}
CASES = [(name, params) for name in TASKS for params in EXAMPLES[name][1]]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def case(request: pytest.FixtureRequest) -> tuple[str, Mapping[str, Any]]:
    chosen: tuple[str, Mapping[str, Any]] = request.param
    return chosen


class TestTasks(TaskContract):
    @pytest.fixture
    def maker(self, case: tuple[str, Mapping[str, Any]]) -> Callable[[], Task]:
        return lambda: TASKS[case[0]](**case[1])

    @pytest.fixture
    def batch(self, case: tuple[str, Mapping[str, Any]]) -> TaskExample:
        return EXAMPLES[case[0]][0]()
