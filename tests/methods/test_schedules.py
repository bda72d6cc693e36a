"""Mask schedules, worked by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.methods.mask_schedule import Masks, Moment, Plan
from amcsearch.methods.schedules.dynamic_surgery import DynamicSurgery, hysteresis, update_probability
from amcsearch.methods.schedules.gradual import Gradual, cubic_sparsity
from amcsearch.methods.schedules.lottery import Lottery, round_lengths, ticket_counts
from amcsearch.methods.schedules.movement import MovementTopV, top_v
from amcsearch.methods.schedules.one_shot import OneShot
from amcsearch.methods.schedules.rigl import RigL, drop_share
from amcsearch.methods.schedules.rounds import Iterative, round_sparsities


def moment(
    step: int,
    plan: Plan,
    weight: torch.Tensor,
    mask: torch.Tensor | None = None,
    gradient: torch.Tensor | None = None,
    memory: dict[str, torch.Tensor] | None = None,
) -> Moment:
    masks: Masks = {"w": torch.ones_like(weight, dtype=torch.bool) if mask is None else mask}
    gradients = {} if gradient is None else {"w": gradient}
    return Moment(
        step, plan, {"w": weight}, masks, gradients, lambda: {"w": weight.abs()}, {} if memory is None else memory
    )


# gradual


def test_cubic_values() -> None:
    assert cubic_sparsity(0.25, 0.0, 0.9) == pytest.approx(0.5203, abs=1e-4)
    assert cubic_sparsity(0.5, 0.0, 0.9) == pytest.approx(0.7875, abs=1e-4)
    assert cubic_sparsity(-1.0, 0.2, 0.9) == pytest.approx(0.2)
    assert cubic_sparsity(2.0, 0.2, 0.9) == 0.9


def test_gradual_rises_monotone_concave_and_stays() -> None:
    plan = Plan(101, 1000, 0.9)
    schedule = Gradual(begin_at=0.1, end_at=0.8)
    s = [schedule.sparsity_at(step, plan) for step in range(101)]
    assert s[0] == s[10] == 0.0
    assert s[80] == s[100] == 0.9
    steps = [b - a for a, b in pairwise(s[10:81])]
    assert all(step >= 0 for step in steps)
    assert all(b <= a + 1e-12 for a, b in pairwise(steps))


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_gradual_reaches_each_event_within_one_weight(scope: str) -> None:
    plan, schedule = Plan(50, 40, 0.9), Gradual(events=7, scope=scope)  # type: ignore[arg-type]
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    mask, events = torch.ones(5, 8, dtype=torch.bool), 0
    for step in range(50):
        found = schedule.masks(moment(step, plan, weight, mask))
        if found is not None:
            mask, events = found["w"], events + 1
            assert abs(1.0 - mask.float().mean() - schedule.sparsity_at(step, plan)) <= 1.0 / 40
    assert events == 8  # both ends
    assert int(mask.sum()) == 4


def test_gradual_without_a_span_prunes_once() -> None:
    found = Gradual(begin_at=0.5, end_at=0.5).masks(moment(2, Plan(5, 4, 0.5), torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert found is not None
    assert found["w"].tolist() == [False, False, True, True]
    assert Gradual(begin_at=0.5, end_at=0.5).sparsity_at(1, Plan(5, 4, 0.5)) == 0.0


# rounds


def test_round_shapes() -> None:
    assert round_sparsities(0.75, 2, "geometric") == pytest.approx([0.5, 0.75])
    assert round_sparsities(0.8, 2, "linear") == pytest.approx([0.4, 0.8])
    assert round_sparsities(0.8, 2, "cubic") == pytest.approx([0.7, 0.8])
    eight = round_sparsities(1.0 - 0.8**8, 8, "geometric")
    assert [1.0 - s for s in eight] == pytest.approx([0.8**i for i in range(1, 9)])
    assert 1.0 - eight[6] == pytest.approx(0.2097, abs=1e-4)  # seven rounds of 20 % are not 80 %


@given(st.integers(1, 8), st.floats(0.0, 0.95), st.sampled_from(["geometric", "linear", "cubic"]))
def test_rounds_are_nested_and_end_at_the_same_count(rounds: int, sparsity: float, shape: str) -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(rounds))
    plan, schedule = Plan(40, 60, sparsity), Iterative(rounds, shape)  # type: ignore[arg-type]
    mask = schedule.begin(moment(0, plan, weight))["w"]
    prunings = 1
    for step in range(40):
        drifting = weight + 0.1 * step * weight.flip(0)
        found = schedule.masks(moment(step, plan, drifting, mask))
        if found is not None:
            prunings += 1
            assert not (found["w"] & ~mask).any()
            mask = found["w"]
    assert prunings == rounds
    assert int(mask.sum()) == plan.n_keep


def test_one_round_is_one_shot() -> None:
    plan, weight = Plan(10, 6, 0.5), torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    first = OneShot().begin(moment(0, plan, weight))["w"]
    assert first.tolist() == [False, False, False, True, True, True]
    assert torch.equal(first, Iterative(1).begin(moment(0, plan, weight))["w"])
    assert all(Iterative(1).masks(moment(step, plan, weight)) is None for step in range(10))


def test_a_rewound_learning_rate_replays_the_schedule_each_round() -> None:
    plan = Plan(20, 100, 0.5)
    assert [Iterative(4).clock(step, plan) for step in range(7)] == [0, 4, 8, 12, 16, 0, 4]
    assert [Iterative(4, learning_rate="running").clock(step, plan) for step in (0, 7)] == [0, 7]
    with pytest.raises(BadInputError, match="raise the epochs"):
        Iterative(21).clock(0, plan)


# RigL


def test_drop_share_ends() -> None:
    assert drop_share(0, 75, 0.3) == pytest.approx(0.3)
    assert drop_share(75, 75, 0.3) == drop_share(80, 75, 0.3) == 0.0


def test_rigl_drops_the_smallest_and_grows_the_steepest() -> None:
    weight = torch.tensor([4.0, 3.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    mask = weight > 0
    gradient = torch.tensor([9.0, 9.0, 0.1, 5.0, 0.2, -7.0, 0.3, 1.0])
    schedule, plan = RigL(alpha=0.5, interval=1, end_at=1.0), Plan(100, 8, 0.5)
    found = schedule.masks(moment(0, plan, weight, mask, gradient))
    assert found is not None  # k = 2: entries 2 and 3 fall; of what is not kept, |-7| and 5 are steepest: 3 returns
    assert found["w"].tolist() == [True, True, False, True, False, True, False, False]
    assert schedule.skips(0, plan)
    assert schedule.masks(moment(100, plan, weight, mask, gradient)) is None


def test_rigl_without_movement_is_static() -> None:
    weight = torch.randn(4, 4)
    schedule, plan = RigL(alpha=0.0, interval=1), Plan(10, 16, 0.5)
    assert int(schedule.begin(moment(0, plan, weight))["w"].sum()) == 8
    assert all(schedule.masks(moment(s, plan, weight, gradient=weight)) is None for s in range(10))
    assert not any(schedule.skips(s, plan) for s in range(10))


@given(st.integers(0, 99), st.integers(0, 50))
def test_rigl_keeps_the_count_and_grows_exactly_the_top(step: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(60, generator=generator) for _ in range(2))
    mask = torch.rand(60, generator=generator) < 0.4
    schedule, plan = RigL(interval=1, end_at=1.0), Plan(100, 60, 0.6)
    found = schedule.masks(moment(step, plan, weight * mask, mask, gradient))
    assert found is not None
    count, new = int(mask.sum()), found["w"]
    assert int(new.sum()) == count
    k = int(drop_share(step, 100, 0.3) * count)
    kept = set(sorted(mask.nonzero().flatten().tolist(), key=lambda i: -abs(float(weight[i])))[: count - k])
    free = sorted(set(range(60)) - kept, key=lambda i: -abs(float(gradient[i])))
    assert set(new.nonzero().flatten().tolist()) == kept | set(free[:k])


# dynamic network surgery


def test_hysteresis() -> None:
    scores = torch.tensor([0.8, 0.95, 1.05, 1.2])
    on, off = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    assert hysteresis(scores, on, 1.0).tolist() == [False, True, True, True]
    assert hysteresis(scores, off, 1.0).tolist() == [False, False, False, True]


@given(st.lists(st.floats(0.9001, 1.0999), min_size=2, max_size=10), st.booleans())
def test_inside_the_band_nothing_flips(walk: list[float], used: bool) -> None:
    mask = torch.tensor([used])
    for value in walk:
        mask = hysteresis(torch.tensor([value]), mask, 1.0)
    assert bool(mask) is used


def test_updates_follow_the_power_law() -> None:
    assert update_probability(0, 0.001, 1.0) == 1.0
    assert update_probability(1000, 0.001, 1.0) == 0.5
    weight, step, hits = torch.rand(8) + 0.1, 4, 0
    p = update_probability(step, 0.25, 1.0)  # a half
    for seed in range(2000):
        memory = {"w": torch.tensor(0.3, dtype=torch.float64)}
        found = DynamicSurgery(gamma=0.25, seed=seed).masks(moment(step, Plan(100, 8, 0.5), weight, memory=memory))
        hits += found is not None
    assert abs(hits - 2000 * p) < 4 * math.sqrt(2000 * p * (1 - p))


def test_a_larger_c_rate_is_sparser_and_null_meets_the_target() -> None:
    weight = torch.randn(400, generator=torch.Generator().manual_seed(0))
    plan, kept = Plan(100, 400, 0.7), []
    for c_rate in (0.0, 0.5, 1.0, None):
        here = moment(0, plan, weight, memory={})
        schedule = DynamicSurgery(c_rate=c_rate)
        schedule.begin(here)
        found = schedule.masks(here)
        assert found is not None
        kept.append(int(found["w"].sum()))
    assert kept[0] > kept[1] > kept[2]
    assert kept[3] == 120


def test_surgery_ends_exact() -> None:
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    schedule, plan = DynamicSurgery(c_rate=0.0, stop_at=0.5), Plan(11, 50, 0.9)
    here = moment(5, plan, weight, memory={})
    schedule.begin(here)
    found = schedule.masks(here)
    assert found is not None
    assert int(found["w"].sum()) == 5
    assert schedule.masks(moment(6, plan, weight, memory=here.memory)) is None


# lottery


def test_ticket_counts() -> None:
    assert ticket_counts(100, 33, 0.2) == [80, 64, 51, 40, 33]
    assert len(ticket_counts(10**6, 200_000, 0.2)) == 8
    assert len(ticket_counts(10**6, 100_000, 0.2)) == 11
    assert ticket_counts(7, 7, 0.2) == []


def test_lottery_walks_its_rounds() -> None:
    plan, lottery = Plan(26, 100, 0.36), Lottery(rewind_to=0.25)  # to 80, then to 64: three rounds
    assert round_lengths(plan, lottery) == (9, 2)  # 9 + 2 * (9 - 2 + 1) = 25 fits, 10 + 2 * 9 does not
    assert [step for step in range(26) if lottery.remembers(step, plan)] == [2]
    assert [step for step in range(26) if lottery.rewinds(step, plan)] == [9, 17]
    assert [step for step in range(26) if lottery.skips(step, plan)] == [9, 17]
    places = [*range(9), 1, *range(2, 9), 1, *range(2, 9), 8]  # the spare step stays at the end
    assert [lottery.clock(step, plan) for step in range(26)] == [place * 26 // 9 for place in places]
    with pytest.raises(BadInputError, match="raise the epochs"):
        lottery.clock(0, Plan(2, 100, 0.36))


def test_lottery_keeps_the_best_of_the_remaining() -> None:
    plan, weight = Plan(30, 10, 0.4), torch.arange(1.0, 11.0)
    step = next(s for s in range(30) if Lottery(rewind_to=0.0).rewinds(s, plan))
    found = Lottery(rewind_to=0.0).masks(moment(step, plan, weight))
    assert found is not None
    assert found["w"].tolist() == [False] * 2 + [True] * 8
    assert Lottery(rewind_to=0.0).masks(moment(step + 1, plan, weight)) is None


# movement


def test_one_step_from_nothing_also_where_masked() -> None:
    weight, gradient = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0.5, 0.25, -1.0])
    here = moment(0, Plan(10, 3, 0.5), weight, torch.tensor([True, False, True]), gradient)
    MovementTopV(learning_rate=0.1).masks(here)
    torch.testing.assert_close(here.memory["w"], -0.1 * gradient * weight)


@pytest.mark.parametrize(("weight", "rises"), [(0.5, True), (2.0, False)])
def test_scores_rise_where_weights_move_away_from_zero(weight: float, rises: bool) -> None:
    w = torch.tensor([weight])
    here = moment(0, Plan(10, 1, 0.5), w, gradient=w - 1.0)  # L = (w - 1)^2 / 2
    MovementTopV().masks(here)
    assert (float(here.memory["w"]) > 0) is rises


def test_the_product_is_inside_the_sum() -> None:
    memory: dict[str, torch.Tensor] = {}
    for weight, gradient in ((1.0, 2.0), (3.0, -1.0)):
        w, g = torch.tensor([weight, 1.0]), torch.tensor([gradient, 0.0])
        MovementTopV(learning_rate=1.0).masks(moment(0, Plan(9, 2, 0.5), w, gradient=g, memory=memory))
    assert float(memory["w"][0]) == -(2.0 * 1.0) + 3.0 * 1.0


@given(st.integers(1, 50), st.floats(0.0, 1.0))
def test_top_v_is_exact(n: int, v: float) -> None:
    assert int(top_v(torch.zeros(n), v).sum()) == math.floor(v * n + 1e-9)


def test_v_falls_from_1_to_the_target() -> None:
    plan, schedule = Plan(101, 64, 0.85), MovementTopV(warmup=0.1, cooldown=0.3)
    v = [schedule.kept_at(step, plan) for step in range(101)]
    assert v[0] == v[10] == 1.0
    assert v[70] == v[100] == pytest.approx(0.15)
    assert all(b <= a for a, b in pairwise(v))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gradual(begin_at=0.5, end_at=0.4), "from 0.5 to 1"),
        (lambda: Gradual(events=0), "events"),
        (lambda: Iterative(0), "rounds"),
        (lambda: RigL(alpha=1.5), "alpha"),
        (lambda: RigL(interval=0), "interval"),
        (lambda: DynamicSurgery(gamma=-1.0), "gamma"),
        (lambda: Lottery(rate=1.0), "rate"),
        (lambda: MovementTopV(warmup=0.6, cooldown=0.6), "cooldown"),
        (lambda: MovementTopV(learning_rate=0.0), "learning_rate"),
        (lambda: Plan(0, 1, 0.5), "epochs"),
        (lambda: Plan(1, 1, 1.0), "sparsity"),
    ],
)
def test_bad_values_are_named(make: object, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        make()  # type: ignore[operator]
