"""A cost as a value: what is known of it, by name."""

import pickle

import pytest

from amcsearch.core.cost import Cost


def test_a_cost_holds_what_is_known() -> None:
    cost = Cost(macs=10.0, latency_ms=0.5)
    assert dict(cost) == {"macs": 10.0, "latency_ms": 0.5}
    with pytest.raises(KeyError):
        cost["energy_mj"]


def test_a_cost_holds_costs_of_any_name_after_the_four() -> None:
    cost = Cost({"mib": 2, "params": 3.0, "energy_mj": None})
    assert list(cost.items()) == [("params", 3.0), ("mib", 2.0)]
    assert cost.further == {"mib": 2.0}
    assert (cost.params, cost.energy_mj) == (3.0, None)
    assert cost == Cost({"params": 3.0, "mib": 2.0}) == Cost({"mib": 2.0}, params=3.0)
    assert hash(cost) == hash(Cost({"params": 3.0, "mib": 2.0}))
    assert len({hash(Cost(macs=float(n))) for n in range(8)}) == 8
    assert pickle.loads(pickle.dumps(cost)) == cost


def test_every_built_in_cost_has_its_name() -> None:
    cost = Cost(macs=1.0, params=2.0, latency_ms=3.0, energy_mj=4.0)
    assert list(cost.items()) == [("macs", 1.0), ("params", 2.0), ("latency_ms", 3.0), ("energy_mj", 4.0)]
    assert (cost.macs, cost.params, cost.latency_ms, cost.energy_mj) == (1.0, 2.0, 3.0, 4.0)
    assert len(cost) == 4
    assert repr(Cost(macs=1)) == "Cost({'macs': 1.0})"


def test_a_cost_cannot_be_changed() -> None:
    cost = Cost(macs=10.0)
    with pytest.raises(AttributeError, match=r"^cannot set macs of a cost, which is immutable; make another one$"):
        cost.macs = 3.0
    with pytest.raises(AttributeError, match=r"^cannot delete _values of a cost, which is immutable; make another"):
        del cost._values
    assert cost.macs == 10.0
