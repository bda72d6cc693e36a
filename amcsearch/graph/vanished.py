"""Layers of a branch that has vanished: what is left of a network's modules where a group keeps no channels.

A convolution or linear layer that reads nothing but zeros writes its bias, at every position:

    y[n, c, …] = b[c]

``ConstantLayer`` writes that without computing. With no channels at all it stands for the layers that wrote the group:
they write a tensor of the right positions and no channels, or of ``width`` channels of zeros for code that does not run
on none. So the forward of a network runs unchanged around a branch that is gone, and an exporter, which keeps only what
an output depends on, leaves nothing of the branch but the constant.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from amcsearch.graph.packed_attention import free_heads
from amcsearch.graph.slices import Vanishing

__all__ = ["ConstantLayer", "emptied"]


class ConstantLayer(nn.Module):
    """Stands for a convolution or linear layer whose inputs, or outputs, are gone: it writes ``bias`` everywhere.

    ``bias`` (C,) is the layer's own parameter, or a buffer of zeros for a layer without one. The output has the shape
    that the layer's would have where ``spread``; else, outside training, size 1 wherever it does not vary.
    """

    bias: Tensor

    def __init__(self, layer: nn.Linear | _ConvNd, bias: Tensor, *, spread: bool) -> None:
        super().__init__()
        self.spread = spread
        self.axes: tuple[tuple[int, ...], ...] = ()
        self.is_transposed = isinstance(layer, _ConvTransposeNd)
        if isinstance(layer, _ConvNd):
            extra = layer.output_padding if self.is_transposed else (0,) * len(layer.kernel_size)
            sizes = (layer.kernel_size, layer.stride, _total_padding(layer), layer.dilation, extra)
            self.axes = tuple(tuple(int(size) for size in axis) for axis in zip(*sizes, strict=True))
        if isinstance(bias, nn.Parameter):
            self.bias = bias
        else:
            self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) of any width → the constant, (N, C, …) after a convolution and (N, …, C) after a linear layer."""
        rank = len(self.axes)
        lead, sizes = (x.shape[:-1], ()) if not rank else (x.shape[: -rank - 1], self._sizes(x.shape[-rank:]))
        constant = self.bias.view((1,) * len(lead) + (-1,) + (1,) * rank)
        if self.spread or self.training:
            constant = constant.expand(*lead, -1, *sizes)
        return constant.clone(memory_format=torch.contiguous_format)  # code may write into it

    def _sizes(self, sizes: Iterable[int]) -> tuple[int, ...]:
        """Sizes of the maps that the convolution would write."""
        pairs = zip(sizes, self.axes, strict=True)
        if self.is_transposed:
            return tuple((i - 1) * s - p + d * (k - 1) + extra + 1 for i, (k, s, p, d, extra) in pairs)
        return tuple((i + p - d * (k - 1) - 1) // s + 1 for i, (k, s, p, d, _) in pairs)

    def extra_repr(self) -> str:
        """Return the width, for ``print``."""
        return f"{len(self.bias)}"


def _total_padding(layer: _ConvNd) -> tuple[int, ...]:
    """Positions added on both sides of each axis together."""
    if layer.padding == "same":
        return tuple(d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
    if isinstance(layer.padding, str):
        return (0,) * len(layer.kernel_size)
    return tuple(2 * int(p) for p in layer.padding)


def emptied(model: nn.Module, branches: Mapping[str, Vanishing]) -> None:
    """Replace, in place, the modules of branches that have vanished; their tensors have been sliced before.

    Torch's attention is made one that its encoder layers do not fuse with what is gone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[int, nn.Module] = {}
    for branch in branches.values():
        replaced |= {id(modules[path]): _constant(modules[path], branch.spread) for path in branch.readers}
    for branch in branches.values():  # a layer may both read one such branch and write another
        replaced |= {id(modules[path]): nn.Identity() for path in branch.norms}
        replaced |= {id(modules[path]): _silent(modules[path], branch.width) for path in branch.writers}
        replaced |= {id(modules[path]): _idle(modules[path]) for path in branch.idle}
    for parent in modules.values():
        for name, child in parent._modules.items():
            if child is not None and id(child) in replaced:
                parent._modules[name] = replaced[id(child)].train(child.training)
    for module in model.modules() if replaced else ():
        free_heads(module)


def _silent(layer: Any, width: int) -> ConstantLayer:
    return ConstantLayer(layer, layer.weight.new_zeros(width), spread=True)


def _idle(module: nn.Module) -> nn.Module:
    return _silent(module, _width(module)) if isinstance(module, nn.Linear | _ConvNd) else nn.Identity()


def _constant(layer: Any, spread: bool) -> ConstantLayer:
    bias = layer.weight.new_zeros(_width(layer)) if layer.bias is None else layer.bias
    return ConstantLayer(layer, bias, spread=spread)


def _width(layer: Any) -> int:
    return int(layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features)
