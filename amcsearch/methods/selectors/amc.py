"""AMC's own pruning: the channels of the largest L1 norm in the layer that reads them, then least squares.

    score_c = sum over readers of |W_c|_1 / |W|_1;   W_K* = W_K + W_R G_RK G_KK^-1

He et al., AMC, 2018 (arXiv 1802.03494) prunes so inside every step of its search, without fine-tuning. Departures: the
Gram matrix is gathered once in the dense network instead of from the network pruned so far; a group with several
readers sums their norms, each as a share of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, Reader

__all__ = ["Amc"]


@dataclass(frozen=True)
class Amc:
    """L1 norm of what reads the channel, then least squares."""

    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, largest norm first."""
        scores = {group: torch.stack([_share(r) for r in readers]).sum(0) for group, readers in problem.readers.items()}
        return {group: np.argsort(-score.numpy(), kind="stable").astype(np.int64) for group, score in scores.items()}


def _share(reader: Reader) -> torch.Tensor:
    norms = reader.weight.abs().sum((0, 1))  # (columns,)
    return norms[reader.columns].sum(1) / norms.sum().clamp_min(torch.finfo(norms.dtype).tiny)
