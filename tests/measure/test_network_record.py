import json

import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.plan.network_record import network_from_record, network_record
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model, vit


@pytest.mark.parametrize("make", [resnet20, mobilenetv2, vit, language_model])
def test_a_network_comes_back_from_json(make):
    x = torch.zeros(1, 16, dtype=torch.int64) if make is language_model else torch.zeros(1, 1, 32, 32)
    network = trace(make(), x, verify=False).network
    assert network_from_record(json.loads(json.dumps(network_record(network)))) == network


def broken(change):
    record = {
        "layers": [
            {"kind": "linear", "name": "a", "in_channels": 4, "out_channels": 4, "conv_groups": 1, "has_weight": True}
            | {"has_bias": False}
            | {key: [1, 1] for key in ("kernel", "stride", "padding", "dilation", "in_size", "out_size")}
        ],
        "groups": [{"name": "a", "channels": 4, "unit": 1, "couplings": [["a", "out", 1]]}],
    }
    assert network_from_record(record).layers[0].out_channels == 4
    change(record)
    return record


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("groups"),
        lambda record: record["layers"][0].pop("kernel"),
        lambda record: record["layers"][0].update(kind="pool"),
        lambda record: record["layers"][0].update(kernel=[3]),
        lambda record: record["layers"][0].update(in_channels=0),
        lambda record: record["layers"][0].update(in_channels="four"),
        lambda record: record["groups"][0].update(couplings=[["a", "up", 1]]),
        lambda record: record["groups"][0].update(couplings=[["b", "out", 1]]),
        lambda record: record.update(layers=None),
    ],
)
def test_a_damaged_record_is_bad_input(change):
    with pytest.raises(BadInputError):
        network_from_record(broken(change))
