"""Do the losses of single groups add up? Joint losses of policies beside the sums that sensitivity curves give.

    expected(policy) = sum over groups of loss_g(n_keep_g) - dense loss, between a curve's points on a line

They need not, least of all where much is removed. Their rank correlation says how far the curves may be trusted to
order whole policies, as whatever searches on per-group losses does.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from amcsearch.core import PruningPolicy
from amcsearch.evaluation.sensitivity import Curves

__all__ = ["expected_increase", "rank_correlation"]


def expected_increase(curves: Curves, policy: PruningPolicy) -> float:
    """Increase of the loss over the dense network's, nats, if groups did not matter to each other."""
    return sum(
        float(np.interp(policy[name], curve.kept, curve.loss)) - float(curve.loss[-1]) for name, curve in curves.items()
    )


def rank_correlation(expected: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's correlation of increases over policies, (P,) each; None where fewer than three differ."""
    if min(len(set(expected)), len(set(measured))) < 3:
        return None
    return float(spearmanr(expected, measured)[0])
