"""Data factories that need no download, and the splits cut from any factory's result."""

import re
from typing import Final, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from amcsearch.core import BadInputError
from amcsearch.training.checks import check_samples, check_splits
from amcsearch.training.splits import (
    DataSplits,
    Samples,
    fetch,
    make_splits,
    stacked,
    stratified,
)

__all__ = [
    "DATASETS",
    "DataSplits",
    "check_samples",
    "check_splits",
    "digits",
    "fetch",
    "make_splits",
    "stacked",
    "text",
]

BYTES: Final = 256


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
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)  # (N, 1, 8, 8)
    images = F.interpolate(images, (size, size), mode=interpolation)
    labels = torch.from_numpy(bunch.target).long()
    order = np.arange(len(labels), dtype=np.int64)
    chosen = stratified(order, labels.numpy(), round(test_share * len(labels)), np.random.default_rng(seed))
    rest = np.setdiff1d(order, chosen)
    images = (images - images[rest].mean()) / images[rest].std()
    return {name: TensorDataset(images[i], labels[i]) for name, i in (("train", rest), ("test", chosen))}


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
