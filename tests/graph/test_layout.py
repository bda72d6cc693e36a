"""Only a fresh copy leaves the order that crashes: ambiguous strides count as contiguous."""

import torch
from torch import nn

from amcsearch.graph.layout import channels_first, make_channels_first


def row_major(shape):
    return torch.empty(shape).stride()


def test_one_channel_images_get_the_strides_of_their_shape():
    images = torch.randn(5, 8, 8, 1).permute(0, 3, 1, 2)
    assert images.is_contiguous()
    assert images.stride() != row_major(images.shape)
    copied = channels_first(images)
    assert copied.stride() == row_major(images.shape)
    assert torch.equal(copied, images)


def test_other_tensors_come_back_as_they_are():
    tokens = torch.arange(6).view(2, 3)
    assert channels_first(tokens) is tokens


def test_every_weight_of_a_module_is_copied_whole():
    model = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 3)).to(memory_format=torch.channels_last)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    make_channels_first(model)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.stride() == row_major(parameter.shape)
        assert torch.equal(parameter, old)
