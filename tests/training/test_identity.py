"""What tells networks and data apart, and what does not: other last bits."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amcsearch.training.identity import (
    Identity,
    differences,
    fingerprint,
    network_difference,
    read_parts,
    record_network,
    record_split,
)
from amcsearch.training.splits import SPLITS, DataSplits

INPUTS = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(100) % 3


class Net(nn.Sequential):
    """Linear, batch norm, and linear; ``bend`` is what comes between."""

    bend = staticmethod(torch.relu)

    def forward(self, x):
        return self[2](self.bend(self[1](self[0](x))))


def network(width=8, seed=0):
    torch.manual_seed(seed)
    return Net(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)).eval()


def splits(inputs=INPUTS, targets=TARGETS):
    parts = (range(40), range(20), range(40, 70), range(70, 100))
    return DataSplits(*(TensorDataset(inputs[list(rows)].clone(), targets[list(rows)].clone()) for rows in parts))


def identity(model=None, data=None, **more):
    parts = splits() if data is None else data
    record = record_network(network() if model is None else model, parts.calibration.tensors[0])
    by_split = {name: record_split(getattr(parts, name), name, 0) for name in SPLITS}
    return Identity(**{"settings": "a", "named": {}, "network": record, "splits": by_split, **more})


def changed(tensor, index, by):
    tensor = tensor.clone()
    tensor.view(-1)[index] += by
    return tensor


def test_the_same_is_the_same_also_through_a_file():
    before, now = identity(), identity()
    stored = Identity.from_json(json.loads(json.dumps(before.to_json())), "identity")
    assert differences(stored, now) == differences(before, now) == []
    assert fingerprint(stored) == fingerprint(now)


def test_numbers_of_a_tensor_by_hand():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, 4.0]])
    record = record_network(model, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    weight = record.tensors["weight"]
    assert (weight.shape, weight.dtype, weight.norm) == ((1, 2), "float32", 5.0)
    assert abs(weight.product) in (1.0, 7.0)  # plus or minus 3, plus or minus 4
    assert record.outputs == (11.0, 4.0)


@pytest.mark.parametrize(("side", "size"), [(1, 1024), (181, 256), (3000, 1)])
def test_samples_in_memory_are_checked_in_parts_of_32_mib(side, size):
    # 4 * (side² + 1) bytes a sample: 1,024 at most; 256 of 181x181 are 2^25 * 0.9998; one of 3000x3000 is more
    images = torch.zeros(1, side, side).expand(1100, side, side)
    parts = read_parts(TensorDataset(images, torch.zeros(1100)), np.arange(1100), "test", 0)
    assert next(iter(parts))[1].size == size


@given(st.integers(0, 7), st.sampled_from([1e-7, -1e-7]))
@settings(max_examples=10)
def test_other_last_bits_are_the_same(index, share):
    model, data = network(), splits()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.0 + share
    data.search.tensors[0][index] *= 1.0 + share
    assert differences(identity(), identity(model, data)) == []


@given(st.sampled_from(["0.weight", "0.bias", "1.running_mean", "2.bias"]), st.integers(0, 2), st.sampled_from([1, -1]))
@settings(max_examples=20)
def test_one_weight_of_another_value_is_named(name, index, sign):
    model = network()
    state = model.state_dict()
    state[name] = changed(state[name], index, sign * 0.01)
    model.load_state_dict(state)
    (text,) = differences(identity(), identity(model))
    assert text == f"the initial weights of the network have changed ({name})"


def test_weights_that_change_places_are_other_weights():
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(1))
    assert "0.weight" in network_difference(identity().network, record_network(model, INPUTS), "initial")


def test_structure_weights_and_computation_are_told_apart():
    class Other(Net):
        bend = staticmethod(torch.tanh)

    wider, other = network(width=9), Other(*network())
    (structure,), (weights,) = (
        differences(identity(), identity(wider)),
        differences(identity(), identity(network(seed=1))),
    )
    (computed,) = differences(identity(), identity(other.eval()))
    assert structure.startswith("the structure of the network has changed (0.weight: (8, 6), now (9, 6), ")
    assert weights.startswith("the initial weights of the network have changed (0.weight, 0.bias, 2.weight and 1 more)")
    assert computed.startswith("what the network computes has changed, though its weights have not")
    deeper = Net(*network(), nn.Linear(3, 3))
    assert "3.weight: none, now (3, 3)" in differences(identity(), identity(deeper.eval()))[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_themselves_alone(value):
    broken = network()
    with torch.no_grad():
        broken[0].weight[0, 0] = value
    worse = copy.deepcopy(broken)
    with torch.no_grad():
        worse[0].weight[0, 1] = 1.0
    record = Identity.from_json(json.loads(json.dumps(identity(broken).to_json())), "identity")
    assert differences(record, identity(copy.deepcopy(broken))) == []
    assert "0.weight" in differences(identity(), identity(broken))[0]
    assert "0.weight" in differences(record, identity())[0]
    assert "0.weight" in differences(record, identity(worse))[0]


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (changed(INPUTS, 6 * 45, 0.5), TARGETS, ["the inputs of the search split have changed"]),
        (INPUTS, changed(TARGETS, 80, 1), ["the targets of the test split have changed"]),
        (changed(INPUTS, 6 * 30, 0.5), TARGETS, ["the inputs of the train split have changed"]),
        (
            changed(INPUTS, 6 * 3, 0.5),
            changed(TARGETS, 3, 1),
            ["the inputs and targets of the train, calibration splits have changed"],
        ),
    ],
)
def test_the_split_whose_data_changed_is_named_and_not_the_network(inputs, targets, words):
    assert differences(identity(), identity(data=splits(inputs, targets))) == words


def test_one_sample_of_many_counts():
    inputs, targets = torch.randn(300, 6), torch.arange(300) % 3
    before = record_split(TensorDataset(inputs, targets), "test", 0)
    for edited in ((changed(inputs, 7 * 6, 0.3), targets), (inputs, changed(targets, 7, 1))):
        now = record_split(TensorDataset(*edited), "test", 0)
        assert (now.inputs, now.targets) != (before.inputs, before.targets)


def test_parts_of_a_split_are_recorded_as_one_tensor():
    inputs, targets = torch.randn(150, 7), torch.arange(150)
    record = record_split(TensorDataset(inputs, targets), "test", 0)
    layer = nn.Linear(7, 150, bias=False)
    layer.weight.data = inputs
    whole = record_network(layer, inputs).tensors["weight"]
    assert (record.inputs.shape, record.inputs.digest) == (whole.shape, whole.digest)
    assert (record.inputs.norm, record.inputs.product) == pytest.approx((whole.norm, whole.product))


def test_another_length_is_named():
    data = splits()
    shorter = replace(data, test=TensorDataset(*(tensor[:29] for tensor in data.test.tensors)))
    assert differences(identity(), identity(data=shorter)) == [
        "the samples (30, now 29) of the test split have changed"
    ]


class Random(Dataset):
    """Inputs with noise by the global seed, or by none."""

    def __init__(self, follows_seed):
        self.follows_seed = follows_seed

    def __len__(self):
        return 50

    def __getitem__(self, i):
        generator = torch.default_generator if self.follows_seed else torch.Generator()
        if not self.follows_seed:
            generator.seed()
        return INPUTS[i] + torch.randn(6, generator=generator), int(TARGETS[i])


def test_random_transforms_of_train_do_not_make_other_data():
    for follows_seed in (True, False):
        records = [record_split(Random(follows_seed), "train", 0) for _ in range(2)]
        assert (records[0].inputs is not None) == follows_seed
        pair = [replace(identity(), splits={"train": record}) for record in records]
        assert differences(*pair) == []
    fixed = replace(identity(), splits={"train": record_split(Random(follows_seed=True), "train", 0)})
    assert differences(fixed, pair[0]) == ["the inputs of the train split have changed"]


def test_settings_and_what_they_name_count():
    before = identity(named={"device.table": "1", "search.agent": "ddpg"})
    now = identity(settings="b", named={"device.table": "2", "search.agent": "ddpg"})
    assert differences(before, now) == ["the settings have changed", "what device.table names has changed"]


def test_everything_decides_the_fingerprint():
    class Other(Net):
        bend = staticmethod(torch.tanh)

    base = identity()
    others = [
        identity(network(seed=1)),
        identity(Other(*network()).eval()),
        identity(data=splits(changed(INPUTS, 6 * 45, 0.5))),
        identity(settings="b"),
        identity(named={"device.table": "2"}),
        identity(trained=base.network),
        identity(trained=record_network(network(seed=1), INPUTS)),
    ]
    assert len({fingerprint(each) for each in (base, *others)}) == 1 + len(others)


def test_a_network_that_draws_numbers_is_recorded_by_a_seed():
    class Drawing(Net):
        bend = staticmethod(lambda x: x + torch.rand(x.shape))

    model = Drawing(*network()).eval()
    assert record_network(model, INPUTS) == record_network(model, INPUTS)
