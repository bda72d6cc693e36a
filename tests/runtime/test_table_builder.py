import pickle

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core import BadInputError, LayerKind
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.graph.trace import trace
from amcsearch.runtime import channel_grid, measuring
from amcsearch.runtime.attribution import LayerTime
from amcsearch.runtime.measuring import MeasuredVariant, batched, measure_variants
from amcsearch.runtime.table_builder import build_table, held_out_policies, table_of, training_policies
from amcsearch.runtime.variants import random_policies
from amcsearch.training.models import MODELS

SOURCE = {"cpu": "test", "nchwc_block": 0}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    model, x = Small().eval(), torch.zeros(1, 1, 8, 8)
    return model, trace(model, x), x


def layer_ms(layer):
    """The fake device: bilinear in the widths, batch norms folded away."""
    if layer.kind is LayerKind.BATCH_NORM:
        return None
    return 0.01 + 1e-4 * layer.in_channels * layer.out_channels


def fake_variants(found, policies, overhead):
    variants = []
    for policy in policies:
        layers = found.network.with_channels(policy).layers
        true = {layer.name: ms for layer in layers if (ms := layer_ms(layer)) is not None}
        profile = {name: LayerTime(1.2 * ms + 0.002, 1) for name, ms in true.items()}
        whole = overhead + sum(true.values())
        variants.append(MeasuredVariant(policy, layers, whole, whole, profile))
    return variants


def test_a_device_that_adds_up_is_predicted_exactly(small):
    _, found, _ = small
    rng = np.random.default_rng(0)
    policies = [found.network.dense, *training_policies(found, 24, 8, rng)]
    table = table_of(fake_variants(found, policies, 0.004), 0.004, SOURCE)
    for policy in random_policies(found.network, 20, 8, rng):
        layers = found.network.with_channels(policy).layers
        true = 0.004 + sum(layer_ms(layer) or 0.0 for layer in layers)
        assert table.constant + sum(map(table.layer_cost, layers)) == pytest.approx(true, rel=0.02)
    calibration = table.info["calibration"]
    assert calibration["scale"] == pytest.approx(1 / 1.2, rel=1e-3)
    assert calibration["node_ms"] == pytest.approx(-0.002 / 1.2, rel=1e-2)


def test_training_variants_hold_the_extremes_and_widths_off_the_grid(small):
    _, found, _ = small
    policies = training_policies(found, 24, 8, np.random.default_rng(0))
    assert len(policies) == 23  # the dense network is the 24th
    assert all(n == 8 for n in policies[0].values())
    assert any(n % 8 for policy in policies for n in policy.values())


def test_held_out_variants_are_on_the_grid_and_are_not_those_that_built_the_table(small):
    _, found, _ = small
    held_out = held_out_policies(found, 60, 8, np.random.default_rng(1))
    assert len(held_out) == 20
    assert all(n % 8 == 0 for policy in held_out for n in policy.values())


def test_too_few_variants_are_refused(small):
    model, found, x = small
    with pytest.raises(BadInputError, match=r"variants = 3 \(at least 4\)"):
        build_table(model, found, x, variants=3)


def test_an_example_is_repeated_to_the_batch():
    assert batched(torch.arange(3).reshape(1, 3), 2).tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    monkeypatch.setattr(measuring, "SAMPLE_MS", 0.01)
    monkeypatch.setattr(measuring, "PROFILE_ROUNDS", 1)
    monkeypatch.setattr(channel_grid, "PAIRS", 1)


def test_small_chunks_give_every_variant_once_and_in_order(small, quick, monkeypatch):
    model, found, x = small
    monkeypatch.setattr(measuring, "CHUNK_BYTES", 1)
    policies = random_policies(found.network, 3, 8, np.random.default_rng(0))
    seen = []
    result = measure_variants(
        model, found, x, policies, threads=1, rng=np.random.default_rng(0), progress=lambda s, _: seen.append(s)
    )
    assert [v.policy for v in result] == [found.network.dense, *policies]
    assert all(v.latency_ms > 0 and v.profile for v in result)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_table_of_a_real_network_prices_every_policy_and_can_be_pickled(name, quick):
    model = MODELS[name]().eval()
    x = torch.zeros(1, 64, dtype=torch.int64) if name == "language_model" else torch.zeros(1, 1, 32, 32)
    found = trace(model, x, verify=False)
    table = build_table(model, found, x, batch=2, variants=4)
    again: LatencyTable = pickle.loads(pickle.dumps(table))
    for policy in random_policies(found.network, 5, 8, np.random.default_rng(5)):
        layers = found.network.with_channels(policy).layers
        assert sum(map(again.layer_cost, layers)) > 0
    assert table.info["provenance"]["batch"] == 2
    assert table.info["accuracy"]["variants"] == 12
    assert table.channel_multiple in {1, 2, 4, 8, 16}


def test_a_table_of_a_small_network_is_complete_and_can_be_pickled(small, quick):
    model, found, x = small
    table: LatencyTable = pickle.loads(pickle.dumps(build_table(model, found, x, variants=4, batch=2)))
    assert table.info["provenance"]["batch"] == 2
    assert {"constant_ms", "scale", "node_ms"} <= set(table.info["calibration"])
    assert {"mape", "median", "within_5", "within_10", "spearman", "noise_mape"} <= set(table.info["accuracy"])
    assert table.channel_multiple == table.info["channel_multiple"]
    assert all(table.layer_cost(layer) >= 0 for layer in found.network.layers)


def test_a_network_without_groups_still_gets_its_rows(quick):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 4)
    table = build_table(model, trace(model, x), x)
    assert table.info["accuracy"] is None
    assert len(table.rows) == 1
