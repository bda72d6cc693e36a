"""ThiNet: keep the channels whose sum is closest to what the next layer outputs.

Let x_c be channel c's contribution to a reader's output, and M_cd = E[x_c . x_d] (U, U) of the group's units.

    discard   grow the discarded set T: add the unit that minimises 1_T^T M 1_T; increment M_jj + 2 sum_{i in T} M_ij
    keep      grow the kept set K: add the unit with the largest (x_c^T r)^2 / |x_c|^2 of the residual r, refit all
              scales, b_K = M_KK^-1 (M1)_K  (orthogonal matching pursuit); here x_c^T r = (M1)_c - M_cK b_K

The kept channels are then reweighted: slice c of each reader is multiplied by b_c (rule ``scales``).

Luo et al., ThiNet, 2017 (arXiv 1707.06342) discards; the code of its TPAMI 2018 version keeps. Departures: M is taken
from the readers' Gram matrices, exact over all gathered rows instead of sampled output entries; contributions are
centred where the reader's constant is refitted; a group with several readers (a residual stream) sums their M, each as
a share of its output's energy, and each reader has scales of its own; layers are judged in the dense network, not one
after the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, contributions

__all__ = ["ThiNet", "greedy_discard", "greedy_keep"]


def greedy_discard(m: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the units of M (U, U), first discarded last."""
    increments, left = m.diagonal().copy(), np.ones(len(m), dtype=bool)
    discarded = []
    for _ in range(len(m)):
        j = int(np.argmin(np.where(left, increments, np.inf)))
        discarded.append(j)
        left[j] = False
        increments += 2.0 * m[:, j]
    return np.array(discarded[::-1], dtype=np.int64)


def greedy_keep(m: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the units of M (U, U), first kept first; units of no energy come last."""
    energy, target = m.diagonal(), m.sum(1)
    usable = energy > 1e-12 * energy.max(initial=0.0)
    correlation, left, kept = target.copy(), usable.copy(), []
    for _ in range(int(usable.sum())):
        gains = np.where(left, correlation**2 / np.where(usable, energy, 1.0), -1.0)
        kept.append(int(np.argmax(gains)))
        left[kept[-1]] = False
        scales = np.linalg.lstsq(m[np.ix_(kept, kept)], target[kept], rcond=None)[0]
        correlation = target - m[:, kept] @ scales
    return np.array([*kept, *np.flatnonzero(~usable)], dtype=np.int64)


_GREEDY: Final[Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.int64]]]] = {
    "discard": greedy_discard,
    "keep": greedy_keep,
}


@dataclass(frozen=True)
class ThiNet:
    """Greedy by the readers' output error, then one scale a kept channel; ``grow`` says which set grows."""

    grow: Literal["discard", "keep"] = "discard"
    refit: ClassVar[str] = "scales"
    labels: ClassVar[bool] = False

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, first kept first."""
        return {group: _GREEDY[self.grow](contributions(readers)) for group, readers in problem.readers.items()}
