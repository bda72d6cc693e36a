"""Moments of a layer's inputs: of each channel, and of the kernel patches of each channel with themselves.

Batches are merged by Chan's rule (Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance"):

    M2 = M2_a + M2_b + d^2 n_a n_b / n,  mean = mean_a + d n_b / n,  d = mean_b - mean_a

so that any cut into batches, also of unequal sizes, gives what one batch gives. All sums are kept in double precision.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["Moments", "Patches", "aligned", "moments_of", "patches_of"]

_ELEMENTS = 1 << 24  # of unfolded patches in memory at once


@dataclass(frozen=True)
class Moments:
    """Moments over samples and positions: ``mean``, ``m2`` (sum of squared deviations), ``absolute`` (mean of
    |x|) and ``active`` (share of values other than 0), each (C_in,); ``count`` values a
    channel, ``features`` = C_in.

    Those of finished statistics are aligned with the weight: broadcastable to its shape.
    """

    count: int
    mean: Tensor
    m2: Tensor
    absolute: Tensor
    active: Tensor
    features: int

    @property
    def variance(self) -> Tensor:
        """Population variance."""
        return self.m2 / self.count

    @property
    def mean_square(self) -> Tensor:
        """E[x^2]."""
        return self.variance + self.mean.square()

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Share one value a channel evenly among the weights that read it, so that their sum is the value."""
        return values * (self.features / weight.numel())

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together."""
        n = self.count + other.count
        share = other.count / n
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * share,
            self.m2 + other.m2 + delta.square() * self.count * share,
            torch.lerp(self.absolute, other.absolute, share),
            torch.lerp(self.active, other.active, share),
            self.features,
        )

    def aligned(self, weight: Tensor, *, transposed: bool) -> "Moments":
        """Return them broadcastable to ``weight``."""
        mean, m2, absolute, active = (
            aligned(values, weight, transposed) for values in (self.mean, self.m2, self.absolute, self.active)
        )
        return replace(self, mean=mean, m2=m2, absolute=absolute, active=active)


@dataclass(frozen=True)
class Patches:
    """Mean products of the kernel positions of each channel, (conv groups, C_in / groups, K, K) with K = kH * kW.

    ``count`` patches; a linear layer has K = 1.
    """

    count: int
    products: Tensor

    def merged(self, other: "Patches") -> "Patches":
        """Return those of both sets of patches together."""
        n = self.count + other.count
        return Patches(n, torch.lerp(self.products, other.products, other.count / n))

    def squares(self, weight: Tensor) -> Tensor:
        """E[x^2] at every kernel position, broadcastable to ``weight`` (C_out, C_in / groups, kH, kW)."""
        diagonal = self.products.diagonal(dim1=-2, dim2=-1)  # (groups, C_in / groups, K)
        rows = diagonal if len(diagonal) == 1 else diagonal.repeat_interleave(len(weight) // len(diagonal), 0)
        return rows.reshape(-1, *weight.shape[1:])

    def channel_errors(self, weight: Tensor) -> Tensor:
        """tr(W_c P_c W_c') of every input channel, (C_in,): the mean squared output that the channel alone gives."""
        groups, inputs, k, _ = self.products.shape
        w = weight.to(self.products.dtype).reshape(groups, -1, inputs, k)
        return (w * torch.einsum("goik,gikm->goim", w, self.products)).sum((1, 3)).flatten()


def aligned(values: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """(…, C_in) → (…, C_out or 1, C_in / groups, 1, …), or (…, C_in, 1, …) for a transposed convolution."""
    lead, trailing = values.shape[:-1], (1,) * (weight.ndim - 2)
    if transposed:
        return values.reshape(*lead, -1, 1, *trailing)
    groups = values.shape[-1] // weight.shape[1]
    blocks = values.reshape(*lead, groups, weight.shape[1], *trailing)
    return blocks if groups == 1 else blocks.repeat_interleave(weight.shape[0] // groups, len(lead))


def moments_of(x: Tensor, module: nn.Module) -> Moments:
    """Moments of a layer's input: (N, C, …) of a convolution, (…, C) of a linear layer."""
    flat = (x.movedim(1, -1) if isinstance(module, _ConvNd) else x).flatten(0, -2).double()  # (values, C)
    mean = flat.mean(0)
    active = (flat != 0).double().mean(0)
    return Moments(len(flat), mean, (flat - mean).square().sum(0), flat.abs().mean(0), active, flat.shape[1])


def patches_of(x: Tensor, module: nn.Module) -> Patches | None:
    """Patch products of a layer's input; None for transposed convolutions, which read no patches."""
    if isinstance(module, _ConvTransposeNd):
        return None
    if isinstance(module, _ConvNd):
        return _patches_of_images(x, module)
    flat = x.flatten(0, -2)
    return Patches(len(flat), flat.double().square().mean(0)[None, :, None, None])


def _patches_of_images(x: Tensor, module: _ConvNd) -> Patches:
    kernel = module.kernel_size
    volume = int(torch.tensor(kernel).prod())
    step = max(1, _ELEMENTS // max(1, x[0].numel() * volume))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for part in torch.split(_padded(x, module), step):
        windows = part
        for axis, (size, stride, dilation) in enumerate(zip(kernel, module.stride, module.dilation, strict=True)):
            reach = dilation * (size - 1) + 1
            windows = windows.unfold(2 + axis, reach, stride)[..., ::dilation]  # (N, C, out sizes…, kernel…)
        spatial = len(kernel)
        columns = windows.movedim(1, 0).flatten(1, 1 + spatial).flatten(2)  # (C, patches, K)
        total = total + (columns.mT @ columns).double()
        count += columns.shape[1]
    return Patches(count, (total / count).reshape(module.groups, -1, *total.shape[1:]))


def _padded(x: Tensor, module: _ConvNd) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
