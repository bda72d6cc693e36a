"""Networks that are another one in a file, in a batch, at another call or for some inputs: kinds, not examples."""

import os
import sys
from dataclasses import dataclass

import torch
from tiny_job import Tiny, quadrants
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class BranchOnBatch(Tiny):
    """Takes its side by the largest value of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.flip(1) if float(x.detach().amax()) > 2.0 else y


class BranchOnLarge(Tiny):
    """Takes its side sample by sample, but by Python's if: the exporter sees one example."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(x, super().forward(x), strict=True)
        return torch.stack([row.flip(0) if float(image.detach().amax()) > 2.6 else row for image, row in pairs])


class BranchOnSize(Tiny):
    """Computes something else of more than one sample."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2.0 * y if x.shape[0] > 1 else y


class BatchStatistics(Tiny):
    """Normalises by the batch in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean()) / (x.std(unbiased=False) + 1e-3))


class ExportOther(Tiny):
    """Is the negative of itself while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return -y if torch.onnx.is_in_onnx_export() else y


class ExportNan(Tiny):
    """Gives NaN in the file alone, and only for some inputs: a logarithm that the exported side lacks a guard for."""

    def forward(self, x: Tensor) -> Tensor:
        y, level = super().forward(x), x.mean((1, 2, 3))[:, None] - 0.25
        return y + level.log() if torch.onnx.is_in_onnx_export() else y + level.clamp(min=1e-3).log()


class ExportScaled(Tiny):
    """Is one in a hundred larger in the file."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 1.01 * y if torch.onnx.is_in_onnx_export() else y


class Noisy(Tiny):
    """Adds random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.rand(x.shape[0], 4)


class DropoutAlways(Tiny):
    """Drops activations in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.3))


class Drifting(Tiny):
    """Counts its calls in a buffer, and the count is in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1.0 + 0.01 * self.calls)


class Alternating(Tiny):
    """Remembers in an attribute which call it is."""

    odd = False

    def forward(self, x: Tensor) -> Tensor:
        self.odd = not self.odd
        return super().forward(x) * (1.0 if self.odd else 1.5)


class Accumulating(Tiny):
    """Adds up what it has seen, as a running mean that is updated in eval mode does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.seen = self.seen + 0.1 * y.detach().mean(0)
        return y - self.seen


class Counting(Tiny):
    """Counts its calls in a buffer that no output depends on: nothing is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class InPlace(Tiny):
    """Changes its input."""

    def forward(self, x: Tensor) -> Tensor:
        x += 1.0
        return super().forward(x)


class NanForLarge(Tiny):
    """Gives NaN for images with a mark, which the test split alone may carry."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where((x[:, 0, 0, 0] > 50.0)[:, None], torch.nan, y)


class WhenNarrow(Tiny):
    """Is another network in the file as soon as it is pruned."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        is_narrow = self.body[0].weight.shape[0] < 24
        return y.flip(1) if is_narrow and torch.onnx.is_in_onnx_export() else y


class NanWhenNarrow(Tiny):
    """Gives NaN in the file as soon as it is pruned, for inputs with a mark."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.body[0].weight.shape[0] < 24 and torch.onnx.is_in_onnx_export():
            y = torch.where((x[:, 0, 0, 0] > 50.0)[:, None], torch.nan, y)
        return y


class Unstored(Tiny):
    """Computes with a number that no state dict holds, and that changes while it is trained."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale += 0.05
        return super().forward(x) * self.scale


def plain() -> nn.Module:
    """Nothing wrong."""
    return Tiny()


def nan_weight() -> nn.Module:
    """One weight is NaN."""
    model = Tiny()
    with torch.no_grad():
        model.body[0].weight[0, 0, 0, 0] = torch.nan
    return model


def infinite_bias() -> nn.Module:
    """One bias is infinite."""
    model = Tiny()
    with torch.no_grad():
        model.head.bias[1] = -torch.inf
    return model


def nan_buffer() -> nn.Module:
    """A running mean is NaN."""
    model = Tiny()
    model.stem[1].running_mean[3] = torch.nan
    return model


def marked() -> dict[str, TensorDataset]:
    """The same with a test split in which a quarter of the images carry a mark."""
    images, labels = quadrants(80, seed=1)["train"].tensors
    images[:20, 0, 0, 0] = 99.0
    return {**quadrants(), "test": TensorDataset(images, labels)}


@dataclass
class Found:
    """What a detector gives: classes and a box."""

    scores: Tensor
    box: Tensor


class TwoHeads(nn.Module):
    """One body with a head of classes and one of boxes, returned as a tuple, list, dict, data class, or nested."""

    def __init__(self, how: str = "tuple") -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.scores = nn.Sequential(nn.Conv2d(16, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.box = nn.Sequential(nn.Conv2d(16, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.ModuleList([nn.Linear(12, 4), nn.Linear(12, 4)])

    def forward(self, x: Tensor) -> object:
        x = self.body(x)
        a, b = self.last[0](self.scores(x)), self.last[1](self.box(x))
        ways = {"tuple": (a, b), "list": [a, b], "dict": {"scores": a, "box": b}, "dataclass": Found(a, b)}
        return {**ways, "nested": {"heads": ways["dict"]}, "listed": [[a, b]]}[self.how]


class Chatty(Tiny):
    """Says what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        sys.stdout.write(f"forward of {tuple(x.shape)}\n")
        os.write(1, b"from native code\n")
        return super().forward(x)


class _Telling(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sys.stdout.write(f"item {index}\n")
        return self.samples[index]  # type: ignore[return-value]


def chatty() -> dict[str, Dataset[tuple[Tensor, Tensor]]]:
    """The quadrants, which say what is read."""
    return {name: _Telling(samples) for name, samples in quadrants(320).items()}


class WhenPruned(Tiny):
    """Is another network once channels are gone: a subclass says which."""

    @property
    def is_narrow(self) -> bool:
        return self.body[0].weight.shape[0] < 24


class NoTraining(WhenPruned):
    """Cannot be trained once it is pruned."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.is_narrow:
            raise RuntimeError("no training of narrow networks")
        return super().forward(x)


class NoExport(WhenPruned):
    """Cannot be exported once it is pruned."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (torch.onnx.is_in_onnx_export() and self.is_narrow):
            raise RuntimeError("no export of narrow networks")
        return super().forward(x)


class NoKernel(WhenPruned):
    """Computes in float64 once it is pruned, where ONNX Runtime has no kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.0 * nn.functional.hardsigmoid(x.double()).float() if self.is_narrow else x)


def frozen() -> nn.Module:
    """The plain network as loaded for inference: nothing requires a gradient."""
    return Tiny().requires_grad_(False)


class Looped(Tiny):
    """Ends in a large layer between widths that cannot change: a fixed number is written into its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = nn.Conv2d(4, 4, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.repeat(1, 4, 4, 4)
        return super().forward(x) + self.loop(maps).mean((2, 3))
