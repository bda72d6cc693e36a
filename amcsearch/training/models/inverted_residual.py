"""MobileNetV2-style network for 32x32 images: inverted residuals with depthwise convolutions and ReLU6.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381. Departures: sized for
32x32 inputs (stem of stride 1, three halvings, 9 blocks instead of 17), so that it trains in minutes on two cores.
"""

from typing import Final

from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.training.models.initialise import he_normal

__all__ = ["STAGES", "InvertedResidual", "MobileNetV2", "mobilenetv2"]

# (expansion, channels, blocks, stride of the first block), as in table 2 of the paper
STAGES: Final = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 3, 2), (6, 96, 1, 1))
STEM_CHANNELS: Final = 16
LAST_CHANNELS: Final = 256


def _conv_bn(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, conv_groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=conv_groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a sum where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_sum = stride == 1 and in_channels == out_channels
        expand = [] if expansion == 1 else [*_conv_bn(in_channels, hidden), nn.ReLU6()]
        self.body = nn.Sequential(
            *expand,
            *_conv_bn(hidden, hidden, 3, stride, conv_groups=hidden),
            nn.ReLU6(),
            *_conv_bn(hidden, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""
        y: Tensor = self.body(x)
        return x + y if self.has_sum else y


class MobileNetV2(nn.Module):
    """Images (B, in_channels, H, W) → logits (B, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, width_multiplier: float) -> None:
        super().__init__()
        width = _scaled(STEM_CHANNELS, width_multiplier)
        self.stem = nn.Sequential(*_conv_bn(in_channels, width, 3), nn.ReLU6())
        blocks: list[nn.Module] = []
        for expansion, channels, count, stride in STAGES:
            out = _scaled(channels, width_multiplier)
            for i in range(count):
                blocks.append(InvertedResidual(width, out, stride if i == 0 else 1, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        last = _scaled(LAST_CHANNELS, max(1.0, width_multiplier))
        self.last = nn.Sequential(*_conv_bn(width, last), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.last(self.blocks(self.stem(x)))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _scaled(channels: int, multiplier: float) -> int:
    """Channels times the multiplier, rounded to a multiple of 8, at least 8."""
    return max(8, int(channels * multiplier + 4) // 8 * 8)


def mobilenetv2(num_classes: int = 10, in_channels: int = 1, width_multiplier: float = 1.0) -> MobileNetV2:
    """MobileNetV2-style network (Sandler et al. 2018) for 32x32 images.

    Args:
        num_classes: logits of the head.
        in_channels: channels of the input image, (B, in_channels, H, W).
        width_multiplier: factor on every width, rounded to multiples of 8.

    Raises:
        BadInputError: a multiplier that is not positive.
    """
    if width_multiplier <= 0:
        raise BadInputError(f"width_multiplier = {width_multiplier}, must be above 0")
    return MobileNetV2(num_classes, in_channels, width_multiplier)
