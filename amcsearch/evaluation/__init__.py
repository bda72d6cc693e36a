"""Evaluation of a policy: prune, recalibrate, measure loss and metric; in this process or in workers.

Nothing is imported here: a worker process starts with its own module alone.
"""

from amcsearch.evaluation.evaluator import Evaluator, check_torch_device, default_batch_size
from amcsearch.evaluation.executors import Executor, ProcessExecutor, SerialExecutor, executor_of
from amcsearch.evaluation.paired import PairedEvaluator, judge_recalibration, tango_low
from amcsearch.evaluation.sensitivity import (
    Curves,
    check_points,
    curves,
    expected_increase,
    policies,
    rank_correlation,
    spread,
)
from amcsearch.evaluation.worker import pickled

__all__ = [
    "Curves",
    "Evaluator",
    "Executor",
    "PairedEvaluator",
    "ProcessExecutor",
    "SerialExecutor",
    "check_points",
    "check_torch_device",
    "curves",
    "default_batch_size",
    "executor_of",
    "expected_increase",
    "judge_recalibration",
    "pickled",
    "policies",
    "rank_correlation",
    "spread",
    "tango_low",
]
