"""Atoms, units and the bounded walk, on tables small enough to check by hand."""

from types import SimpleNamespace

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import Side
from amcsearch.graph.tracing.coupling import SlotTable
from amcsearch.graph.tracing.trace import Index, walk


def joined(pairs, widths, passes=()):
    table = SlotTable(widths, passes)
    for one, other in pairs:
        table.data.join(table.slot(*one), table.slot(*other))
    return table


def test_concatenation_makes_two_groups_with_offsets():
    pairs = [(("a", Side.OUT, i), ("c", Side.IN, i)) for i in range(2)]
    pairs += [(("b", Side.OUT, i), ("c", Side.IN, 2 + i)) for i in range(3)]
    first, second = joined(pairs, {"a": (1, 2), "b": (1, 3), "c": (5, 4)}).groups(["a", "b"])
    assert first.slots["c", Side.IN].tolist() == [[0], [1]]
    assert second.slots["c", Side.IN].tolist() == [[2], [3], [4]]


def test_flatten_gives_a_factor():
    pairs = [(("a", Side.OUT, i // 2), ("b", Side.IN, i)) for i in range(4)]
    (group,) = joined(pairs, {"a": (1, 2), "b": (4, 1)}).groups(["a"])
    assert group.slots["b", Side.IN].tolist() == [[0, 1], [2, 3]]


def test_two_conv_groupings_leave_in_their_least_common_multiple():
    table = joined([(("a", Side.OUT, i), ("b", Side.IN, i)) for i in range(12)], {"a": (1, 12), "b": (12, 1)})
    table.tie_units("a", Side.OUT, [i % 6 for i in range(12)])  # 2 conv groups
    table.tie_units("b", Side.IN, [i % 4 for i in range(12)])  # 3 conv groups
    (group,) = table.groups(["a"])
    assert group.units.tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]


def test_units_across_groups_uneven_units_and_a_single_unit_are_problems():
    table = joined([], {"a": (1, 2), "b": (1, 2), "c": (1, 3), "d": (1, 2)})
    table.unit.join(table.slot("a", Side.OUT, 0), table.slot("b", Side.OUT, 0))
    table.tie_units("c", Side.OUT, [0, 0, 1])
    table.tie_units("d", Side.OUT, [0, 0])
    problems = [group.problem for group in table.groups(["a", "b", "c", "d"])]
    assert ["differently" in problems[0], "differently" in problems[1]] == [True, True]
    assert "unequal numbers [1, 2]" in problems[2]
    assert "only leave all together" in problems[3]


def test_blocked_slots_block_what_is_tied_to_them():
    table = joined([(("a", Side.OUT, 0), ("b", Side.IN, 0))], {"a": (1, 1), "b": (1, 1)})
    table.block(table.slots("b", Side.IN), "because")
    assert [g.problem for g in table.groups(["a"])] == ["because"]


def test_slot_outside_a_layer_is_refused():
    with pytest.raises(BadInputError, match="3 output channels"):
        SlotTable({"a": (1, 3)}, []).slot("a", Side.OUT, 3)


class Node:
    def __init__(self):
        self.dependencies = []

    def leads_to(self, target, mapping=None):
        edge = SimpleNamespace(
            target=target, handler=max, index_mapping=[mapping, None], is_triggered_by=lambda handler: handler is max
        )
        self.dependencies.append(edge)


def test_walk_maps_indices_and_keeps_both_origins_of_a_shared_channel():
    first, second, third = Node(), Node(), Node()
    first.leads_to(second)
    first.leads_to(second, lambda pairs: [Index(1 - p.idx, p.root_idx) for p in pairs])  # a flip joins 0 and 1
    second.leads_to(third, lambda pairs: [Index(p.idx + 3, p.root_idx) for p in pairs])
    reached, strays = walk(first, max, 2, 8)
    assert reached[second, max] == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert reached[third, max] == {(3, 0), (3, 1), (4, 0), (4, 1)}
    assert not strays


def test_walk_ends_where_indices_grow_without_end():
    loop = Node()
    loop.leads_to(loop, lambda pairs: [Index(p.idx + 1, p.root_idx) for p in pairs])
    _, strays = walk(loop, max, 2, 8)
    assert strays == {0, 1}
