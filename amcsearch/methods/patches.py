"""Rows that a layer multiplies its weight with: X in Y = X W^T + b, also for convolutions.

A row is one sample at one output position. A convolution's row is its unfolded patch, channel-major: input channel c
owns the columns [c*taps, (c+1)*taps), taps = kH*kW, as in ``weight.reshape(conv_groups, C_out/conv_groups, -1)``.
Padding is part of the patch, whatever its mode. Only the chosen positions are cut out, so memory is samples x positions
x columns.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["READERS", "patches", "weight_matrix"]

READERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d)


def patches(
    module: nn.Module, x: Tensor, positions: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the rows of a layer's input x, shape (conv_groups, rows, columns).

    Args:
        module: one of ``READERS``.
        x: (N, …, C_in) for linear layers, (N, C_in, H, W) or (N, C_in, L) for convolutions.
        positions: at most so many output positions, the same ones for every sample of ``x``; None takes all.
        generator: draws the positions.
    """
    if isinstance(module, nn.Linear):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return tokens[:, _chosen(tokens.shape[1], positions, generator)].reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    if x.ndim == 3:
        x = x.unsqueeze(-1)
    (kh, kw), (sh, sw), (dh, dw) = (_pair(v) for v in (module.kernel_size, module.stride, module.dilation))
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    chosen = _chosen(height * width, positions, generator)
    rows = (chosen // width * sh)[:, None] + torch.arange(kh) * dh  # (P, kH)
    columns = (chosen % width * sw)[:, None] + torch.arange(kw) * dw  # (P, kW)
    cut = x[:, :, rows[:, :, None].to(x.device), columns[:, None, :].to(x.device)]  # (N, C_in, P, kH, kW)
    split = cut.reshape(len(x), module.groups, -1, len(chosen), kh * kw)  # (N, groups, C_in / groups, P, taps)
    return split.permute(1, 0, 3, 2, 4).reshape(module.groups, len(x) * len(chosen), -1)


def weight_matrix(module: nn.Module) -> Tensor:
    """Return a layer's weight as (conv_groups, C_out / conv_groups, columns), detached, in double precision."""
    assert isinstance(module.weight, Tensor)
    conv_groups = getattr(module, "groups", 1)
    return module.weight.detach().double().reshape(conv_groups, len(module.weight) // conv_groups, -1)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[1]) if len(value) == 2 else (value[0], 1)


def _chosen(count: int, limit: int | None, generator: torch.Generator | None) -> Tensor:
    if limit is None or count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit].sort().values
