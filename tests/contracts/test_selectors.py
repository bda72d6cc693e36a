"""What every selector promises, on every reference network."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.least_squares import REFITS, output_error
from amcsearch.methods.selector import Calibration, Problem, problem_of, refitted, select
from amcsearch.methods.selectors import SELECTORS
from amcsearch.training.losses import task_loss
from amcsearch.training.models import MODELS
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.plain import vgg
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model, vit

# One of each kind, small: the promises do not depend on the width.
NETWORKS = {
    "resnet": lambda: resnet20(width=8, depth=8),
    "mobilenetv2": lambda: mobilenetv2(width_multiplier=0.5),
    "vgg": lambda: vgg(width=4),
    "vit": lambda: vit(depth=1, dim=32, mlp_width=32),
    "language_model": lambda: language_model(depth=1, dim=32, mlp_width=32, vocabulary=32),
}


@cache
def calibration(name: str) -> Calibration:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    generator = torch.Generator().manual_seed(1)
    if name == "language_model":
        x = torch.randint(0, 32, (10, 16), generator=generator)
        y = torch.randint(0, 32, (10, 16), generator=generator)
    else:
        x, y = torch.randn(10, 1, 32, 32, generator=generator), torch.arange(10)
    return Calibration(model, trace(model, x[:1]), x, y, task_loss, 4)


@cache
def problem(name: str) -> Problem:
    return problem_of(calibration(name), labels=True)


def removed_channels(weight: Tensor, columns: Tensor, taps: int, kept: np.ndarray) -> Tensor:
    removed = torch.zeros(weight.shape[-1] // taps, dtype=torch.bool)
    removed[columns[:, ::taps].flatten() // taps] = True
    removed[columns[kept.tolist(), ::taps].flatten() // taps] = False
    return removed


@pytest.mark.parametrize("selector_name", SELECTORS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_selector_orders_every_unit_and_its_refit_is_no_worse_than_none(network: str, selector_name: str) -> None:
    selector, given = SELECTORS[selector_name](), problem(network)
    model, found = given.calibration.model, given.calibration.trace
    assert selector.refit in REFITS
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    orders, inputs = select(given, selector)
    assert set(orders) == {group.name for group in found.network.groups}
    again, _ = select(given, selector)
    for group in found.network.groups:
        assert sorted(orders[group.name].tolist()) == list(range(group.channels // group.unit))
        np.testing.assert_array_equal(orders[group.name], again[group.name])
        kept = orders[group.name][: max(1, len(orders[group.name]) // 2)]
        for reader in given.readers[group.name]:
            assert reader.inputs is inputs[reader.inputs.layer]
            removed = removed_channels(reader.weight, reader.columns, reader.inputs.taps, kept)
            new = refitted(reader.inputs, reader.weight, removed, selector.refit)
            plain = refitted(reader.inputs, reader.weight, removed, "bias")
            errors = [output_error(reader.weight, it.weight, reader.inputs.gram) for it in (new, plain)]
            assert errors[0] <= errors[1] * (1 + 1e-6)
            assert not new.weight[:, :, removed.repeat_interleave(reader.inputs.taps)].any()
            assert new.shift.shape == (reader.weight.shape[0] * reader.weight.shape[1],)

    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_every_reference_network_has_a_reader_for_every_group() -> None:
    for name in set(MODELS) - {"resnet18"}:
        model = MODELS[name]()
        x = torch.zeros(1, 8, dtype=torch.long) if name == "language_model" else torch.randn(1, 1, 32, 32)
        found = trace(model, x)
        given = Calibration(model, found, x, torch.zeros(1, dtype=torch.long), task_loss, 1)
        readers = problem_of(given, positions=1).readers
        assert list(readers) == [group.name for group in found.network.groups]
