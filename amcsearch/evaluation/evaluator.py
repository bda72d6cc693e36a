"""The evaluator: from a policy to its loss and metric on the search split.

It removes channels, refits, recalibrates and evaluates.
"""

import copy
import time
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from amcsearch.core import BadInputError, Evaluation, Incumbent, PruningPolicy, described
from amcsearch.evaluation.stopping import Judge
from amcsearch.graph import (
    Batch,
    Batches,
    HeldBatches,
    MappedBatches,
    Trace,
    channels_last,
    duplicate,
    make_channels_first,
    remove,
    takes_channels_last,
)
from amcsearch.methods import Ranking, keep
from amcsearch.recovery import (
    Means,
    Reconstruction,
    SequentialReconstruction,
    fold_means,
    keeps_statistics,
    recalibrate_batch_norm,
)
from amcsearch.training import CLASS_IDS, Task, evaluate

__all__ = [
    "Evaluator",
    "check_torch_device",
    "default_batch_size",
]

_PIXELS_A_BATCH = 128 * 32 * 32  # activations of a small network still fit the caches; measured in benchmarks/


def default_batch_size(batches: Batches) -> int:
    """Return the batch size that is fast on a CPU: 128 samples, or fewer (at least 16) images larger than 32x32."""
    inputs = next(iter(batches.batched(1))).inputs.values()
    pixels = max((x.shape[-2] * x.shape[-1] for x in inputs if x.ndim == 4), default=1)
    return max(16, min(128, _PIXELS_A_BATCH // max(1, pixels)))


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
    """Evaluates policies of one network on the search split; can be sent to worker processes.

    It keeps a copy of the model: images and weights in channels-last order, which a CPU's convolutions run 1.4 to 2.1
    times as fast (benchmarks/evaluation_overhead.py), or in plain order where the forward does not run in the other.
    Every evaluation is a pure function of the policy.

    ``calibration`` None: batch norms keep their statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        ranking: Ranking,
        calibration: Batches | None,
        search: Batches,
        *,
        reconstruction: Reconstruction | SequentialReconstruction | None = None,
        torch_device: str = "cpu",
        means: Means | None = None,
        task: Task = CLASS_IDS,
    ) -> None:
        self.trace = trace
        self.ranking = ranking
        self.means = means
        self.task = task
        self.reconstruction = reconstruction
        self.model = _channels_last(duplicate(model).to(torch_device).eval())
        self._ordered = takes_channels_last(self.model, search)
        if not self._ordered:
            make_channels_first(self.model)
        self.calibration = None if calibration is None else _placed(calibration, torch_device, ordered=self._ordered)
        self.search = _placed(search, torch_device, ordered=self._ordered)
        self._judge: Judge | None = None
        self._cuts = True

    @property
    def recalibrates(self) -> bool:
        """Whether batch norms of a smaller network take their statistics anew."""
        return self.calibration is not None and keeps_statistics(self.model)

    def without_recalibration(self) -> "Evaluator":
        """The same evaluator, but batch norms keep their statistics."""
        evaluator = copy.copy(self)
        evaluator.calibration, evaluator._judge = None, None
        return evaluator

    def stopping(self, confidence: float) -> "Evaluator":
        """The same evaluator, but an evaluation stops once its policy cannot beat the incumbent, as ``Judge`` says.

        Raises:
            BadInputError: as ``Judge``.
        """
        evaluator = copy.copy(self)
        evaluator._judge = Judge(self.model, self.search, self.task, confidence)
        evaluator.search = evaluator._judge.batches  # the same samples, sent to workers once
        return evaluator

    def bare(self) -> "Evaluator":
        """The same evaluator without recovery: networks are cut, but neither refitted nor recalibrated."""
        evaluator = copy.copy(self)
        evaluator.calibration, evaluator.reconstruction, evaluator.means, evaluator._judge = None, None, None, None
        return evaluator

    def closed(self) -> "Evaluator":
        """The same evaluator without what refits a network, which may take gigabytes: it cuts no more of them."""
        evaluator = self.bare()
        evaluator.calibration, evaluator._cuts = self.calibration, False
        return evaluator

    def evaluate(self, policy: PruningPolicy, incumbent: Incumbent | None = None) -> Evaluation:
        """Return loss and metric of the policy on the search split; a loss that is not finite is returned as it is.

        An incumbent counts where the evaluator is ``stopping``.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        start = time.perf_counter()
        if self._judge is not None:
            evaluation = self._judge.evaluate(policy, incumbent, self.pruned)
            return replace(evaluation, seconds=time.perf_counter() - start)
        loss, metric = evaluate(self.pruned(policy), self.search, self.task)
        return Evaluation(metric=metric, loss=loss, seconds=time.perf_counter() - start)

    def pruned(self, policy: PruningPolicy) -> nn.Module:
        """Return a new, really smaller network of the policy, refitted and recalibrated, in eval mode.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        assert self._cuts, "a closed evaluator cuts no network; cut it before"
        kept = keep(self.trace, self.ranking, policy)
        smaller = remove(self.model, self.trace, kept).eval()
        if self._ordered:
            smaller = _channels_last(smaller)
        if self.reconstruction is not None:
            self.reconstruction.apply(smaller, kept)
        elif self.means is not None:  # a refit has taken up the means itself
            fold_means(smaller, self.trace, kept, self.means)
        if self.calibration is not None:
            recalibrate_batch_norm(smaller, self.calibration)
        return smaller


def _channels_last(model: nn.Module) -> nn.Module:
    """Put the weights of 2-D convolutions in the order in which images run fastest; ``Module.to`` refuses 3-D ones."""
    return convert_conv2d_weight_memory_format(model, torch.channels_last)


def _placed(batches: Batches, torch_device: str, *, ordered: bool) -> Batches:
    """Return the batches on a device, images in channels-last order if ``ordered``; those in memory are moved once.

    On the CPU each batch is put in order when it is read: a copy of the whole split would double its memory, and the
    first convolution would put a batch in that order anyway.
    """
    place = partial(_placed_batch, torch_device=torch_device, ordered=ordered)
    if isinstance(batches, HeldBatches) and torch.device(torch_device).type != "cpu":
        return HeldBatches(place(batches.whole), batches.batch_size)
    return MappedBatches(batches, place)


def _placed_batch(batch: Batch, torch_device: str, *, ordered: bool) -> Batch:
    return batch.to(torch_device).map(channels_last if ordered else torch.detach)
