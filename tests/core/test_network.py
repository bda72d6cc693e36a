"""Shapes after removal, worked by hand, then as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy


def chain() -> NetworkSpec:
    """conv 3→8, depthwise 8, conv 8→4, flatten of 2x2, linear 16→10."""
    layers = (
        LayerSpec("a", LayerKind.CONV, 3, 8, (3, 3)),
        LayerSpec("dw", LayerKind.CONV, 8, 8, (3, 3), conv_groups=8),
        LayerSpec("b", LayerKind.CONV, 8, 4),
        LayerSpec("fc", LayerKind.LINEAR, 16, 10),
    )
    first = ChannelGroup(
        "a",
        8,
        (
            Coupling("a", Side.OUT),
            Coupling("dw", Side.IN),
            Coupling("dw", Side.OUT),
            Coupling("b", Side.IN),
        ),
    )
    second = ChannelGroup("b", 4, (Coupling("b", Side.OUT), Coupling("fc", Side.IN, factor=4)))
    return NetworkSpec(layers, (first, second))


def test_widths_after_removal_by_hand() -> None:
    smaller = chain().with_channels(PruningPolicy({"a": 6, "b": 3}))
    widths = [(layer.in_channels, layer.out_channels, layer.conv_groups) for layer in smaller.layers]
    assert widths == [(3, 6, 1), (6, 6, 6), (6, 3, 1), (12, 10, 1)]
    assert [group.channels for group in smaller.groups] == [6, 3]


def test_heads_leave_whole_and_grouped_convolutions_keep_their_groups() -> None:
    attention = LayerSpec("attn", LayerKind.ATTENTION, 64, 64, conv_groups=4)
    assert attention.resized(32, 32).conv_groups == 2
    assert attention.resized(40, 40).conv_groups == 4  # thinner heads: 2.5 whole ones there are not
    grouped = LayerSpec("g", LayerKind.CONV, 8, 16, conv_groups=4)
    assert grouped.resized(4, 8).conv_groups == 4


def test_depthwise_with_a_multiplier_loses_its_groups() -> None:
    layer = LayerSpec("dw", LayerKind.CONV, 4, 8, conv_groups=4)
    assert layer.is_depthwise
    smaller = layer.resized(3, 6)
    assert smaller.conv_groups == 3
    assert isinstance(smaller.conv_groups, int)  # keys of tables are whole numbers


@given(st.integers(1, 8), st.integers(1, 4))
def test_removing_twice_equals_removing_once(a: int, b: int) -> None:
    network = chain()
    once = network.with_channels(PruningPolicy({"a": a, "b": b}))
    halfway = network.with_channels(PruningPolicy({"a": max(a, 4), "b": max(b, 2)}))
    assert halfway.with_channels(PruningPolicy({"a": a, "b": b})) == once


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=5))
def test_batched_widths_agree_with_single_networks(rows: list[tuple[int, int]]) -> None:
    network = chain()
    width_in, width_out = network.widths(np.array(rows))
    for p, row in enumerate(rows):
        smaller = network.with_channels(network.policy(np.array(row)))
        assert width_in[p].tolist() == [layer.in_channels for layer in smaller.layers]
        assert width_out[p].tolist() == [layer.out_channels for layer in smaller.layers]


def test_the_dense_policy_changes_nothing() -> None:
    assert chain().with_channels(chain().dense) == chain()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"a": 9, "b": 1}, "n_keep = 9, must be a multiple of 1 from 1 to 8"),
        ({"a": 1}, r"^policy does not fit the network: unknown groups \[\], missing groups \['b'\]$"),
        ({"a": 1, "b": 1, "c": 1}, r"^policy does not fit the network: unknown groups \['c'\], missing groups \[\]$"),
    ],
)
def test_a_policy_that_does_not_fit_is_named(policy: dict[str, int], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        chain().with_channels(PruningPolicy(policy))


def test_a_row_of_another_network_is_no_policy() -> None:
    with pytest.raises(ValueError, match="shorter"):
        chain().policy(np.array([1]))


def test_widths_are_whole_numbers_also_without_groups() -> None:
    assert NetworkSpec(chain().layers, ()).kept_array(PruningPolicy({})).dtype == np.int64
    widths = NetworkSpec(chain().layers, ()).widths(np.zeros((2, 0), dtype=np.int64))
    assert [width.tolist() for width in widths] == [[[3, 8, 8, 16]] * 2, [[8, 8, 4, 10]] * 2]
    assert [width.dtype for width in widths] == [np.int64, np.int64]


def test_a_split_unit_is_refused() -> None:
    layer = LayerSpec("q", LayerKind.LINEAR, 8, 8)
    network = NetworkSpec((layer,), (ChannelGroup("q", 8, (Coupling("q", Side.OUT),), unit=4),))
    with pytest.raises(BadInputError, match="multiple of 4"):
        network.with_channels(PruningPolicy({"q": 6}))
    smaller = network.with_channels(PruningPolicy({"q": 4}))
    assert smaller.groups == (ChannelGroup("q", 4, (Coupling("q", Side.OUT),), unit=4),)


def test_names_must_differ_and_couplings_must_point_somewhere() -> None:
    layer = LayerSpec("a", LayerKind.LINEAR, 2, 2)
    group = ChannelGroup("g", 2, (Coupling("a", Side.OUT),))
    assert NetworkSpec((layer,), (group,)).groups == (group,)
    with pytest.raises(BadInputError, match=r"^layer names must differ: \['a'\]$"):
        NetworkSpec((layer, layer), ())
    with pytest.raises(BadInputError, match=r"^group names must differ: \['g'\]$"):
        NetworkSpec((layer,), (group, group))
    with pytest.raises(BadInputError, match=r"^group 'g' is coupled to unknown layers \['b'\]$"):
        NetworkSpec((layer,), (ChannelGroup("g", 2, (Coupling("a", Side.IN), Coupling("b", Side.OUT))),))


@pytest.mark.parametrize("field", ["in_channels", "out_channels", "conv_groups"])
def test_layers_without_channels_are_refused(field: str) -> None:
    counts = {"in_channels": 2, "out_channels": 2, "conv_groups": 1, field: 0}
    with pytest.raises(BadInputError, match=f"^layer 'a': {field} = 0, must be at least 1$"):
        LayerSpec("a", LayerKind.CONV, **counts)


@pytest.mark.parametrize(("field", "widths"), [("in_channels", (6, 4)), ("out_channels", (4, 6))])
def test_a_width_that_its_groups_do_not_divide_is_refused(field: str, widths: tuple[int, int]) -> None:
    with pytest.raises(BadInputError, match=f"^layer 'a': {field} = 6 is not a multiple of conv_groups = 4$"):
        LayerSpec("a", LayerKind.CONV, *widths, conv_groups=4)


@pytest.mark.parametrize(("channels", "unit"), [(0, 1), (2, 0), (3, 2)])
def test_a_group_is_made_of_whole_units(channels: int, unit: int) -> None:
    with pytest.raises(BadInputError, match=f"^group 'g': {channels} channels cannot be cut into units of {unit}$"):
        ChannelGroup("g", channels, (), unit)
    assert ChannelGroup("g", 1, ()).choices() == (1,)


def test_the_most_that_may_be_removed_is_itself_a_choice() -> None:
    # 10·(1 - 0.7) is a little above 3 in floating point
    assert ChannelGroup("g", 10, ()).choices(1, 0.7) == (3, 4, 5, 6, 7, 8, 9, 10)
