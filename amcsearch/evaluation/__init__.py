"""Evaluation of a policy: prune, recalibrate, measure loss and metric; in this process, in workers or on a cluster."""

from amcsearch.evaluation.bounds import tango_low
from amcsearch.evaluation.evaluator import Evaluator, check_torch_device, default_batch_size
from amcsearch.evaluation.executors import Engine, Executor, ProcessExecutor, SerialExecutor
from amcsearch.evaluation.output_errors import errors_at_outputs, looked_at
from amcsearch.evaluation.paired import PairedEvaluator, judge_recalibration
from amcsearch.evaluation.sensitivity import (
    Curves,
    check_points,
    curves,
    expected_increase,
    policies,
    rank_correlation,
    spread,
)
from amcsearch.evaluation.worker import NO_INCUMBENTS, Incumbents, PolicySource, pickled

__all__ = [
    "NO_INCUMBENTS",
    "Curves",
    "Engine",
    "Evaluator",
    "Executor",
    "Incumbents",
    "PairedEvaluator",
    "PolicySource",
    "ProcessExecutor",
    "SerialExecutor",
    "check_points",
    "check_torch_device",
    "curves",
    "default_batch_size",
    "errors_at_outputs",
    "expected_increase",
    "judge_recalibration",
    "looked_at",
    "pickled",
    "policies",
    "rank_correlation",
    "spread",
    "tango_low",
]
