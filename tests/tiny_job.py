"""A network and a data set of seconds: factories for end-to-end tests, named in configurations as file.py:callable."""

import os
import signal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def network(num_classes: int = 4) -> nn.Module:
    """Three convolutions with a residual add, batch norm, and a linear head for 1x8x8 images."""
    return Tiny(num_classes)


def broader(num_classes: int = 4) -> nn.Module:
    """The same with more hidden channels."""
    return Tiny(num_classes, hidden=40)


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(16, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


def quadrants(samples: int = 400, seed: int = 0) -> dict[str, TensorDataset]:
    """Noise with one bright quadrant; the class is which."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(samples, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
    return {"train": TensorDataset(images, labels)}


class Fatal(Tiny):
    """Kills its own process with SIGKILL at the N-th forward pass, N in the environment."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            Fatal.passes += 1
        if Fatal.passes == int(os.environ.get("TINY_JOB_DIES_AT", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def fatal(num_classes: int = 4) -> nn.Module:
    """The network, in a process that may not live long."""
    return Fatal(num_classes)


def broken() -> nn.Module:
    """Raise."""
    raise RuntimeError("no weights today")


def not_a_module() -> dict[str, int]:
    """Return something else."""
    return {"layers": 3}


def diverging(num_classes: int = 4) -> nn.Module:
    """Give NaN."""
    model = Tiny(num_classes)
    nn.init.constant_(model.head.bias, float("nan"))
    return model


def wrong_shape(samples: int = 400) -> dict[str, TensorDataset]:
    """Images of another size."""
    return {"train": TensorDataset(torch.randn(samples, 3, 9, 9), torch.randint(0, 4, (samples,)))}
