from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.runtime.on_device import timing
from amcsearch.runtime.paired_latency import (
    SAMPLE_MS,
    measure_many,
    measured_until_decided,
    measuring_seconds,
    median_interval,
    paired_latency,
    paired_samples,
    quiet_rounds,
)
from amcsearch.runtime.session import _one_conv


def rng():
    return np.random.default_rng(0)


def test_constant_samples_have_intervals_without_width():
    result = paired_latency(np.full(10, 4.0), np.full(10, 2.0), rng())
    assert (result.dense_low, result.dense_ms, result.dense_high) == (4.0, 4.0, 4.0)
    assert (result.pruned_low, result.pruned_ms, result.pruned_high) == (2.0, 2.0, 2.0)
    assert (result.ratio_low, result.ratio, result.ratio_high) == (0.5, 0.5, 0.5)
    assert result.rounds == 10


def test_drift_that_hits_both_models_alike_leaves_the_ratio_exact():
    drift = np.linspace(1.0, 3.0, 41)
    result = paired_latency(8.0 * drift, 2.0 * drift, rng())
    assert result.dense_high - result.dense_low > 1.0
    assert result.ratio_low == pytest.approx(0.25)
    assert result.ratio_high == pytest.approx(0.25)


def test_one_spike_does_not_move_the_median():
    pruned = np.full(21, 2.0)
    pruned[7] = 500.0
    assert paired_latency(np.full(21, 4.0), pruned, rng()).ratio_high == 0.5


def test_a_model_beside_itself_has_a_ratio_interval_around_one():
    generator = np.random.default_rng(3)
    a, b = generator.normal(10, 0.2, size=(2, 200))
    result = paired_latency(a, b, rng())
    assert result.ratio_low < 1.0 < result.ratio_high
    assert result.ratio_high - result.ratio_low < 0.02


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.exponential(1.0, size=(300, 40))
    _, low, high = median_interval(samples, rng(), resamples=400)
    covered = np.mean((low <= np.log(2)) & (np.log(2) <= high))
    assert 0.90 <= covered <= 0.99


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_the_median_lies_in_its_interval(values):
    median, low, high = median_interval(np.array([values]), rng(), resamples=200)
    assert low[0] <= median[0] + 1e-12
    assert median[0] <= high[0] + 1e-12


@pytest.mark.parametrize(
    ("dense", "pruned", "words"),
    [
        ([1.0], [1.0, 2.0], "equal rounds"),
        ([], [], "equal rounds"),
        ([1.0], [0.0], "positive"),
        ([np.nan], [1.0], "positive"),
    ],
)
def test_samples_that_cannot_be_paired_are_refused(dense, pruned, words):
    with pytest.raises(BadInputError, match=words):
        paired_latency(np.array(dense), np.array(pruned), rng())


def test_real_models_are_measured_beside_the_dense_one():
    x = np.ones((1, 4, 8, 8), dtype=np.float32)
    several = measure_many(_one_conv(4, 16), [_one_conv(4, 8), _one_conv(4, 4)], x, rounds=3, min_ms=0.05)
    assert len(several) == 2
    assert all(0.0 < latency.dense_low <= latency.dense_ms <= latency.dense_high for latency in several)
    (one,) = measure_many(_one_conv(4, 16), [_one_conv(4, 8)], x, rounds=3, min_ms=0.05)
    assert one.ratio_low <= one.ratio <= one.ratio_high


def test_rounds_in_which_either_model_was_disturbed_are_left_out():
    dense = np.array([1.0, 1.02, 1.3, 1.01, 1.04, 2.0])
    assert quiet_rounds(dense).tolist() == [True, True, False, True, True, False]
    pruned = np.array([0.5, 0.8, 0.5, 0.5, 0.5, 0.9])
    assert quiet_rounds(dense, pruned).tolist() == [True, False, False, True, True, False]
    mostly_disturbed = np.array([1.3] * 8 + [1.0, 1.01])
    assert quiet_rounds(mostly_disturbed).tolist() == [False] * 8 + [True, True]
    never_together = np.array([2.0, 1.0] * 10), np.array([1.0, 1.8] * 10)  # the quietest are those of 1.8 times
    assert quiet_rounds(*never_together).tolist() == [False, True] * 10


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 0.6), st.floats(1.1, 20.0))
def test_a_model_disturbed_as_often_as_the_dense_one_is_no_slower(seed, share, slowed):
    made = np.random.default_rng(seed)
    both = (1.0 + 0.01 * made.random((2, 400))) * np.where(made.random((2, 400)) < share, slowed, 1.0)
    one, other = paired_samples(both[0], both[1]), paired_samples(both[1], both[0])
    assert one.ratio == pytest.approx(1.0, abs=0.01)
    assert one.ratio * other.ratio == pytest.approx(1.0, abs=1e-3)
    assert one.rounds == other.rounds


