"""Pictures that are made when they are asked for, as those of files are; counts how many and what memory they take."""

import atexit
import contextlib
import gc
import json
import resource
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset


class Pictures(Dataset[Any]):
    """Noise with one bright quadrant, (1, 8, 8); the class is which."""

    reads = 0

    def __init__(self, samples: int, first: int = 0) -> None:
        self.samples, self.first = samples, first

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        Pictures.reads += 1
        number = self.first + index
        picture, label = 0.5 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(number)), number % 4
        row, column = divmod(label, 2)
        picture[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
        return picture, label


class Stream(IterableDataset[Any]):
    """The same pictures one after the other."""

    def __init__(self, samples: int, first: int = 0) -> None:
        self.pictures = Pictures(samples, first)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self.pictures[i] for i in range(len(self.pictures)))


class Widths(Pictures):
    """Pictures of three widths."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = super().__getitem__(index)
        return F.pad(picture, (0, index % 3)), label


def network() -> nn.Module:
    """Two convolutions and a linear head for the four classes, of pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def splits(samples: int, report: str | None = None) -> dict[str, Dataset[Any]]:
    """One train split; at the end of the process the file ``report`` says what was read, and the peak memory in KiB."""
    if report is not None:
        atexit.register(_report, Path(report))
    return {"train": Pictures(samples)}


def streams(samples: int, report: str | None = None) -> dict[str, Dataset[Any]]:
    """Streams of all splits; ``report`` as of ``splits``."""
    if report is not None:
        atexit.register(_report, Path(report))
    return {"train": Stream(samples), "val": Stream(64, samples), "test": Stream(64, samples + 64)}


def widths(samples: int) -> dict[str, Dataset[Any]]:
    """Pictures of three widths."""
    return {"train": Widths(samples)}


def padded(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch of pictures, as wide as the widest of them."""
    width = max(picture.shape[-1] for picture, _ in items)
    pictures = [F.pad(picture, (0, width - picture.shape[-1])) for picture, _ in items]
    return torch.stack(pictures), torch.tensor([label for _, label in items])


def peaks_of_training(kind: str, sizes: list[int], batches: int = 40) -> list[dict[str, int]]:
    """Peak memory in KiB of this process, and of its largest reading process, after the first batches of trainings.

    One training after the other, of so many samples each; ``kind`` of data is map, workers or stream.
    """
    from amcsearch.core import BadInputError
    from amcsearch.training import Items, TrainingRecipe, fit

    def stop(batch: Any, counted: Iterator[int]) -> Any:
        if next(counted) == batches:
            raise BadInputError("enough")
        return batch

    peaks = []
    for samples in sizes:
        data = Stream(samples) if kind == "stream" else Pictures(samples)
        items = Items(data, workers=2 * (kind == "workers"), epoch_samples=samples if kind == "stream" else None)
        with contextlib.suppress(BadInputError):
            fit(
                network(),
                items,
                TrainingRecipe(1, 0.01, batch_size=16),
                seed=0,
                augmentation=partial(stop, counted=count()),
            )
        gc.collect()  # the loader of a broken training, which ends its processes
        who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        here, workers = (resource.getrusage(each).ru_maxrss for each in who)
        peaks.append({"here": here, "workers": workers})
    return peaks


def _report(path: Path) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_text(json.dumps({"reads": Pictures.reads, "peak_kib": peak}))
