"""Reference networks in plain torch; any other comes in by an import spec, ``package.module:callable``.

Every factory takes keyword arguments with defaults and returns a freshly initialised ``nn.Module``. The weights are
drawn from torch's global generator: whoever wants them repeatable seeds it outside (``torch.manual_seed``).
"""

from collections.abc import Callable
from typing import Final

from torch import nn

from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.plain import vgg
from amcsearch.training.models.residual import resnet18, resnet20
from amcsearch.training.models.transformer import language_model, vit

__all__ = ["MODELS", "language_model", "mobilenetv2", "resnet18", "resnet20", "vgg", "vit"]

MODELS: Final[dict[str, Callable[..., nn.Module]]] = {
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
    "vgg": vgg,
    "vit": vit,
    "language_model": language_model,
}