def test_the_time_of_measuring_is_pauses_samples_and_warm_up():
    # 40 rounds are 2 blocks with 1 pause; a sample is a call of 1 ms after an untimed one; each block warms up 10 ms
    assert measuring_seconds(1.0, models=2, rounds=40) == pytest.approx(0.6 + 2 * (40 * 0.002 + 2 * 0.010))
    # calls of 0.1 ms fill a sample of 0.5 ms
    assert measuring_seconds(0.1, models=2, rounds=20) == pytest.approx(2 * (20 * 0.0006 + 0.010))
    # a call of 20 ms is a sample by itself, and the warm-up is two calls
    assert measuring_seconds(20.0, models=3, rounds=10) == pytest.approx(3 * (10 * 0.040 + 0.040))


class SharedCore:
    """A clock of a core that another program has for 6 ms after each 3 ms of ours; ``call`` computes for ``ms``."""

    def __init__(self):
        self.ran_ms = 0.0

    def now_ns(self):
        return round(1e6 * (self.ran_ms + 6.0 * (self.ran_ms // 3.0)))

    def call(self, ms):
        self.ran_ms += ms


@pytest.mark.parametrize(("sample_ms", "expected_ms"), [(SAMPLE_MS, 0.64), (9.0, 1.92)])
def test_short_samples_fall_between_other_programs(monkeypatch, sample_ms, expected_ms):
    core = SharedCore()
    monkeypatch.setattr(timing.time, "perf_counter_ns", core.now_ns)
    calls = [partial(core.call, 0.64), partial(core.call, 0.31)]
    rng, clock = np.random.default_rng(0), timing.Clock()
    repeats = [timing.warm_up(call, sample_ms, 10.0, clock)[0] for call in calls]
    rows = np.array([timing.time_round(calls, repeats, rng, clock) for _ in range(200)]).T
    assert paired_samples(rows[0], rows[1]).dense_ms == pytest.approx(expected_ms, rel=0.05)


class ScriptedHost:
    """A clock that sampling and pauses move, and a pruned model at half of dense that a neighbour disturbs at first."""

    def __init__(self, busy_blocks, seconds=2.0):
        self.now, self.busy_blocks, self.seconds, self.blocks = 0.0, busy_blocks, seconds, []

    def __call__(self, count):
        self.now += self.seconds
        noise = np.where(np.arange(count) % 7, 3.0, 1.0) if len(self.blocks) < self.busy_blocks else np.ones(count)
        self.blocks.append(count)
        return np.stack([np.full(count, 4.0), 2.0 * noise])

    def clock(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds

    def measure(self, rounds, patience_s):
        return measured_until_decided(self, rounds, patience_s, rng(), self.clock, self.pause)[0]


def test_a_quiet_host_is_measured_no_longer_than_asked():
    host = ScriptedHost(busy_blocks=0)
    assert host.measure(50, 60.0).doubt is None
    assert host.blocks == [20, 20, 10]


def test_a_busy_host_is_measured_on_until_the_result_decides():
    host = ScriptedHost(busy_blocks=2)
    latency = host.measure(40, 600.0)
    assert latency.doubt is None
    assert latency.ratio == pytest.approx(0.5)
    assert host.blocks[:2] == [20, 20]
    assert 3 <= len(host.blocks) < 12
    assert latency.rounds + latency.disturbed == sum(host.blocks)


def test_patience_ends_and_the_doubt_is_told():
    host = ScriptedHost(busy_blocks=10**6)
    latency = host.measure(40, 10.0)
    # two blocks were asked for; blocks of 2 s with pauses of 0.6 s begin at 0, 2.6, 5.2 and 7.8 s of patience
    assert host.blocks == [20] * 6
    assert "too busy: 102 of 120 rounds were disturbed and 18 quiet" in latency.doubt
    impatient = ScriptedHost(busy_blocks=10**6)
    assert impatient.measure(40, 0.0).doubt is not None
    assert impatient.blocks == [20, 20]


def test_without_a_stated_patience_it_is_three_times_as_long_as_the_rounds(monkeypatch):
    monkeypatch.setattr("amcsearch.runtime.paired_latency.PATIENCE", 3.0)  # other tests have none
    host = ScriptedHost(busy_blocks=10**6)
    assert host.measure(40, None).doubt is not None
    # the two blocks took 4.6 s; blocks of 2.6 s begin until 13.8 s of patience have passed
    assert host.blocks == [20] * 8
