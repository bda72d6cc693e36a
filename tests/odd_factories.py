"""Networks and data that misbehave: what careless or unlucky code hands to a job. Named as file.py:callable."""

import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

CLASSES = 3
LATE = 20  # forward passes of a batch after which something happens


class Net(nn.Module):
    """Two convolutions and a linear head for 1x6x6 images."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Late(Net):
    """Calls ``happens`` from the LATE-th forward pass of a batch on, counted over all copies."""

    passes = 0

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self.happens = happens
        Late.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            Late.passes += 1
            if Late.passes >= LATE:
                self.happens()
        return super().forward(x)


class OwnError(BaseException):
    """No Exception, so that ``except Exception`` misses it."""


def _raise(error: BaseException) -> None:
    raise error


def sound() -> nn.Module:
    """Do nothing odd."""
    return Net()


def raises() -> nn.Module:
    """Raise with a text of several lines and terminal escapes."""
    raise ValueError("\x1b[31mfirst line\n\tsecond\x07")


def exits_well() -> nn.Module:
    """Exit as if all were done."""
    sys.exit(0)


def exits_at_once() -> nn.Module:
    """Exit without any handler."""
    os._exit(0)


def interrupts() -> nn.Module:
    """Raise KeyboardInterrupt though nobody pressed a key."""
    raise KeyboardInterrupt


def own_error() -> nn.Module:
    """Raise what is no Exception."""
    raise OwnError("out of this world")


def recursion() -> nn.Module:
    """Never end."""
    return recursion()


def exits_late() -> nn.Module:
    """Exit as if all were done, in the middle of the job."""
    return Late(sys.exit)


def raises_late() -> nn.Module:
    """Raise in the middle of the job."""
    return Late(lambda: _raise(RuntimeError("the accelerator fell off")))


def stops_late() -> nn.Module:
    """Raise StopIteration in the middle of the job."""
    return Late(lambda: _raise(StopIteration()))


def prints() -> nn.Module:
    """Print to both streams."""
    sys.stdout.write("from the factory\n")
    sys.stderr.write("also from the factory\n")
    return Late(lambda: sys.stdout.write("from forward\n"))


def wide_default() -> nn.Module:
    """Leave float64 as the default dtype."""
    torch.set_default_dtype(torch.float64)
    return Net().float()


def no_gradients() -> nn.Module:
    """Leave the recording of gradients off."""
    torch.set_grad_enabled(False)
    return Net()


def made_in_inference_mode() -> nn.Module:
    """Make weights that autograd refuses."""
    with torch.inference_mode():
        return Net()


def on_meta() -> nn.Module:
    """Have shapes and no weights."""
    return Net().to("meta")


def float64() -> nn.Module:
    """Compute in float64."""
    return Net().double()


def half() -> nn.Module:
    """Compute in float16."""
    return Net().half()


def nan_weight() -> nn.Module:
    """Have one weight that is NaN."""
    model = Net()
    with torch.no_grad():
        model.second.weight[0, 0, 0, 0] = float("nan")
    return model


def infinite_weight() -> nn.Module:
    """Have one weight that is infinite."""
    model = Net()
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    return model


class Branches(Net):
    """Decides by the data, which an export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.roll(1, 1) if bool(x[0].mean() > 0.25) else y


def branches() -> nn.Module:
    """Branch on the data."""
    return Branches()


class OtherInExport(Net):
    """Computes something else while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.flip(1) if torch.onnx.is_in_onnx_export() else y


def other_in_export() -> nn.Module:
    """Compute something else in the exported file."""
    return OtherInExport()


class NanInExport(Net):
    """Gives NaN in the exported file alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / torch.zeros_like(y) * 0.0 if torch.onnx.is_in_onnx_export() else y


def nan_in_export() -> nn.Module:
    """Give NaN in the exported file."""
    return NanInExport()


class Noisy(Net):
    """Answers the same question differently each time."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.randn(y.shape)


def noisy() -> nn.Module:
    """Add noise to the output."""
    return Noisy()


class ChangesItsInput(Net):
    """Writes into the tensor it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return super().forward(x)


def changes_its_input() -> nn.Module:
    """Write into the input."""
    return ChangesItsInput()


class MarkedUp(nn.Module):
    """Modules named with markup and escapes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("<script>alert(1)</script>", nn.Conv2d(1, 16, 3, padding=1))
        self.add_module("\x1b[2J$_{", nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for module in list(self.children())[:-1]:
            x = torch.relu(module(x))
        return self.head(x.mean((2, 3)))


def marked_up() -> nn.Module:
    """Have names with markup and escapes."""
    return MarkedUp()


def nothing_to_prune() -> nn.Module:
    """Have one layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))


def samples(count: int = 420, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with one bright column; the class is which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, :, 2 * labels] += 1.5
    return images, labels


