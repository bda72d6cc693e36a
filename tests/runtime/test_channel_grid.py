import numpy as np
import pytest
from torch import nn, zeros

from amcsearch.core import PruningPolicy
from amcsearch.graph.trace import trace
from amcsearch.runtime import channel_grid
from amcsearch.runtime.channel_grid import GridStep, accepted_multiple, measure_grid
from amcsearch.runtime.measuring import MeasuredVariant


def test_the_descent_ends_at_the_first_refusal():
    good, bad = (0.4, 0.2), (0.4, -0.1)
    assert accepted_multiple(16, []) == 16
    assert accepted_multiple(16, [GridStep(8, *good), GridStep(4, *good)]) == 4
    assert accepted_multiple(16, [GridStep(8, *good), GridStep(4, *bad)]) == 8
    assert accepted_multiple(16, [GridStep(8, *bad), GridStep(4, *good)]) == 16


@pytest.mark.parametrize(("block", "multiple"), [(16, 4), (8, 4), (0, 4)])
def test_a_device_that_pads_to_four_is_recognised(monkeypatch, block, multiple):
    """Fake times: proportional to the width rounded up to 4."""

    def measured(model, found, example, policies, *, threads, rng, profile):
        ms = [float(sum(-(-n // 4) * 4 for n in policy.values())) for policy in policies]
        variants = [MeasuredVariant(policy, (), t, t, {}) for policy, t in zip(policies, ms, strict=True)]
        return [MeasuredVariant(PruningPolicy({}), (), 1.0, 1.0, {}), *variants]

    monkeypatch.setattr(channel_grid, "measure_variants", measured)
    monkeypatch.setattr(channel_grid, "detect_nchwc_block", lambda: block)
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1)).eval()
    found, example = trace(model, zeros(1, 1, 4, 4)), zeros(1, 1, 4, 4)
    chosen, steps = measure_grid(model, found, example, threads=1, rng=np.random.default_rng(0))
    assert chosen == multiple
    assert steps[-1].multiple == 2
    assert not steps[-1].is_worthwhile
