"""Rows that a layer multiplies its weight with: X in Y = X W^T + b, also for convolutions.

A row is one sample at one output position. A convolution's row is its unfolded patch, channel-major: input channel c
owns the columns [c*taps, (c+1)*taps), taps = kH*kW, as in ``weight.reshape(conv_groups, C_out/conv_groups, -1)``.
Padding is part of the patch, whatever its mode. Only the chosen positions are cut out, so memory is samples x positions
x columns.

``tap_major_rows`` has the same columns in the order [tap, channel]: each tap of a patch is then one run of memory in
a map whose channels come last, and cutting patches is a copy of whole runs.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["READERS", "channel_means", "padded", "patches", "tap_major_rows", "taps_of", "weight_matrix"]

READERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d)
_SLOWER: Final = 12  # cutting a value out of a map whose channels do not come last, beside putting it in order


def patches(
    module: nn.Module, x: Tensor, positions: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the rows of a layer's input x, detached, shape (conv_groups, rows, columns).

    Args:
        module: one of ``READERS``.
        x: (N, …, C_in) for linear layers, (N, C_in, H, W) or (N, C_in, L) for convolutions.
        positions: at most so many output positions, the same ones for every sample of ``x``; None takes all.
        generator: draws the positions.
    """
    (rows,) = tap_major_rows(module, x, positions, generator)
    channels = rows.shape[2] // taps_of(module)
    return rows.reshape(*rows.shape[:2], -1, channels).mT.flatten(-2)


def tap_major_rows(
    module: nn.Module,
    x: Tensor,
    positions: int | None = None,
    generator: torch.Generator | None = None,
    *,
    shift: Tensor | None = None,
    count: int | None = None,
) -> Iterator[Tensor]:
    """Yield the rows that ``patches`` has, columns in the order [tap, channel], minus ``shift`` of each channel.

    ``shift`` is (conv_groups, C_in / conv_groups), as ``channel_means`` gives it. Each part has the rows of whole
    samples, at most ``count`` of them unless a sample alone has more; None: all in one. Use a part before the next.
    """
    x = x.detach()
    if isinstance(module, nn.Linear):
        maps = x.reshape(len(x), -1, x.shape[-1]).mT  # (N, C_in, tokens)
        index = _chosen(maps.shape[2], positions, generator)
    else:
        maps, index = _cut(module, x, positions, generator)
    a_sample = len(index) // taps_of(module)  # rows
    if _SLOWER * len(index) < maps.shape[2]:
        maps, index = maps.index_select(2, index.to(x.device)), torch.arange(len(index))
    size, groups = maps.shape[2], getattr(module, "groups", 1)
    last = maps.mT.reshape(len(x), size, groups, -1).permute(2, 0, 1, 3)  # (groups, N, …, C_in / groups)
    if shift is None:
        values = last.contiguous()
    else:
        values = torch.sub(last, shift[:, None, None], out=last.new_empty(last.shape))
    samples = len(x) if count is None else max(1, min(len(x), count // a_sample))
    if torch.equal(index, torch.arange(size)):
        for part in torch.split(values, samples, 1):
            yield part.reshape(groups, part.shape[1] * a_sample, -1)
        return
    index = (torch.arange(samples)[:, None] * size + index).flatten().to(x.device)
    buffer = values.new_empty(groups, len(index), values.shape[3])
    for part in torch.split(values, samples, 1):
        chosen = index[: part.shape[1] * len(index) // samples]
        rows = torch.index_select(part.flatten(1, 2), 1, chosen, out=buffer[:, : len(chosen)])
        yield rows.reshape(groups, part.shape[1] * a_sample, -1)


def _cut(
    module: nn.Module, x: Tensor, positions: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return a convolution's padded maps (N, C_in, H * W) and the places of its patches in them.

    The places are (positions * taps,), position-major.
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    x = padded(module, x)
    if x.ndim == 3:
        x = x.unsqueeze(-1)
    (kh, kw), (sh, sw), (dh, dw) = (_pair(v) for v in (module.kernel_size, module.stride, module.dilation))
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    chosen = _chosen(height * width, positions, generator)
    corner = chosen // width * sh * x.shape[3] + chosen % width * sw  # (P,)
    taps = (torch.arange(kh)[:, None] * dh * x.shape[3] + torch.arange(kw) * dw).flatten()  # (kH * kW,)
    return x.flatten(2), (corner[:, None] + taps).flatten()


def padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Return the input of a convolution with its padding, whatever its mode."""
    if not any(module._reversed_padding_repeated_twice):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode)


def channel_means(module: nn.Module, x: Tensor) -> Tensor:
    """Return the mean of each input channel over samples and positions: (conv_groups, C_in / conv_groups)."""
    last = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
    means: Tensor = last.mean(tuple(range(last.ndim - 1))).reshape(getattr(module, "groups", 1), -1)
    return means


def taps_of(module: nn.Module) -> int:
    """Return kH*kW, the columns of one input channel; 1 for a linear layer."""
    assert isinstance(module.weight, Tensor)
    return module.weight[0, 0].numel()


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
