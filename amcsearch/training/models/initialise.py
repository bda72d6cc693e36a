"""Initial weights of the convolutional reference networks."""

from torch import nn

__all__ = ["he_normal"]


def he_normal(model: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / fan_in), so that activations keep their scale through ReLUs.

    He et al. 2015, "Delving Deep into Rectifiers", arXiv 1502.01852. A depthwise filter's fan-in is its own k².
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
