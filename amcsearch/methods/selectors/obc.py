"""Optimal Brain Compression by channels: remove the channel that costs least after a refit, one after another.

With B = G^-1 (damped) of a reader's inputs, for the columns S of a unit:

    score(S) = tr(W_S (B_SS)^-1 W_S^T);   W <- W - W_S (B_SS)^-1 B_S,:;   B <- B - B_:,S (B_SS)^-1 B_S,:

The scores add up to the exact refit error of everything removed so far, so ONE pass gives the order, the error and the
weights of every kept count: W after the removal of R is W_K + W_R G_RK G_KK^-1, the rule ``least_squares``.

Frantar & Alistarh, Optimal Brain Compression, 2022 (arXiv 2208.11580), in the group form of ZipLM (Kurtic et al. 2023,
arXiv 2302.04089). Departures: a group with several readers sums their scores, each as a share of its output's energy,
and updates each; the Gram matrix is centred where the reader's constant is refitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.least_squares import DAMPING, damped, solve
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, Reader

__all__ = ["Obc", "Removal", "trace_removals"]


@dataclass(frozen=True)
class Removal:
    """One step of the trace: the unit that left, each reader's error so far, and each reader's weights now.

    ``errors[i]`` is the damped E||y - y'||^2 of reader i; ``weights[i]`` (conv_groups, C_out / conv_groups, columns), 0
    where units left. The weights are those of the running pass: clone them to keep them.
    """

    unit: int
    errors: tuple[float, ...]
    weights: tuple[Tensor, ...]


def trace_removals(readers: Sequence[Reader], damping: float = DAMPING) -> Iterator[Removal]:
    """Yield removals, one a unit, from the dense group to the empty one.

    Raises:
        BadInputError: a Gram matrix that is singular in spite of the damping.
    """
    weights = [reader.weight.clone() for reader in readers]
    inverses = [_inverse(damped(reader.inputs.gram, damping)) for reader in readers]
    shares = [1.0 / (reader.energy or 1.0) for reader in readers]
    errors = [0.0] * len(readers)
    left = list(range(len(readers[0].columns)))
    while left:
        scores = [_scores(w, b, r.columns[left]) for w, b, r in zip(weights, inverses, readers, strict=True)]
        total = torch.stack([score * share for score, share in zip(scores, shares, strict=True)]).sum(0)
        place = int(total.argmin())
        unit = left.pop(place)
        for i, reader in enumerate(readers):
            errors[i] += float(scores[i][place])
            _remove(weights[i], inverses[i], reader.columns[unit])
        yield Removal(unit, tuple(errors), tuple(weights))


def _inverse(gram: Tensor) -> Tensor:
    return solve(gram, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram))


def _scores(weight: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    """tr(W_S (B_SS)^-1 W_S^T) of units that own columns (U, w), summed over conv groups: (U,)."""
    blocks = inverse[:, columns[:, :, None], columns[:, None, :]]  # (g, U, w, w)
    slices = weight[:, :, columns].permute(0, 2, 3, 1)  # (g, U, w, O)
    scores: Tensor = (slices * torch.linalg.solve(blocks, slices)).sum((0, 2, 3))
    return scores


def _remove(weight: Tensor, inverse: Tensor, columns: Tensor) -> None:
    """Update W (g, O, D) and B (g, D, D) in place for the removal of some columns; their entries become exactly 0."""
    rows = torch.linalg.solve(inverse[:, columns][:, :, columns], inverse[:, columns])  # (B_SS)^-1 B_S,: (g, w, D)
    weight -= weight[:, :, columns] @ rows
    inverse -= inverse[:, :, columns] @ rows
    weight[:, :, columns] = 0.0
    inverse[:, columns] = 0.0
    inverse[:, :, columns] = 0.0


@dataclass(frozen=True)
class Obc:
    """Greedy removal by the exact error after least squares, in one pass over all counts.

    Raises:
        BadInputError: damping below 0.
    """

    damping: float = DAMPING
    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.damping >= 0.0:
            raise BadInputError(f"obc: damping = {self.damping}, must be at least 0 ({DAMPING} as a rule)")

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, last removed first."""
        traces = {g: [step.unit for step in trace_removals(r, self.damping)] for g, r in problem.readers.items()}
        return {group: np.array(units[::-1], dtype=np.int64) for group, units in traces.items()}
