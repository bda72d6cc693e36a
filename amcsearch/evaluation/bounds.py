"""Confidence bounds of paired gains: how much better one network is than another on the same samples.

Three cases, by what the task's metric is:

RIGHT OR WRONG. Only predictions that change count: w became right, l became wrong. With one target a sample the bound
is Tango's (1998, Statistics in Medicine 17:891): the lowest difference d that the score test

    z(d) = (w - l - n·d) / sqrt(n·(2q + d - d²)),   q the likeliest share of losses if the difference is d

does not reject. Unlike a bootstrap's, this bound stays below zero where no prediction changed: then it is -z²/(n + z²),
because n samples can show no more.

A MEAN OVER SAMPLES (shares of sequences, squared errors): a bootstrap over samples, because positions of one sample are
not independent.

NO MEAN OVER SAMPLES (mIoU, F1, R², perplexity): a jackknife that leaves out one of G groups of samples at a time.
With d_g the gain without group g and d the gain on all,

    low = d - t·sqrt((G - 1)/G · sum_g (d_g - mean d_g)²),   t the quantile of Student's t with G - 1 degrees of freedom

(Shao & Tu 1995, The Jackknife and Bootstrap, section 2.3). It asks for nothing but the metric itself.
"""

from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["change_low", "jackknife_low", "tango_low"]

Array = NDArray[np.float64]
_BOOTSTRAPS: Final = 2000
_HALVINGS: Final = 60


def jackknife_low(gains: Array, confidence: float) -> float:
    """One-sided lower bound of the first of ``gains`` (1 + G,), by those without one group at a time, the others."""
    from scipy.stats import t  # a second of imports that few runs need

    whole, without = gains[0], gains[1:]
    groups = len(without)
    deviation = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    return float(whole - t.ppf(confidence, groups - 1) * deviation)


def change_low(differences: Array, confidence: float, *, outcomes: bool = True) -> float:
    """One-sided lower confidence bound of the mean of paired differences (n,).

    ``outcomes`` says that values are shares: where all are 0 or 1 the bound is Tango's.
    """
    if outcomes and np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return tango_low(int((differences > 0).sum()), int((differences < 0).sum()), len(differences), confidence)
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(_BOOTSTRAPS)]
    return float(np.quantile(means, 1.0 - confidence))


def tango_low(won: int, lost: int, samples: int, confidence: float) -> float:
    """Tango's one-sided lower bound of (won - lost) / samples, by bisection: z(d) falls as d rises."""
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (won - lost) / samples
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _score(won, lost, samples, middle) > z else (low, middle)
    return low


def _score(won: int, lost: int, samples: int, difference: float) -> float:
    """z(d); the share q of losses maximises the likelihood: a root of 2n·q² + b·q - l·d·(1 - d) = 0."""
    b = -won - lost + (2 * samples - won + lost) * difference
    c = -lost * difference * (1.0 - difference)
    share = ((b * b - 8.0 * samples * c) ** 0.5 - b) / (4.0 * samples)
    variance = samples * (2.0 * share + difference * (1.0 - difference))
    return float((won - lost - samples * difference) / max(variance, 1e-300) ** 0.5)
