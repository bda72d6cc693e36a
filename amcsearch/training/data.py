"""Data: factories that need no download, and targets from the dense network.

``with_dense_targets`` serves data without labels: the dense network's own outputs become the targets.

    loss = 1 - mean cos(f(x), f_dense(x)),  accuracy = mean cos(f(x), f_dense(x))

These are the targets of knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531), taken once. An
embedding is used for its direction, so its length is left free. At the dense network the loss and its gradient are
exactly 0 for every sample: criteria of that gradient (Taylor, the empirical Fisher) order nothing. The second
derivatives there are J' P J / |f|^2, J the outputs' Jacobian and P the projection across f: positive, and given by
``obd`` as well as by ``true_fisher``, whose drawn labels are outputs with noise.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from amcsearch.core import MIB, BadInputError
from amcsearch.graph import Batch, Batches, HeldBatches, evaluating, first_tensor
from amcsearch.training.collation import has_only_numbers
from amcsearch.training.cuts import stratified
from amcsearch.training.reading import batches_of
from amcsearch.training.splits import (
    MEMORY_MIB,
    SPLITS,
    Changed,
    DataSplits,
    Held,
    Samples,
    is_in_memory,
    length,
    read,
)
from amcsearch.training.surveys import sample_digests
from amcsearch.training.task import Task

__all__ = ["DATASETS", "are_outputs_kept", "dense_outputs", "digits", "text", "with_dense_targets"]

_KEY_BYTES: Final = 256  # a kept sample's digest, its entry, and the tensor beside its numbers


def dense_outputs(
    model: nn.Module, samples: Tensor | Batches, batch_size: int = 128, task: Task | None = None
) -> Tensor:
    """Return the model's outputs (N, …, D) for samples, on the CPU; it runs in eval mode where it is."""
    batches = HeldBatches.of(samples, None, batch_size) if isinstance(samples, Tensor) else samples
    return torch.cat([_outputs(model, batch, task) for batch in batches])


def _outputs(model: nn.Module, batch: Batch, task: Task | None) -> Tensor:
    torch_device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        output = batch.to(torch_device).through(model)
        return (task.dense_targets(output) if task else first_tensor(output)).cpu()


class _WithOutputs:
    """Puts the outputs of a network in place of the targets of a batch; computed once for a sample, where they fit.

    They are kept by a digest of the sample's inputs, for the next epoch and the next training. More than ``samples``
    different ones are those of a random transform: nothing is kept then. Which samples stand beside another in a batch
    changes at most the last bits of its outputs.

    Args:
        model: the network, in whatever mode.
        task: says which of its outputs count; None takes the first tensor.
        samples: of the split.
        most_bytes: of the outputs of all samples; nothing is kept of more.
    """

    def __init__(self, model: nn.Module, task: Task | None, samples: int, most_bytes: float) -> None:
        self.model, self.task, self.samples, self.most_bytes = model, task, samples, most_bytes
        self._kept: dict[bytes, Tensor] | None = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # another process keeps what it computes

    def __call__(self, batch: Batch) -> Batch:
        digests = None if self._kept is None else _digests(batch)
        if self._kept is None or digests is None:
            return replace(batch, targets=_outputs(self.model, batch, self.task))
        if all(digest in self._kept for digest in digests):
            return replace(batch, targets=torch.stack([self._kept[digest] for digest in digests]))
        outputs = _outputs(self.model, batch, self.task)
        self._keep(digests, outputs)
        return replace(batch, targets=outputs)

    def _keep(self, digests: Sequence[bytes], outputs: Tensor) -> None:
        """Keep the outputs (n, …) of samples that are not known yet, or none any more."""
        assert self._kept is not None
        whole = outputs if outputs.untyped_storage().nbytes() == outputs.nbytes else outputs.clone()
        fits = len(whole) == len(digests) and are_outputs_kept(whole, self.samples, self.most_bytes)
        for digest, row in zip(digests, whole, strict=False):
            self._kept.setdefault(digest, row)
        if not fits or len(self._kept) > self.samples:
            self._kept = None


def are_outputs_kept(outputs: Tensor, samples: int, most_bytes: float) -> bool:
    """Whether outputs like those of some samples (n, …) take at most ``most_bytes`` for so many samples."""
    return (outputs[0].nbytes + _KEY_BYTES) * samples <= most_bytes


def _digests(batch: Batch) -> list[bytes] | None:
    """Digests of the samples; None where something else than tensors of samples decides their outputs."""
    return sample_digests(batch) if has_only_numbers([*batch.args, *batch.kwargs.values()]) else None


