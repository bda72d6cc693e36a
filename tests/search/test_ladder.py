"""The agent ``ladder`` and its surrogate: small problems whose answers are known, one of them really evaluated."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from amcsearch.core import (
    BadInputError,
    ChannelGroup,
    Cost,
    Coupling,
    Evaluation,
    LayerKind,
    LayerSpec,
    NetworkSpec,
    PolicySpace,
    PruningPolicy,
    Side,
    Trial,
)
from amcsearch.costs import CostGrid, Macs
from amcsearch.search import AGENTS, FeasibleSet, Study, resolve_budget
from amcsearch.search.exact.allocator import Allocator
from amcsearch.search.ladder import Ladder, _Run, _stand_ins
from amcsearch.search.local_search import walk_space
from amcsearch.search.surrogate import Surrogate, _most_probable, expected_improvement

PICTURES = 384


def conv(name: str, channels: tuple[int, int], size: int, stride: int = 1) -> LayerSpec:
    in_size = (size * stride, size * stride)
    return LayerSpec(
        name, LayerKind.CONV, *channels, (3, 3), (stride, stride), (1, 1), in_size=in_size, out_size=(size, size)
    )


def group(name: str, *couplings: Coupling) -> ChannelGroup:
    return ChannelGroup(name, 16, couplings)


def little_network() -> NetworkSpec:
    """The network of benchmarks/ladder.py: a stem, a residual block, two strided convolutions, a hidden layer."""
    layers = (
        conv("stem", (1, 16), 8),
        conv("inner", (16, 16), 8),
        conv("outer", (16, 16), 8),
        conv("down", (16, 16), 4, stride=2),
        conv("last", (16, 16), 2, stride=2),
        LayerSpec("hidden", LayerKind.LINEAR, 64, 16),
        LayerSpec("head", LayerKind.LINEAR, 16, 10),
    )
    into, out = Side.IN, Side.OUT
    stream = (Coupling("stem", out), Coupling("inner", into), Coupling("outer", out), Coupling("down", into))
    return NetworkSpec(
        layers,
        (
            group("stem", *stream),
            group("inner", Coupling("inner", out), Coupling("outer", into)),
            group("down", Coupling("down", out), Coupling("last", into)),
            group("last", Coupling("last", out), Coupling("hidden", into, factor=4)),
            group("hidden", Coupling("hidden", out), Coupling("head", into)),
        ),
    )


class Reached(Exception):  # noqa: N818 (the good end)
    """A policy near enough to the optimum was evaluated."""


@dataclass
class Enumerated:
    """All 16,807 policies of the little network, evaluated once: pictures named right, and the loss."""

    right: np.ndarray
    loss: np.ndarray
    errors: list[np.ndarray] | None

    def __post_init__(self) -> None:
        self.network = little_network()
        self.space = PolicySpace.on_grid(self.network.groups, 2, 0.8)
        self.kept = np.concatenate(list(walk_space(self.space)))
        self.grid = CostGrid(self.network, [Macs()])

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        return map(self.evaluate, policies)

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        sizes = [len(choices) for choices in self.space.choices]
        at = np.ravel_multi_index(self.space.indices(self.network.kept_array(policy)), sizes)
        return Evaluation(self.right[at] / PICTURES, float(self.loss[at]), 0.0)

    def rewards(self, judge: str) -> np.ndarray:
        return self.right / PICTURES if judge == "accuracy" else -self.loss.astype(np.float64)

    def evaluations_to_optimum(self, judge: str, budget: str, seed: int, most: int = 30) -> float:
        """Evaluations until the best reward is within 1 % of the range of rewards in the budget; inf if never."""
        feasible = FeasibleSet(
            self.space, self.grid, resolve_budget({"macs": budget}, self.grid.cost(self.network.dense))
        )
        within = self.rewards(judge)[feasible.contains(self.kept)]
        enough = within.max() - 0.01 * np.ptp(within)

        def reward(evaluation: Evaluation, cost: Cost) -> float:
            return evaluation.metric if judge == "accuracy" else -evaluation.loss

        def watch(trial: Trial, best: Trial | None, done: int, total: int) -> None:
            if trial.reward >= enough:
                raise Reached(done)

        study = Study(
            self.network,
            self.space,
            self.grid,
            feasible,
            self,
            reward,
            agent="ladder",
            seed=seed,
            trials=most,
            storage="sqlite:///:memory:",
            name="enumerated",
            progress=watch,
            errors=self.errors,
        )
        try:
            AGENTS["ladder"]().run(study, seed)
        except Reached as reached:
            return float(reached.args[0])
        return math.inf


@pytest.fixture(scope="module")
def enumerated() -> Enumerated:
    with np.load(Path(__file__).with_name("little_network.npz")) as data:
        return Enumerated(data["right"], data["loss"], list(data["errors"]))


def test_the_enumerated_problem_has_no_gaps(enumerated):
    assert len(enumerated.kept) == len(enumerated.right) == len(enumerated.loss) == 7**5
    assert np.isfinite(enumerated.loss).all()
    assert len(enumerated.errors) == 5
    assert enumerated.right[-1] / PICTURES > 0.95 > enumerated.right[0] / PICTURES  # dense, and narrowest


@pytest.mark.parametrize(("judge", "budget"), [("loss", "0.3x"), ("accuracy", "0.25x")])
def test_it_reaches_the_true_optimum_within_30_evaluations(enumerated, judge, budget):
    spent = [enumerated.evaluations_to_optimum(judge, budget, seed) for seed in range(10)]
    assert sum(count <= 30 for count in spent) >= 9


@pytest.mark.parametrize("budget", ["0.3x", pytest.param("0.2x", marks=pytest.mark.slow)])
def test_it_reaches_the_true_optimum_without_errors(enumerated, budget):
    unknown = replace(enumerated, errors=None)
    spent = [unknown.evaluations_to_optimum("loss", budget, seed) for seed in range(10)]
    assert sum(count <= 30 for count in spent) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["loss", "accuracy"])
def test_it_reaches_the_true_optimum_of_a_tight_budget(enumerated, judge):
    spent = [enumerated.evaluations_to_optimum(judge, "0.2x", seed) for seed in range(10)]
    assert sum(count <= 30 for count in spent) >= 9


def chain_space(widths: Sequence[int], multiple: int = 1) -> tuple[NetworkSpec, PolicySpace, CostGrid]:
    """Convolutions one after another, priced in MACs; ``widths`` are those of the groups."""
    channels = (1, *widths, 4)
    layers = tuple(conv(f"c{i}", channels[i : i + 2], 8) for i in range(len(widths) + 1))
    groups = tuple(
        ChannelGroup(f"g{i}", n, (Coupling(f"c{i}", Side.OUT), Coupling(f"c{i + 1}", Side.IN)))
        for i, n in enumerate(widths)
    )
    network = NetworkSpec(layers, groups)
    return network, PolicySpace.on_grid(groups, multiple), CostGrid(network, [Macs()])


@dataclass
class Made:
    """Loss by a function of the kept counts."""

    network: NetworkSpec
    loss_of: object

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        for policy in policies:
            loss = float(self.loss_of(self.network.kept_array(policy)))
            yield Evaluation(math.exp(-loss), loss, 0.0)


def made_study(loss_of, *, trials: int, errors: bool = True, widths: Sequence[int] = (12, 12, 12), **settings) -> Study:
    network, space, grid = chain_space(widths)
    limits = resolve_budget({"macs": settings.pop("macs", "0.4x")}, grid.cost(network.dense))
    squares = [(1.0 - choices / choices[-1]) ** 2 for choices in space.choices]
    return Study(
        network,
        space,
        grid,
        FeasibleSet(space, grid, limits),
        Made(network, loss_of),
        lambda evaluation, _: -evaluation.loss,
        agent="ladder",
        seed=0,
        trials=trials,
        storage="sqlite:///:memory:",
        name="made",
        errors=squares if errors else None,
        **settings,
    )


def weighed(weights: Sequence[float]):
    return lambda kept: float(np.sum(np.asarray(weights) * (1.0 - kept / 12.0) ** 2))


def best_loss(study: Study, loss_of) -> float:
    kept = np.concatenate(list(walk_space(study.space)))
    return min(map(loss_of, kept[study.feasible.contains(kept)]))


def test_improvement_of_a_normal_worth_by_hand():
    mean, deviation = np.array([1.0, 3.0, 0.0]), np.array([2.0, 0.0, 0.0])
    gain = expected_improvement(mean, deviation, 1.0)
    assert gain.tolist() == pytest.approx([2.0 / math.sqrt(2.0 * math.pi), 2.0, 0.0])


def test_the_most_probable_kernel_is_the_usual_one_unless_the_data_say_otherwise_by_hand():
    bounds, start = np.full((4, 2), [-20.0, 20.0]), np.zeros(4)
    usual, freedom = np.log([0.1, 0.1, 2.0, 0.02]), np.array([1.0, 1.0, 0.7, 1.0])
    logarithms, least = _most_probable(lambda x: (3.0, np.zeros_like(x)), start, bounds)
    assert logarithms == pytest.approx(usual, abs=1e-4)
    assert least == pytest.approx(3.0)

    def as_sure(x: np.ndarray) -> tuple[float, np.ndarray]:
        """Evidence for 1, each logarithm as certain as it was before: the middle is the most probable."""
        return 0.5 * float(((x - 1.0) ** 2 / freedom**2).sum()), (x - 1.0) / freedom**2

    assert _most_probable(as_sure, start, bounds)[0] == pytest.approx((usual + 1.0) / 2.0, abs=1e-4)


def test_three_policies_with_known_errors_call_neither_the_noise_nor_the_process_nought():
    _, space, grid = chain_space((12, 12, 12))
    surrogate = Surrogate(space, grid, [(1.0 - choices / choices[-1]) ** 2 for choices in space.choices])
    surrogate.fit(np.array([[8, 8, 8], [10, 6, 8], [6, 6, 6]]), np.array([0.0, -0.1, -1.0]))
    kernel = surrogate._process.kernel_
    assert kernel.k2.noise_level > 1e-3
    assert kernel.k1.k2.k1.constant_value > 1e-2


@pytest.mark.parametrize("guessed", [True, False])
def test_the_surrogate_learns_the_weight_of_every_group(guessed):
    _, space, grid = chain_space((12, 12, 12))
    errors = [(1.0 - choices / choices[-1]) ** 2 for choices in space.choices]
    surrogate, weights = Surrogate(space, grid, errors, guessed=guessed), np.array([4.0, 1.0, 0.25])
    kept = space.random(200, np.random.default_rng(0))
    kept = kept[(kept < 12).all(axis=1)][:60]
    worth = -((1.0 - kept / 12.0) ** 2) @ weights
    surrogate.fit(kept[:40], worth[:40])
    mean, deviation = surrogate.predict(kept[40:])
    behind = worth[:40].max() - worth
    compressed = -np.log1p(behind / np.median(behind[:40]))[40:]
    assert np.abs(mean - compressed).mean() < 0.03 * np.ptp(compressed)
    assert (deviation >= 0.0).all()
    narrowest = np.array([table[0] for table in surrogate.tables()])
    assert narrowest[0] > 2.0 * narrowest[1:].max()
    if guessed:  # the prior of known errors smooths: one policy beyond those seen is off by 0.15 of the range
        assert np.abs(mean - compressed).max() < 0.1 * np.ptp(compressed)
        assert narrowest[0] > narrowest[1] > narrowest[2]


def test_corrected_tables_never_rise_with_the_width_and_end_at_zero():
    _, space, grid = chain_space((12, 8))
    errors = [(1.0 - choices / choices[-1]) ** 2 for choices in space.choices]
    surrogate, rng = Surrogate(space, grid, errors), np.random.default_rng(0)
    kept = space.random(12, rng)
    surrogate.fit(kept, rng.standard_normal(12))
    for tables in (surrogate.tables(), *(surrogate.tables(rng) for _ in range(20))):
        assert [len(table) for table in tables] == [12, 8]
        assert all((np.diff(table) <= 0.0).all() and table[-1] == 0.0 for table in tables)


def test_a_believed_policy_has_less_to_gain():
    _, space, grid = chain_space((12, 12))
    surrogate = Surrogate(space, grid, [(1.0 - choices / choices[-1]) ** 2 for choices in space.choices])
    kept = np.array([[12, 3], [3, 12], [6, 6], [9, 4], [2, 2]])
    surrogate.fit(kept, np.array([0.0, -1.0, 0.5, 0.2, -2.0]))
    asked = np.array([[8, 8]])
    (mean,), (before,) = surrogate.predict(asked)
    surrogate.believe(asked[0])
    (same,), (after,) = surrogate.predict(asked)
    assert after < 0.5 * before
    assert same == pytest.approx(mean, abs=0.05)


def test_worths_that_are_all_equal_promise_nothing():
    _, space, grid = chain_space((4, 4))
    surrogate = Surrogate(space, grid, [1.0 - choices / choices[-1] for choices in space.choices])
    surrogate.fit(np.array([[4, 2], [2, 4], [3, 3]]), np.full(3, -0.5))
    mean, deviation = surrogate.predict(np.array([[1, 1], [4, 4]]))
    assert mean.tolist() == [0.0, 0.0]
    assert deviation.tolist() == [0.0, 0.0]
    assert surrogate.noise == 0.0


def test_exchanges_trade_steps_between_groups():
    study = made_study(weighed((1, 1)), trials=5, widths=(3, 3))
    run = _Run(Ladder(), study, 0)
    rows = {tuple(row) for row in run._exchanges(np.array([2, 3])).tolist()}
    alone = {(2, 3), (3, 3), (1, 3), (2, 2), (2, 1)}
    assert rows == alone | {(3, 2), (3, 1)}


def test_candidates_are_new_within_the_budget_once_each_and_in_ascending_order():
    study = made_study(weighed((4, 2, 1)), trials=5)
    run = _Run(Ladder(), study, 0)
    rows = study.space.random(400, np.random.default_rng(0))
    within = rows[study.feasible.contains(rows)]
    study.evaluate([study.network.policy(row) for row in within[:3]])
    assert run._new(rows).tolist() == [
        row.tolist() for row in np.unique(within, axis=0) if not study.seen(study.network.policy(row))
    ]
    study.evaluate([study.network.policy(within[-1])])
    assert within[-1].tolist() not in run._new(rows).tolist()
    assert run._new(rows[:0]).shape == (0, 3)


def test_the_first_evaluation_is_the_exact_programmes_policy():
    study = made_study(weighed((1, 1, 1)), trials=3)
    AGENTS["ladder"]().run(study, 0)
    exact = Allocator(study.feasible).best(study.errors)
    assert study.trials[0].policy == study.network.policy(exact)


def test_it_learns_weights_that_the_errors_lack():
    weights = (8.0, 1.0, 0.1)
    study = made_study(weighed(weights), trials=16)
    AGENTS["ladder"]().run(study, 0)
    assert -study.best.reward <= best_loss(study, weighed(weights)) * 1.01
    assert -study.trials[0].reward > best_loss(study, weighed(weights)) * 1.1


def test_without_errors_it_begins_with_the_uniform_policy_and_says_so():
    weights = (4.0, 1.0, 0.25)
    study = made_study(weighed(weights), trials=20, errors=False)
    AGENTS["ladder"]().run(study, 0)
    assert study.trials[0].policy == study.network.policy(study.feasible.largest_uniform())
    assert "no errors are known" in study.notes[0]
    assert -study.best.reward <= best_loss(study, weighed(weights)) * 1.02


def test_without_errors_what_stands_in_rises_as_channels_go_and_is_finite_for_none():
    group = ChannelGroup("g", 8, (), can_vanish=True)
    (errors,) = _stand_ins(PolicySpace((group,), (np.array([0, 4, 6, 8]),)))
    assert errors.tolist() == [2.25, 0.5, pytest.approx(1 / 12), 0.0]  # 0 as if 2 stayed


def test_it_stops_where_nothing_better_is_expected_and_says_so():
    study = made_study(lambda _: 1.0, trials=60)
    AGENTS["ladder"](patience=8).run(study, 0)
    assert 8 < len(study.trials) < 20
    assert "none was expected to improve" in study.notes[-1]


def test_without_an_exact_programme_it_goes_on_and_says_so():
    study = made_study(weighed((4.0, 1.0, 0.25)), trials=10)
    AGENTS["ladder"](sums=1.0).run(study, 0)
    assert len(study.trials) == 10
    assert any("without optima of the corrected tables" in note for note in study.notes)


def test_any_batch_finds_as_good_a_policy():
    weights = (8.0, 1.0, 0.1)
    study = made_study(weighed(weights), trials=24, batch=4)
    AGENTS["ladder"]().run(study, 0)
    assert -study.best.reward <= best_loss(study, weighed(weights)) * 1.02


def test_several_objectives_spread_along_the_front():
    study = made_study(weighed((4.0, 1.0, 0.25)), trials=24, macs="1.0x", objectives=("metric", "macs"))
    AGENTS["ladder"]().run(study, 0)
    shares = [trial.cost["macs"] / study.grid.cost(study.network.dense)["macs"] for trial in study.front]
    assert len(shares) >= 8
    assert min(shares) < 0.3 < 0.7 < max(shares)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("starts", 1), ("patience", 0), ("spread", 1.0), ("tolerance", -1.0), ("sums", 0.0), ("buckets", 0)],
)
def test_parameters_out_of_range_are_refused(setting, value):
    with pytest.raises(BadInputError, match=f"ladder: {setting} = "):
        Ladder(**{setting: value})
