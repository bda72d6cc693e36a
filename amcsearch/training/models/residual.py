"""ResNets of basic blocks for small images: stages of widths w, 2w, 4w, …

He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv 1512.03385: ResNet-20 of §4.2 (three stages) and
ResNet-18 of table 1 (four stages). Departures: where a block changes the width its shortcut is a 1x1 convolution
(option B of the paper), not zero padding (option A), so that every channel of the sum has a producer that can be
pruned; and ResNet-18 begins, as ResNet-20, with a 3x3 convolution and no pooling, as is usual for 32x32 images.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError
from amcsearch.training.models.initialise import he_normal

__all__ = ["ResNet", "resnet18", "resnet20"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images (B, in_channels, H, W) → logits (B, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        if width < 1:
            raise BadInputError(f"width = {width}, must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        channels = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            self.add_module(f"layer{stage + 1}", _stage(channels, out, count, 1 if stage == 0 else 2))
            channels = out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 1, width: int = 16, depth: int = 20) -> ResNet:
    """ResNet-20 (He et al. 2016): 6n + 2 layers, n = 3 blocks a stage, stage widths ``width``, 2x and 4x that.

    Args:
        num_classes: logits of the head.
        in_channels: channels of the input image, (B, in_channels, H, W).
        width: channels of the first stage; the paper's is 16.
        depth: weight layers, 6n + 2: 20, 32, 44, 56, …

    Raises:
        BadInputError: a depth that is not 6n + 2, or a width below 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise BadInputError(f"depth = {depth}, must be 6n + 2 (8, 14, 20, 32, …)")
    return ResNet(num_classes, in_channels, width, [(depth - 2) // 6] * 3)


def resnet18(num_classes: int = 10, in_channels: int = 1, width: int = 64) -> ResNet:
    """ResNet-18 for small images (He et al. 2016): four stages of two blocks, widths ``width``, 2x, 4x and 8x that.

    Args:
        num_classes: logits of the head.
        in_channels: channels of the input image, (B, in_channels, H, W).
        width: channels of the first stage; the paper's is 64.

    Raises:
        BadInputError: a width below 1.
    """
    return ResNet(num_classes, in_channels, width, [2, 2, 2, 2])