def columns() -> dict[str, Dataset]:
    """Do nothing odd."""
    return {"train": TensorDataset(*samples())}


class Samples(Dataset):
    """The samples one by one; subclasses misbehave at one of them."""

    def __init__(self) -> None:
        self.images, self.labels = samples()
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        self.reads += 1
        return self.images[index], int(self.labels[index])


class RaisesLate(Samples):
    def __getitem__(self, index: int) -> object:
        if self.reads > 1000:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


class ExitsLate(Samples):
    def __getitem__(self, index: int) -> object:
        if self.reads > 1000:
            sys.exit(0)
        return super().__getitem__(index)


class Ragged(Samples):
    def __getitem__(self, index: int) -> object:
        return (torch.zeros(1, 5, 5), 0) if index == 41 else super().__getitem__(index)


class Alone(Samples):
    def __getitem__(self, index: int) -> object:
        return self.images[index] if index == 41 else super().__getitem__(index)


class Words(Samples):
    def __getitem__(self, index: int) -> object:
        return self.images[index], "cat"


class Nothing(Samples):
    def __getitem__(self, index: int) -> object:
        return None


class NoLength(Samples):
    def __len__(self) -> int:
        raise RuntimeError("nobody counted")


class Grows(Samples):
    def __len__(self) -> int:
        self.reads += 1
        return 400 + self.reads

    def __getitem__(self, index: int) -> object:
        return self.images[index % 400], int(self.labels[index % 400])


class Augmented(Samples):
    def __getitem__(self, index: int) -> object:
        return self.images[index] + 0.1 * torch.randn(1, 6, 6), int(self.labels[index])


class NumpyLabels(Samples):
    def __getitem__(self, index: int) -> object:
        return self.images[index], np.int16(self.labels[index])


def data_raises_late() -> dict[str, Dataset]:
    """Raise in the middle of the job."""
    return {"train": RaisesLate()}


def data_exits_late() -> dict[str, Dataset]:
    """Exit as if all were done, in the middle of the job."""
    return {"train": ExitsLate()}


def ragged() -> dict[str, Dataset]:
    """Have one sample of another shape."""
    return {"train": Ragged()}


def alone() -> dict[str, Dataset]:
    """Have one sample without a target."""
    return {"train": Alone()}


def words() -> dict[str, Dataset]:
    """Have words as targets."""
    return {"train": Words()}


def nothing() -> dict[str, Dataset]:
    """Have None as samples."""
    return {"train": Nothing()}


def no_length() -> dict[str, Dataset]:
    """Have no length."""
    return {"train": NoLength()}


def grows() -> dict[str, Dataset]:
    """Have another length each time."""
    return {"train": Grows()}


def augmented() -> dict[str, Dataset]:
    """Be another sample each time."""
    return {"train": Augmented()}


def numpy_labels() -> dict[str, Dataset]:
    """Have labels of numpy's int16."""
    return {"train": NumpyLabels()}


def _of(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> dict[str, Dataset]:
    return {"train": TensorDataset(*change(*samples()))}


def int8_labels() -> dict[str, Dataset]:
    """Have labels of int8."""
    return _of(lambda x, y: (x, y.to(torch.int8)))


def one_hot() -> dict[str, Dataset]:
    """Have one-hot targets of float32."""
    return _of(lambda x, y: (x, nn.functional.one_hot(y, CLASSES).float()))


def float_targets() -> dict[str, Dataset]:
    """Have targets of float32 without saying what they mean."""
    return _of(lambda x, y: (x, y.float()))


def float_vectors() -> dict[str, Dataset]:
    """Have targets of float32 as broad as the output, without saying what they mean."""
    return _of(lambda x, y: (x, torch.randn(len(y), CLASSES)))


def out_of_range() -> dict[str, Dataset]:
    """Have a label beyond the network's outputs."""
    return _of(lambda x, y: (x, y + 1))


def ignored() -> dict[str, Dataset]:
    """Have no label that counts."""
    return _of(lambda x, y: (x, torch.full_like(y, -100)))


def nan_inputs() -> dict[str, Dataset]:
    """Have an input that is NaN."""
    return _of(lambda x, y: (x.index_fill(0, torch.tensor([7]), float("nan")), y))


def byte_images() -> dict[str, Dataset]:
    """Have images of uint8."""
    return _of(lambda x, y: ((100 * x).clamp(0, 255).to(torch.uint8), y))


def with_gradients() -> dict[str, Dataset]:
    """Have inputs that record gradients."""
    return _of(lambda x, y: (x.requires_grad_(), y))


def leaking() -> dict[str, Dataset]:
    """Have the same samples in every split."""
    return {name: TensorDataset(*(tensor.clone() for tensor in samples())) for name in ("train", "search", "test")}


def no_data() -> dict[str, Dataset]:
    """Have no samples."""
    return {"train": TensorDataset(torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))}
