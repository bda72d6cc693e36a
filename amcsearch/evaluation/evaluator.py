"""Policy in, accuracy out: remove, refit, recalibrate, evaluate on the search split."""

import copy
import time

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, Evaluation, PruningPolicy
from amcsearch.evaluation.proxy import recalibrate_batch_norm
from amcsearch.evaluation.reconstruction import Reconstruction
from amcsearch.evaluation.sequential import SequentialReconstruction
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Trace
from amcsearch.methods.folding import Means, fold_means
from amcsearch.methods.ranking import Ranking, keep
from amcsearch.training.loop import evaluate

__all__ = ["Evaluator", "default_batch_size"]

_PIXELS_A_BATCH = 128 * 32 * 32  # activations of a small network still fit the caches; measured in benchmarks/


def default_batch_size(inputs: Tensor) -> int:
    """Samples a batch that a CPU likes: 128 images of 32x32 or fewer larger ones, 128 of anything else; at least 16."""
    pixels = inputs.shape[-2] * inputs.shape[-1] if inputs.ndim == 4 else 1
    return max(16, min(128, _PIXELS_A_BATCH // pixels))


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
        """The same evaluator of networks that are cut and nothing else: not refitted, not recalibrated."""
        found = copy.copy(self)
        found.bn_recalibration, found.reconstruction, found.means = False, None, None
        return found

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
