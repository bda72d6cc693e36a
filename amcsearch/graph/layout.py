"""Memory layouts of images: channels first where torch computes gradients on a CPU, channels last for inference.

Torch 2.13's CPU backend (oneDNN) writes outside its buffers in the backward pass of a strided 1x1 convolution in
channels-last order with 8 input channels, two threads and a batch such as 29: the process dies of heap corruption. A
one-channel image or a 1x1 weight can be in both orders at once, and ``contiguous`` then leaves it as it is, so
only a fresh copy is safe. Channels-last stays right for inference, where it is faster; but a forward that flattens a
map with ``view`` needs the plain order, and runs in that.
"""

import torch
from torch import Tensor, nn

from amcsearch.graph.batch import Batches

__all__ = ["channels_first", "channels_last", "make_channels_first", "takes_channels_last"]


def channels_first(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) as a copy in plain row-major order; anything else as it is."""
    return x.clone(memory_format=torch.contiguous_format) if x.ndim == 4 else x


def channels_last(x: Tensor) -> Tensor:
    """Return images (N, C, H, W), detached, in the order in which a CPU's convolutions run fastest; others as is."""
    x = x.detach()
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def takes_channels_last(model: nn.Module, samples: Batches) -> bool:
    """Whether a network in eval mode runs on images in channels-last order; two samples tell.

    ``view`` of a map refuses that order where it merges the channels with the positions.
    """
    few = next(iter(samples.batched(2))).to(next(model.parameters()).device)
    try:
        with torch.no_grad():
            few.map(channels_last).through(model)
    except RuntimeError:
        return False
    return True


def make_channels_first(model: nn.Module) -> None:
    """Put every 4-axis parameter of ``model`` in plain row-major order, in place."""
    for parameter in model.parameters():
        parameter.data = channels_first(parameter.data)
