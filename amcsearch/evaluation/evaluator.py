"""Evaluators: from a policy to its accuracy, on the search split.

``Evaluator`` removes channels, refits, recalibrates and evaluates. ``PairedEvaluator`` compares a pruned network with
the dense one sample by sample, and gives a lower confidence bound of the change.

Both networks see the same n samples, so only predictions that change count: w became right, l became wrong. With one
target a sample the bound is Tango's (1998, Statistics in Medicine 17:891): the lowest difference d that the score test

    z(d) = (w - l - n·d) / sqrt(n·(2q + d - d²)),   q the likeliest share of losses if the difference is d

does not reject. Unlike a bootstrap's, this bound stays below zero where no prediction changed: then it is -z²/(n + z²),
because n samples can show no more. Samples of several targets (sequences) give shares. For them the bound comes from a
bootstrap over samples, because positions of one sequence are not independent.
"""

import copy
import time
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, Evaluation, PruningPolicy, described
from amcsearch.graph import Trace, evaluating, remove
from amcsearch.methods import Ranking, keep
from amcsearch.recovery import Means, Reconstruction, SequentialReconstruction, fold_means, recalibrate_batch_norm
from amcsearch.training import evaluate, rightness

__all__ = [
    "Evaluator",
    "PairedEvaluator",
    "change_low",
    "check_torch_device",
    "default_batch_size",
    "sample_accuracy",
    "tango_low",
]

_PIXELS_A_BATCH = 128 * 32 * 32  # activations of a small network still fit the caches; measured in benchmarks/


def default_batch_size(inputs: Tensor) -> int:
    """Return the batch size that is fast on a CPU: 128 samples, or fewer (at least 16) images larger than 32x32."""
    pixels = inputs.shape[-2] * inputs.shape[-1] if inputs.ndim == 4 else 1
    return max(16, min(128, _PIXELS_A_BATCH // pixels))


def check_torch_device(name: str) -> None:
    """Refuse a device on which torch cannot compute here.

    Raises:
        BadInputError: no device of torch, or one that this machine or this build of torch lacks; lists those there are.
    """
    usable = _torch_devices()
    cure = f"; choose one of {', '.join(map(str, usable))}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInputError(f"evaluation.torch_device = {name!r} is no device of torch{cure}") from error
    if not any(device == other or (device.index is None and device.type == other.type) for other in usable):
        raise BadInputError(f"evaluation.torch_device = {name!r} is not available here{cure}")
    try:
        torch.ones(1, device=device).add(1.0).cpu()
    except (RuntimeError, AssertionError) as error:  # a driver that is too old, or a device that is taken
        raise BadInputError(f"evaluation.torch_device = {name!r} cannot be used: {described(error)}{cure}") from error


def _torch_devices() -> list[torch.device]:
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    return [torch.device("cpu"), *(torch.device(kind, n) for kind, count in counts.items() for n in range(count))]


class Evaluator:
    """Evaluates policies of one network on data held in memory; can be sent to worker processes.

    It keeps a copy of the model: images and weights in channels-last order, which a CPU's convolutions run 1.4 to 2.1
    times as fast (benchmarks/evaluation_overhead.py). Every evaluation is a pure function of the policy.

    Raises:
        BadInputError: empty calibration (where recalibration is asked for) or search data, unequal lengths, or a batch
            size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        ranking: Ranking,
        calibration: Tensor,
        search: tuple[Tensor, Tensor],
        *,
        batch_size: int | None = None,
        bn_recalibration: bool = True,
        reconstruction: Reconstruction | SequentialReconstruction | None = None,
        torch_device: str = "cpu",
        means: Means | None = None,
    ) -> None:
        self.trace = trace
        self.ranking = ranking
        self.means = means
        self.bn_recalibration = bn_recalibration
        self.reconstruction = reconstruction
        self.batch_size = default_batch_size(search[0]) if batch_size is None else batch_size
        _check(calibration if bn_recalibration else None, search, self.batch_size)
        self.model = _channels_last(copy.deepcopy(model).to(torch_device).eval())
        self.calibration = _images_last(calibration.detach().to(torch_device))
        self.inputs = _images_last(search[0].detach().to(torch_device))
        self.targets = search[1].detach().to(torch_device)

    def bare(self) -> "Evaluator":
        """The same evaluator without recovery: networks are cut, but neither refitted nor recalibrated."""
        evaluator = copy.copy(self)
        evaluator.bn_recalibration, evaluator.reconstruction, evaluator.means = False, None, None
        return evaluator

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        """Return loss and accuracy of the policy on the search split; a loss that is not finite is returned as it is.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        start = time.perf_counter()
        loss, accuracy = evaluate(self.pruned(policy), self.inputs, self.targets, self.batch_size)
        return Evaluation(accuracy=accuracy, loss=loss, seconds=time.perf_counter() - start)

    def pruned(self, policy: PruningPolicy) -> nn.Module:
        """Return a new, really smaller network of the policy, refitted and recalibrated, in eval mode.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        kept = keep(self.trace, self.ranking, policy)
        smaller = _channels_last(remove(self.model, self.trace, kept)).eval()
        if self.reconstruction is not None:
            self.reconstruction.apply(smaller, kept)
        elif self.means is not None:  # a refit has taken up the means itself
            fold_means(smaller, self.trace, kept, self.means)
        if self.bn_recalibration:
            recalibrate_batch_norm(smaller, self.calibration, self.batch_size)
        return smaller


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _images_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _check(calibration: Tensor | None, search: tuple[Tensor, Tensor], batch_size: int) -> None:
    if calibration is not None and len(calibration) == 0:
        raise BadInputError("0 calibration samples, at least 1 (better 1000) are needed to recalibrate batch norms")
    if len(search[0]) == 0 or len(search[0]) != len(search[1]):
        raise BadInputError(
            f"search split: {len(search[0])} inputs and {len(search[1])} targets; they must be as many, at least 1"
        )
    if batch_size < 1:
        raise BadInputError(f"evaluation batch size = {batch_size}, must be at least 1")


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
    shares = []
    with evaluating(model), torch.inference_mode():
        for x, y in zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True):
            right, known = (part.reshape(len(y), -1) for part in rightness(model(x), y))
            share = right.sum(1).double() / known.sum(1)
            shares.append(share[known.any(1)].cpu())
    return np.asarray(torch.cat(shares))


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
