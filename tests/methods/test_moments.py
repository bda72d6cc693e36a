"""Moments of activations and products of kernel patches, against sums written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.methods.moments import aligned, moments_of, patches_of


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.data())
def test_merging_equals_one_pass(values: list[float], data: st.DataObject) -> None:
    x, cut = torch.tensor(values, dtype=torch.float64)[:, None], data.draw(st.integers(1, len(values) - 1))
    layer = nn.Linear(1, 1)
    merged = moments_of(x[:cut], layer).merged(moments_of(x[cut:], layer))
    assert merged.count == len(values)
    torch.testing.assert_close(merged.mean, x.mean(0), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(merged.variance, x.var(0, correction=0), atol=1e-7, rtol=1e-9)
    torch.testing.assert_close(merged.mean_square, x.square().mean(0), atol=1e-7, rtol=1e-9)
    torch.testing.assert_close(merged.absolute, x.abs().mean(0), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(merged.active, (x != 0).double().mean(0), atol=1e-9, rtol=1e-9)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    x = 1e6 + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(1, 1)
    found = moments_of(x[:300], layer).merged(moments_of(x[300:], layer))
    assert float(found.variance) == pytest.approx(float(x.double().var(correction=0)), rel=1e-9)


def test_alignment_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert aligned(values, torch.zeros(3, 4, 1, 1), transposed=False).shape == (1, 4, 1, 1)
    grouped = aligned(values, torch.zeros(6, 2, 3, 3), transposed=False)  # two groups: rows 0-2 read channels 0 and 1
    assert grouped[:, :, 0, 0].tolist() == [[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3
    assert aligned(values, torch.zeros(4, 5, 2, 2), transposed=True).flatten().tolist() == values.tolist()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), bias=False),
        nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv1d(4, 6, 3, padding=2),
        nn.Conv2d(4, 6, 1),
    ],
    ids=str,
)
def test_channel_errors_are_those_of_dropping_each_channel(conv: nn.Module) -> None:
    torch.manual_seed(0)
    conv = conv.double()
    x = torch.randn((5, 4, 8, 7)[: 2 + len(conv.kernel_size)], dtype=torch.float64)  # type: ignore[arg-type]
    conv.requires_grad_(False)
    found = patches_of(x, conv)
    assert found is not None
    errors, dense = found.channel_errors(conv.weight), conv(x)  # type: ignore[arg-type]
    for c in range(4):
        without = x.clone()
        without[:, c] = 0.0
        assert float(errors[c]) == pytest.approx(float((dense - conv(without)).square().sum()) / found.count, rel=1e-9)
    assert found.squares(conv.weight).broadcast_to(conv.weight.shape).shape == conv.weight.shape  # type: ignore[arg-type, union-attr]


def test_patch_squares_are_those_of_unfold() -> None:
    conv = nn.Conv2d(3, 2, 3, stride=2, padding=1)
    x = torch.randn(4, 3, 7, 7)
    columns: Tensor = F.unfold(x, 3, padding=1, stride=2)  # (N, 27, L)
    found = patches_of(x, conv)
    assert found is not None
    torch.testing.assert_close(found.squares(conv.weight).flatten().float(), columns.square().mean((0, 2)))


def test_a_transposed_convolution_reads_no_patches() -> None:
    assert patches_of(torch.zeros(1, 3, 4, 4), nn.ConvTranspose2d(3, 2, 2)) is None
