"""Evaluation of a policy: prune, recalibrate, measure loss and accuracy; in this process or in workers.

Nothing is imported here: a worker process starts with its own module alone.
"""

from amcsearch.evaluation.evaluator import Evaluator, PairedEvaluator, default_batch_size, tango_low
from amcsearch.evaluation.executors import Executor, ProcessExecutor, SerialExecutor
from amcsearch.evaluation.sensitivity import Curves, curves, expected_increase, policies, rank_correlation, spread

__all__ = [
    "Curves",
    "Evaluator",
    "Executor",
    "PairedEvaluator",
    "ProcessExecutor",
    "SerialExecutor",
    "curves",
    "default_batch_size",
    "expected_increase",
    "policies",
    "rank_correlation",
    "spread",
    "tango_low",
]
