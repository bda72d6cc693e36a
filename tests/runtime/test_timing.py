import gc
from unittest.mock import Mock

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.runtime import paired_latency as timing
from amcsearch.runtime.session import OnnxNetwork, _one_conv

X = np.ones((1, 4, 8, 8), dtype=np.float32)


def test_every_model_gets_one_positive_sample_a_round():
    networks = [OnnxNetwork(_one_conv(4, c)) for c in (2, 4, 8)]
    samples = timing.time_interleaved(networks, X, rounds=4, min_ms=0.01, rng=np.random.default_rng(0))
    assert samples.shape == (3, 4)
    assert (samples > 0).all()


def test_rounds_are_interleaved_in_a_fresh_order_each(monkeypatch):
    order = []
    networks = [Mock(bound_call=lambda arrays, name=name: lambda: order.append(name)) for name in "abcdef"]
    monkeypatch.setattr(timing.Clock, "sample_ms", lambda self, call, repeats: 1.0)
    timing.time_interleaved(networks, X, rounds=5, min_ms=1, rng=np.random.default_rng(0))
    rounds = [tuple(order[i : i + 6]) for i in range(0, 30, 6)]
    assert all(sorted(r) == list("abcdef") for r in rounds)
    assert len(set(rounds)) > 1


def test_the_garbage_collector_rests_while_timing_and_is_restored_after(monkeypatch):
    seen = []
    monkeypatch.setattr(timing.Clock, "sample_ms", lambda self, call, repeats: seen.append(gc.isenabled()) or 1.0)
    timing.time_interleaved([OnnxNetwork(_one_conv(4, 2))], X, rounds=1, min_ms=1, rng=np.random.default_rng(0))
    assert not any(seen)
    assert gc.isenabled()


def test_an_input_of_another_shape_is_bad_input():
    with pytest.raises(BadInputError, match="cannot be run on float32"):
        timing.time_interleaved([OnnxNetwork(_one_conv(3, 2))], X, 1, 1.0, np.random.default_rng(0))


def test_nothing_to_time_is_bad_input():
    with pytest.raises(BadInputError, match="0 models in 3 rounds"):
        timing.time_interleaved([], X, 3, 1.0, np.random.default_rng(0))
