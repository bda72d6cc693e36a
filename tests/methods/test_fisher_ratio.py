"""Fisher's ratio by hand, and what it does and does not see."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.methods.layer_inputs import ClassMoments
from amcsearch.methods.selector import Problem
from amcsearch.methods.selectors.fisher_ratio import FisherRatio, fisher_ratio


def moments(features: Tensor, labels: Tensor) -> ClassMoments:
    one_hot = F.one_hot(labels).double()
    return ClassMoments(one_hot.sum(0), one_hot.T @ features, features.square().sum(0))


def samples(n: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (n,), generator=generator)
    features = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    features[:, 0] += 2.0 * labels
    features[:, 1] -= 0.5 * labels
    return features, labels


def test_by_hand() -> None:
    # Class means 1 and 5, mean 3, variances 1: (2 * 4 + 2 * 4) / (2 * 1 + 2 * 1). The second channel is constant.
    features = torch.tensor([[0.0, 7.0], [2.0, 7.0], [4.0, 7.0], [6.0, 7.0]]).double()
    assert fisher_ratio(moments(features, torch.tensor([0, 0, 1, 1]))).tolist() == [4.0, 0.0]


def test_a_class_without_samples_counts_for_nothing() -> None:
    features = torch.tensor([[0.0], [2.0], [4.0], [6.0]]).double()
    assert fisher_ratio(moments(features, torch.tensor([0, 0, 2, 2]))).tolist() == [4.0]


def test_a_perfectly_separating_channel_is_finite_and_first() -> None:
    features = torch.tensor([[1.0, 1.0], [1.0, 1.5], [3.0, 2.0], [3.0, 3.0]]).double()
    ratio = fisher_ratio(moments(features, torch.tensor([0, 0, 1, 1])))
    assert torch.isfinite(ratio).all()
    assert ratio[0] > 1e6 * ratio[1]


def test_it_does_not_change_under_affine_maps_of_a_channel() -> None:
    features, labels = samples()
    mapped = features * torch.tensor([3.0, -0.2, 10.0, 1.0]) + torch.tensor([5.0, 0.0, -100.0, 1.0])
    torch.testing.assert_close(fisher_ratio(moments(mapped, labels)), fisher_ratio(moments(features, labels)))


def test_it_is_about_zero_without_labels_and_larger_than_with_permuted_ones() -> None:
    features, labels = samples()
    ratio = fisher_ratio(moments(features, labels))
    generator = torch.Generator().manual_seed(1)
    permuted = torch.stack(
        [fisher_ratio(moments(features, labels[torch.randperm(len(labels), generator=generator)])) for _ in range(50)]
    )
    assert (ratio[:2] > permuted[:, :2].max(0).values).all()
    # Under independence (n - K) / (K - 1) J is F-distributed with mean about 1: J about 2 / 297.
    assert float(permuted.mean()) == pytest.approx(2 / 297, rel=0.25)
    assert ratio[2:].max() < 0.05


def test_units_of_several_channels_and_conv_groups_have_the_mean_of_theirs(readers: ModuleType) -> None:
    features, labels = samples()
    it = readers.reader(torch.ones(2, 4).double(), features, width=2)
    it = replace(it, inputs=replace(it.inputs, classes=moments(features.flip(1), labels)))
    assert FisherRatio().orders(Problem({"g": (it,)}, None))["g"].tolist() == [1, 0]
    # two conv groups of two channels: unit u is channels u and 2 + u, so the strongest, the last, is in unit 1
    grouped = replace(
        it,
        inputs=replace(it.inputs, mean=torch.zeros(2, 2).double()),
        columns=torch.tensor([[0], [1]]),
    )
    assert FisherRatio().orders(Problem({"g": (grouped,)}, None))["g"].tolist() == [1, 0]
