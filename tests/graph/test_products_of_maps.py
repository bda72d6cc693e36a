"""Heads of attention without a softmax leave both sides of its products."""

from types import ModuleType

import numpy as np
import pytest
import torch

from amcsearch.core.layer import LayerKind
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import macs
from amcsearch.graph import masked, remove, trace
from amcsearch.graph.tracing.grouping import of_all_rows

Shapes = dict[str, tuple[int, int, int, int]]
WIDTH, HEADS, TOKENS = 8, 4, 9
NETWORKS = (
    *("linear", "linear, 16 heads", "linear, other values", "linear, two sequences", "normalised", "einsum"),
    *("relu", "relu, 16 heads", "relu, widths as tokens", "relu, two sequences", "covariance", "bilinear", "outer"),
)


def products(network: NetworkSpec) -> Shapes:
    """Inputs, outputs, groups and rows of the products, by how their names end."""
    return {
        layer.name.rpartition(".")[2]: (layer.in_channels, layer.out_channels, layer.conv_groups, layer.out_size[0])
        for layer in network.layers
        if layer.kind is LayerKind.CONV
    }


@pytest.mark.parametrize(
    ("how", "dense", "halved", "work"),
    [
        # relu(K)ᵀV: 8 rows of sums over 9 tokens, 8 values; then relu(Q) times these: 9 rows of sums over 8
        (
            "linear",
            {"product": (4 * 9, 4 * 8, 4, 8), "product#2": (4 * 8, 4 * 8, 4, 9)},
            {"product": (2 * 9, 2 * 8, 2, 8), "product#2": (2 * 8, 2 * 8, 2, 9)},
            2 * 8 * 9 * 8,
        ),
        # QKᵀ: 9 rows of sums over 8 channels, 9 keys; then times V: 9 rows of sums over 9 keys
        (
            "relu",
            {"product": (4 * 8, 4 * 9, 4, 9), "product#2": (4 * 9, 4 * 8, 4, 9)},
            {"product": (2 * 8, 2 * 9, 2, 9), "product#2": (2 * 9, 2 * 8, 2, 9)},
            2 * 9 * 8 * 9,
        ),
    ],
)
def test_half_of_the_heads_leave_both_sides_of_both_products(
    how: str, dense: Shapes, halved: Shapes, work: int, products_of_maps: ModuleType
) -> None:
    network = trace(products_of_maps.NETWORKS[how]().eval(), products_of_maps.EXAMPLE).network
    assert products(network) == dense
    (heads,) = (group for group in network.groups if group.name == "attend.q")
    assert (heads.channels, heads.unit) == (HEADS * WIDTH, WIDTH)  # channels, of which a head leaves as one
    half = network.with_channels(PruningPolicy({**network.dense, "attend.q": 2 * WIDTH}))
    assert products(half) == halved
    assert [macs(layer) for layer in half.layers if layer.kind is LayerKind.CONV] == [work, work]


def test_a_head_of_channels_that_attend_to_channels_leaves_its_tokens_too(products_of_maps: ModuleType) -> None:
    network = trace(products_of_maps.Covariance().eval(), products_of_maps.EXAMPLE).network
    assert products(network) == {"product": (4 * 9, 4 * 8, 4, 8), "product#2": (4 * 8, 4 * 9, 4, 8)}
    one = network.with_channels(PruningPolicy({**network.dense, "q": WIDTH}))
    assert products(one) == {"product": (9, 8, 1, 8), "product#2": (8, 9, 1, 8)}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_removed_has_the_shapes_that_were_priced_and_computes_what_is_masked(
    name: str, products_of_maps: ModuleType
) -> None:
    torch.manual_seed(0)
    example = products_of_maps.EXAMPLE
    model, x = products_of_maps.NETWORKS[name]().eval(), torch.randn(2, *example.shape[1:])
    found = trace(model, example)
    for n_units in (2, 3):
        kept = {g.name: found.units[g.name][:n_units].ravel() for g in found.network.groups}
        small = remove(model, found, kept)
        with torch.no_grad(), masked(model, found, kept):
            torch.testing.assert_close(small(x), model(x))
        priced = found.network.with_channels(PruningPolicy({group: len(units) for group, units in kept.items()}))
        assert products(trace(small, example).network) == products(priced)


def test_a_row_that_leaves_without_the_others_of_its_head_is_no_head() -> None:
    """Three heads of two rows, each with a label: those of the first and the last are of one unit, 1 and 3."""
    labels, units = np.array([[1, 2, 3], [4, 5, 6]]), np.array([0, 1, 2, 3, 1, 5, 3])
    assert of_all_rows(labels, units).tolist() == [1, 0, 3]
