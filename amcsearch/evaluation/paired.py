"""What pruning does to accuracy, sample by sample beside the dense network, with a lower confidence bound.

Both networks answer the same samples, so that only answers that change count: w samples won, l lost of n. With one
target a sample the bound is Tango's (1998, Statistics in Medicine 17:891): the lowest difference d that the score test

    z(d) = (w - l - n·d) / sqrt(n·(2q + d - d²)),   q the likeliest share of losses if the difference is d

does not reject. Unlike a bootstrap it stays below zero where no answer changed: then it is -z²/(n + z²), for n samples
can show no more. Samples of several targets (sequences) give shares instead: there the bound is a bootstrap's, over
samples, since positions of one sequence are not independent.
"""

import time
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, Evaluation, PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph.modes import evaluating
from amcsearch.training.loop import evaluate
from amcsearch.training.losses import rightness

__all__ = ["PairedEvaluator", "change_low", "sample_accuracy", "tango_low"]

Array = NDArray[np.float64]
_BOOTSTRAPS: Final = 2000
_HALVINGS: Final = 60


class PairedEvaluator:
    """Evaluates policies as ``evaluator`` does, on some ``rows`` (n,) of its search split, paired with dense.

    Raises:
        BadInputError: no rows.
    """

    def __init__(self, evaluator: Evaluator, rows: NDArray[np.int64], confidence: float) -> None:
        if not len(rows):
            raise BadInputError("paired evaluation: 0 samples, at least 1 is needed; raise data.splits.search")
        self.samples = len(rows)
        self.confidence = confidence
        self._evaluator = evaluator
        index = torch.from_numpy(rows).to(evaluator.inputs.device)
        self._inputs, self._targets = evaluator.inputs[index], evaluator.targets[index]
        self._dense = self._accuracies(evaluator.model)

    @property
    def dense_accuracy(self) -> float:
        """Accuracy of the dense network on these rows, the mean over samples."""
        return float(self._dense.mean())

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        """As ``Evaluator.evaluate``, with the lower bound of accuracy minus the dense network's.

        Accuracy is the mean over samples here, also where sequences have more or fewer targets.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        start = time.perf_counter()
        pruned = self._evaluator.pruned(policy)
        loss, _ = evaluate(pruned, self._inputs, self._targets, self._evaluator.batch_size)
        right = self._accuracies(pruned)
        low = change_low(right - self._dense, self.confidence)
        return Evaluation(float(right.mean()), loss, time.perf_counter() - start, low)

    def _accuracies(self, model: nn.Module) -> Array:
        return sample_accuracy(model, self._inputs, self._targets, self._evaluator.batch_size)


def sample_accuracy(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> Array:
    """How right the predictions of every sample that has a target are, (n,): 0 or 1 where each has one label."""
    found = []
    with evaluating(model), torch.inference_mode():
        for x, y in zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True):
            right, known = (part.reshape(len(y), -1) for part in rightness(model(x), y))
            share = right.sum(1).double() / known.sum(1)
            found.append(share[known.any(1)].cpu())
    return np.asarray(torch.cat(found))


def change_low(differences: Array, confidence: float) -> float:
    """One-sided lower confidence bound of the mean of paired differences (n,), each in [-1, 1]."""
    if np.isin(differences, (-1.0, 0.0, 1.0)).all():
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
