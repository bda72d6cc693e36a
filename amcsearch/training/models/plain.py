"""VGG-16 with batch normalisation for 32x32 images: no branches, a flatten before the classifier.

Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556,
configuration D. Departures: batch normalisation after each convolution; the last of the five poolings is left out, so
that the flatten carries a 2x2 map of each channel at 32x32; the classifier has one hidden layer.
"""

from typing import Final

from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.training.models.initialise import he_normal

__all__ = ["VGG", "vgg"]

# (width as a multiple of the first stage's, convolutions); a pooling stands between stages
STAGES: Final = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class VGG(nn.Module):
    """Images (B, in_channels, input_size, input_size) → logits (B, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, width: int, input_size: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for i, (factor, count) in enumerate(STAGES):
            if i:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                out = width * factor
                layers += [nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
        self.features = nn.Sequential(*layers)
        side = input_size // 2 ** (len(STAGES) - 1)
        self.hidden = nn.Linear(channels * side * side, hidden)
        self.head = nn.Linear(hidden, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.features(x).flatten(1)  # (B, C·side·side)
        return self.head(self.hidden(x).relu())  # type: ignore[no-any-return]


def vgg(num_classes: int = 10, in_channels: int = 1, width: int = 16, input_size: int = 32, hidden: int = 128) -> VGG:
    """VGG-16 with batch normalisation (Simonyan & Zisserman 2015).

    Args:
        num_classes: logits of the head.
        in_channels: channels of the input image, (B, in_channels, input_size, input_size).
        width: channels of the first stage; the paper's is 64, stages have 1, 2, 4, 8 and 8 times that.
        input_size: side of the input in pixels.
        hidden: width of the classifier's hidden layer.

    Raises:
        BadInputError: a width below 1, or an input size that is no multiple of 16.
    """
    if width < 1 or hidden < 1:
        raise BadInputError(f"width = {width}, hidden = {hidden}: both must be at least 1")
    if input_size < 16 or input_size % 16:
        raise BadInputError(f"input_size = {input_size}, must be a multiple of 16")
    return VGG(num_classes, in_channels, width, input_size, hidden)
