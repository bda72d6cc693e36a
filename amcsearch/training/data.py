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
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Batches, HeldBatches, evaluating, first_tensor
from amcsearch.training.cuts import stratified
from amcsearch.training.reading import batches_of
from amcsearch.training.splits import SPLITS, Changed, DataSplits, Held, Samples, is_in_memory, read
from amcsearch.training.task import Task

__all__ = ["DATASETS", "dense_outputs", "digits", "text", "with_dense_targets"]


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


@dataclass(frozen=True)
class _WithOutputs:
    """Puts the outputs of a network in place of the targets of a batch."""

    model: nn.Module
    task: Task | None

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, targets=_outputs(self.model, batch, self.task))


def with_dense_targets(splits: DataSplits, model: nn.Module, task: Task | None = None) -> DataSplits:
    """Return the splits with the outputs of ``model`` that the task judges in place of their targets.

    They are computed once for samples in memory, else whenever samples are read.

    Raises:
        BadInputError: as ``batches_of``.
    """
    return DataSplits(**{name: _with_dense_targets(getattr(splits, name), model, task, name) for name in SPLITS})


def _with_dense_targets(dataset: Samples, model: nn.Module, task: Task | None, name: str) -> Samples:
    if not is_in_memory(dataset):
        return Changed(dataset, _WithOutputs(model, task))
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
