"""Fisher's ratio: score a channel by how well it alone separates the classes.

    J_c = sum_k n_k (mu_ck - mu_c)^2 / sum_k n_k var_ck

of channel c averaged over positions, with mean mu_ck and variance var_ck in class k of n_k samples. Fisher, The Use of
Multiple Measurements in Taxonomic Problems, 1936 (no arXiv id). Blind to what other channels already say, and to what
the readers do with it; it is a cheap stand-in for discrimination-aware pruning, never the same. Kept channels are
refitted by least squares.

A unit of several channels (a head, one of each conv group, a flattened map) has the mean of theirs, a group with
several readers the mean over readers. With targets (N, T) every token is a sample.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from amcsearch.methods.layer_inputs import ClassMoments
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, Reader

__all__ = ["FisherRatio", "fisher_ratio"]


def fisher_ratio(moments: ClassMoments) -> Tensor:
    """Return J (C,), 0 for a channel that never varies; classes without samples count for nothing."""
    counts, sums = moments.counts[:, None], moments.sums  # (K, 1), (K, C)
    mean = sums.sum(0) / counts.sum()
    means = sums / counts.clamp_min(1.0)
    between = (counts * (means - mean).square()).sum(0)
    within = moments.squares - (counts * means.square()).sum(0)
    total = moments.squares - counts.sum() * mean.square()
    floor = 1e-12 * moments.squares  # what rounding leaves of a variance of 0
    return torch.where(total > floor, between / torch.maximum(within, floor).clamp_min(1e-300), 0.0)


@dataclass(frozen=True)
class FisherRatio:
    """Class separation of a channel's mean activation, then least squares."""

    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = True

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, best separating first."""
        scores = {
            group: torch.stack([_of_units(r) for r in readers]).mean(0) for group, readers in problem.readers.items()
        }
        return {group: np.argsort(-score.numpy(), kind="stable").astype(np.int64) for group, score in scores.items()}


def _of_units(reader: Reader) -> Tensor:
    assert reader.inputs.classes is not None
    taps, ratio = reader.inputs.taps, fisher_ratio(reader.inputs.classes)
    each = ratio.reshape(len(reader.inputs.mean), -1).mean(0)  # (C_in / conv_groups,)
    return each[reader.columns[:, ::taps] // taps].mean(1)
