"""Recovery after removal: batch-norm statistics, biases, scales and weights fitted by least squares."""

from amcsearch.recovery.batch_norm import keeps_statistics, recalibrate_batch_norm
from amcsearch.recovery.bias import Means, fold_means, means_for
from amcsearch.recovery.refit import Reconstruction
from amcsearch.recovery.sequential import SequentialReconstruction

__all__ = [
    "Means",
    "Reconstruction",
    "SequentialReconstruction",
    "fold_means",
    "keeps_statistics",
    "means_for",
    "recalibrate_batch_norm",
]
