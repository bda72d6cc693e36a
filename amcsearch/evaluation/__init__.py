"""From a policy to what it is worth: prune, recalibrate, evaluate; here or in worker processes."""

from amcsearch.evaluation.evaluator import Evaluator, default_batch_size
from amcsearch.evaluation.executors import Executor, ProcessExecutor, SerialExecutor
from amcsearch.evaluation.proxy import recalibrate_batch_norm
from amcsearch.evaluation.sensitivity import Curve, Curves, curves

__all__ = [
    "Curve",
    "Curves",
    "Evaluator",
    "Executor",
    "ProcessExecutor",
    "SerialExecutor",
    "curves",
    "default_batch_size",
    "recalibrate_batch_norm",
]