def with_dense_targets(
    splits: DataSplits, model: nn.Module, task: Task | None = None, *, memory_mib: float = MEMORY_MIB
) -> DataSplits:
    """Return the splits with the outputs of ``model`` that the task judges in place of their targets.

    They are computed once for samples in memory. Of a split that is read at every use they are computed when a sample
    is read first, and kept where those of the whole split take at most ``memory_mib``.

    Raises:
        BadInputError: as ``batches_of``.
    """
    most_bytes = memory_mib * MIB
    return DataSplits(
        **{name: _with_dense_targets(getattr(splits, name), model, task, name, most_bytes) for name in SPLITS}
    )


def _with_dense_targets(dataset: Samples, model: nn.Module, task: Task | None, name: str, most_bytes: float) -> Samples:
    if not is_in_memory(dataset):
        return Changed(dataset, _WithOutputs(model, task, length(dataset, name), most_bytes))
    batches = batches_of(dataset, name=name)
    whole = batches.whole if isinstance(batches, HeldBatches) else read(dataset, range(batches.samples), name)
    return Held(replace(whole, targets=dense_outputs(model, batches, task=task)))


def digits(
    size: int = 32, interpolation: Literal["bilinear", "nearest"] = "bilinear", test_share: float = 0.2, seed: int = 0
) -> dict[str, Samples]:
    """Scikit-learn's 1,797 handwritten digits (8x8, 16 grey levels) as float32 images (1, size, size), 10 classes.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI repository. Pixels are standardised by the
    mean and deviation of the train split; both splits keep the class shares.

    Args:
        size: side of the image in pixels.
        interpolation: how 8x8 becomes size x size.
        test_share: share of the samples in the test split.
        seed: of the split.

    Returns:
        ``train`` and ``test``.

    Raises:
        BadInputError: a size below 8, an unknown interpolation, or a share outside (0, 1).
    """
    if size < 8 or interpolation not in ("bilinear", "nearest"):
        raise BadInputError(
            f"size = {size}, interpolation = {interpolation!r}: expected at least 8, and bilinear or nearest"
        )
    if not 0.0 < test_share < 1.0:
        raise BadInputError(f"test_share = {test_share}, must be between 0 and 1")
    from sklearn.datasets import load_digits  # more than a second, only for those who ask for these data

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)  # (N, 1, 8, 8)
    images = F.interpolate(images, (size, size), mode=interpolation)
    labels = torch.from_numpy(bunch.target).long()
    order = np.arange(len(labels), dtype=np.int64)
    chosen = stratified(order, labels.numpy(), round(test_share * len(labels)), np.random.default_rng(seed))
    remaining = np.setdiff1d(order, chosen)
    images = (images - images[remaining].mean()) / images[remaining].std()
    return {name: TensorDataset(images[i], labels[i]) for name, i in (("train", remaining), ("test", chosen))}


def text(context: int = 64, search_share: float = 0.1, test_share: float = 0.1) -> dict[str, Samples]:
    """The Python manual that ships with Python (``pydoc_data.topics``), as byte windows for a language model.

    A sample is ``context`` bytes as int64 and the ``context`` bytes that follow each of them. The splits are contiguous
    regions of the text and windows do not overlap. A paragraph that appears under several topics is kept once, or a
    fifth of the text would stand on both sides of a cut. The text differs a little between Python versions.

    Args:
        context: bytes in a window.
        search_share: share of the text, the last but one region.
        test_share: share of the text, the last region.

    Returns:
        ``train``, ``search`` and ``test``.

    Raises:
        BadInputError: shares outside (0, 1) or leaving no train split, or a context longer than a region.
    """
    if min(search_share, test_share) <= 0.0 or search_share + test_share >= 1.0:
        raise BadInputError(
            f"search_share = {search_share}, test_share = {test_share}: "
            "both must be above 0 and leave a share for the train split"
        )
    from pydoc_data.topics import topics  # half a megabyte of text, read only when asked for

    paragraphs = [part for name in sorted(topics) for part in re.split(r"\n{2,}", topics[name].strip("\n"))]
    once = "\n\n".join(dict.fromkeys(paragraphs))
    data = np.frombuffer(once.encode(), dtype=np.uint8)
    cuts = [round(len(data) * share) for share in (1.0 - search_share - test_share, 1.0 - test_share)]
    regions = np.split(data, cuts)
    return {name: _windows(region, context) for name, region in zip(("train", "search", "test"), regions, strict=True)}


def _windows(region: np.ndarray[tuple[int], np.dtype[np.uint8]], context: int) -> TensorDataset:
    """Cut N = (bytes - 1) // context windows: inputs (N, context) and targets one byte later, both int64."""
    count = (len(region) - 1) // context if context >= 1 else 0
    if count < 1:
        raise BadInputError(f"context = {context}, must be from 1 to {len(region) - 1}, the bytes of a split")
    tokens = torch.from_numpy(region[: count * context + 1].astype(np.int64))
    return TensorDataset(tokens[:-1].view(count, context), tokens[1:].view(count, context))


DATASETS: Final = {"digits": digits, "text": text}
