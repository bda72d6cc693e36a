"""Energy-aware order: by energy, not by parameters; and how far one group goes."""

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace
from amcsearch.core.trial import Evaluation
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.search.budget import FeasibleSet, resolve_budget
from amcsearch.search.energy_aware import EnergyAware, energy_of_groups, exchange, restore
from amcsearch.search.reward import RewardContext, bind
from amcsearch.search.study import Study

DEVICE = DeviceProfile(
    "toy",
    16,
    {16: 1.0},
    (MemoryLevel("buffer", 1 << 16, 1.0, "toy"), MemoryLevel("dram", None, 100.0, "toy")),
    sources={"mac_pj": "toy"},
)


def early_convolution_and_late_linear() -> NetworkSpec:
    """A convolution of few weights on a large map, then linear layers of many weights: 80 and 20,000 and 2,000."""
    layers = (
        LayerSpec("conv", LayerKind.CONV, 1, 8, (3, 3), padding=(1, 1), in_size=(64, 64), out_size=(64, 64)),
        LayerSpec("pool", LayerKind.LINEAR, 8, 4, in_size=(1, 1), out_size=(1, 1)),
        LayerSpec("wide", LayerKind.LINEAR, 4, 200),
        LayerSpec("head", LayerKind.LINEAR, 200, 10),
    )
    return NetworkSpec(
        layers,
        (
            ChannelGroup("early", 8, (Coupling("conv", Side.OUT), Coupling("pool", Side.IN))),
            ChannelGroup("late", 200, (Coupling("wide", Side.OUT), Coupling("head", Side.IN))),
        ),
    )


def test_the_order_is_by_energy_and_not_by_parameters() -> None:
    network = early_convolution_and_late_linear()
    grid = CostGrid(network, [Macs(), Params(), EnergyModel(DEVICE)])
    kept = network.kept_array(network.dense)
    early, late = energy_of_groups(network, grid, kept)
    params = grid.price_layers(kept[None, :])["params"][0]
    assert params[:2].sum() < params[2:].sum()
    assert early > late


def test_the_energy_of_a_group_is_that_of_its_layers(synthetic) -> None:
    study = synthetic.make_study(budget={}, trials=2)
    kept = study.space.dense
    layers = study.grid.price_layers(kept[None, :])["macs"][0]
    found = energy_of_groups(study.network, study.grid, kept)  # no energy model: MACs
    assert found.tolist() == [layers[i] + layers[i + 1] for i in range(4)]


class Flat:
    """Loss rises with channels removed from ``late`` only; remembers what was asked."""

    def __init__(self) -> None:
        self.asked = []

    def map(self, policies):
        for policy in policies:
            self.asked.append(policy)
            yield Evaluation(0.9, 0.01 * (200 - policy["late"]), 0.0)


def study_of(trials: int, budget: str) -> Study:
    network = early_convolution_and_late_linear()
    space = PolicySpace.on_grid(network.groups)
    grid = CostGrid(network, [Macs(), Params(), EnergyModel(DEVICE)])
    limits = resolve_budget({"energy_mj": budget}, grid.cost(network.dense))
    reward = bind("accuracy", {}, RewardContext(grid.cost(network.dense), 1.0, limits))
    return Study(
        network,
        space,
        grid,
        FeasibleSet(space, grid, limits),
        Flat(),
        reward,
        agent="energy_aware",
        seed=0,
        trials=trials,
        storage="sqlite:///:memory:",
        name="test",
    )


def test_the_group_of_most_energy_goes_first_and_no_farther_than_the_budget_needs() -> None:
    study = study_of(12, "0.6x")
    EnergyAware().run(study, 0)
    narrowed = [policy for policy in study._executor.asked if dict(policy) != dict(study.network.dense)]
    assert narrowed[0]["early"] < 8
    assert narrowed[0]["late"] == 200
    first = next(trial for trial in study.trials if study.feasible.contains(_row(study, trial))[0])
    wider = _row(study, first)
    assert first.policy["late"] == 200
    wider[0, 0] += 1
    assert not study.feasible.contains(wider)[0]


def test_a_group_is_narrowed_as_far_as_the_tolerance_lets_it() -> None:
    """Each channel of ``late`` costs 0.01 nats: a tolerance of 0.055 lets five go."""
    study = study_of(40, "0.3x")
    hurts: dict[int, float] = {}
    found = EnergyAware()._narrowed(study, study.space.dense, 1, 0.055, hurts)
    assert found.tolist() == [8, 195]
    saved = study.grid.price(np.array([[8, 200], [8, 195]]))["energy_mj"]
    assert hurts == {1: pytest.approx(0.05 / (saved[0] - saved[1]))}


class Known:
    """Loss by a table of what each removed channel costs."""

    def __init__(self, **costs: float) -> None:
        self.costs = costs

    def map(self, policies):
        for policy in policies:
            loss = self.costs["early"] * (8 - policy["early"]) + self.costs["late"] * (200 - policy["late"])
            yield Evaluation(float(np.exp(-loss)), loss, 0.0)


def test_what_hurts_most_is_restored_and_what_hurts_least_pays() -> None:
    """One early channel is a tenth of the energy, 162 late ones a twentieth: 0.162 nats are less than 1."""
    study = study_of(8, "0.95x")
    study._serving._executor = Known(early=1.0, late=0.001)
    kept = np.array([7, 200])
    study.evaluate([study.network.policy(kept)])
    row = exchange(study, kept, 0, {0: 1.0, 1: 0.001})
    assert row is not None
    assert row[0] == 8
    assert study.feasible.contains(row[None, :])[0]
    row[1] += 1
    assert not study.feasible.contains(row[None, :])[0]  # no farther than the energy of the channel needs
    assert exchange(study, kept, 1, {}) is None  # it is whole
    restore(study, kept, {0: 1.0, 1: 0.001})
    assert study.best is not None
    assert dict(study.best.policy) == {"early": 8, "late": row[1] - 1}
    assert len(study.trials) == 3  # the start, the exchange, and back, which does not pay
    assert all(study.feasible.contains(_row(study, trial))[0] for trial in study.trials)


def test_energy_that_nothing_predicts_is_said(synthetic) -> None:
    study = synthetic.make_study(trials=6)
    EnergyAware().run(study, 0)
    assert "in the order of their MACs" in study.notes[0]


def test_a_tolerance_of_nothing_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"tolerance = 0\.0 nats, must be above 0"):
        EnergyAware(0.0)


def _row(study: Study, trial) -> np.ndarray:
    return study.network.kept_array(trial.policy)[None, :]
