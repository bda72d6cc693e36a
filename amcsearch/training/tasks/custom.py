"""A task of two functions: any loss and any metric of outputs and targets."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from amcsearch.config import import_factory
from amcsearch.core import BadInputError, Metric, UserCode
from amcsearch.graph import Tree, tensors_of_tree
from amcsearch.training.task import Meter, Task

__all__ = ["Custom", "custom"]


METRIC: Final = Metric("metric")


@dataclass(frozen=True)
class Custom(Task):
    """A loss and a metric, each a function of (outputs, targets) as the model and the data set give them.

    ``loss_function`` returns the mean loss of a batch. ``metric_function`` returns the metric of every sample, (N,), or
    the mean over the samples of the batch; or it is a metric with ``update`` and ``compute`` (torchmetrics), which is
    copied for every evaluation.
    """

    loss_function: Callable[[Any, Any], Tensor]
    metric_function: Any
    metric: Metric = METRIC

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        """See ``Task.loss``."""
        with UserCode("task.params.loss"):
            return self.loss_function(output, targets)

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        return _Collected(copy.deepcopy(self.metric_function)) if self._collects else _Mean(self.values)

    @property
    def _collects(self) -> bool:
        return hasattr(self.metric_function, "update") and hasattr(self.metric_function, "compute")

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        values = None if self._collects else self.values(output, targets)
        return None if values is None or values.ndim == 0 else values

    def values(self, output: Tree, targets: Tree) -> Tensor:
        """What the metric's function gives: (N,), or one number.

        Raises:
            BadInputError: it raises, or gives something else.
        """
        with UserCode("task.params.metric"):
            given = self.metric_function(output, targets)
        try:
            values = torch.as_tensor(given).detach().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInputError(
                f"task.params.metric returned {given!r:.60}; return a number for every sample, (N,), or their mean"
            ) from error
        if values.ndim > 1:
            raise BadInputError(
                f"task.params.metric gives {tuple(values.shape)}; return a number for every sample, (N,), or their mean"
            )
        return values


class _Mean:
    """Mean over samples of what a metric's function gives: for every sample, or as the mean of a batch."""

    def __init__(self, values: Callable[[Tree, Tree], Tensor]) -> None:
        self.values = values
        self.total, self.samples = 0.0, 0

    def update(self, output: Tree, targets: Tree) -> None:
        values = self.values(output, targets)
        samples = len(values) if values.ndim else len(next((t for _, t in tensors_of_tree(output)), values[None]))
        self.total += float(values.sum()) if values.ndim else float(values) * samples
        self.samples += samples

    def value(self) -> float:
        return self.total / self.samples if self.samples else math.nan


class _Collected:
    """A metric of the user's with ``update`` and ``compute``."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        if hasattr(metric, "reset"):
            metric.reset()

    def update(self, output: Tree, targets: Tree) -> None:
        with UserCode("task.params.metric"):
            self.metric.update(output, targets)

    def value(self) -> float:
        with UserCode("task.params.metric"):
            return float(self.metric.compute())


def custom(
    loss: str, metric: str, metric_name: str = "metric", unit: str = "", higher_is_better: bool = True
) -> Custom:
    """The task of two functions of one's own.

    Args:
        loss: ``module:function`` or ``file.py:function`` of (outputs, targets) that gives the mean loss of a batch.
        metric: the same that gives the metric of every sample, (N,), or the mean over the batch; or an object with
            ``update`` and ``compute``, such as a metric of torchmetrics.
        metric_name: of small letters, digits and _; names columns.
        unit: of the metric; ``%`` for a share.
        higher_is_better: whether a larger metric is better.

    Raises:
        BadInputError: what is named cannot be imported.
    """
    functions = []
    for key, spec in (("loss", loss), ("metric", metric)):
        try:
            functions.append(import_factory(spec))
        except BadInputError as error:
            raise BadInputError(f"task.params.{key}: {error}") from error
    return Custom(functions[0], functions[1], Metric(metric_name, unit, higher_is_better))
