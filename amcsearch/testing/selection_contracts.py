"""What every criterion and selector promises, on small networks that are made here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amcsearch.core import PolicySpace
from amcsearch.graph import HeldBatches, Trace, trace
from amcsearch.methods import (
    REDUCTIONS,
    REFITS,
    Calibration,
    Criterion,
    Problem,
    Selector,
    keep,
    output_error,
    problem_of,
    rank,
    rank_units,
    refitted,
    score_units,
    select,
)
from amcsearch.training import (
    CLASS_IDS,
    MODELS,
)

__all__ = ["NETWORKS", "CriterionContract", "NetworkExample", "SelectorContract", "network_example"]

_LANGUAGE_MODEL = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_width": 24, "vocabulary": 32, "tie_embeddings": True}
NETWORKS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "resnet20": {"width": 4, "depth": 8},
        "vit": {"dim": 16, "depth": 1, "num_heads": 2, "mlp_width": 24, "image_size": 16},
        "language_model": _LANGUAGE_MODEL,
    }
)


@dataclass(frozen=True)
class NetworkExample:
    """A traced network with inputs (N, …) and targets (N, …)."""

    model: nn.Module
    trace: Trace
    inputs: Tensor
    targets: Tensor

    @property
    def dataset(self) -> TensorDataset:
        """Inputs and targets."""
        return TensorDataset(self.inputs, self.targets)


def network_example(name: str, samples: int = 16) -> NetworkExample:
    """Make a CNN, a transformer for images or a language model, small, with random data; always the same one."""
    torch.manual_seed(0)
    model = MODELS[name](**NETWORKS[name])
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=generator)  # as after training, not all 1
    if name == "language_model":
        tokens = torch.randint(0, 32, (samples, 9), generator=generator)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
    else:
        inputs, targets = torch.randn(samples, 1, 16, 16, generator=generator), torch.arange(samples) % 10
    return NetworkExample(model, trace(model.eval(), inputs[:1]), inputs, targets)


_shared_example = cache(network_example)
"""For contracts that leave the network as it is."""


class _Untouched:
    """Notes a network's state, and checks later that it is the same."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.train()
        self._before = {name: value.clone() for name, value in model.state_dict().items()}

    def check(self) -> None:
        assert all(module.training for module in self._model.modules())
        assert all(parameter.grad is None for parameter in self._model.parameters())
        assert all(torch.equal(self._before[name], value) for name, value in self._model.state_dict().items())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in self._model.modules())


class CriterionContract:
    """What every ``methods.Criterion`` promises."""

    def make(self) -> Criterion:
        """Return the criterion that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Criterion]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture(params=NETWORKS)
    def example(self, request: pytest.FixtureRequest) -> NetworkExample:
        """Give the tests one small network after another."""
        return _shared_example(request.param, 5)

    def test_it_ranks_every_unit_and_leaves_the_model_alone(
        self, maker: Callable[[], Criterion], example: NetworkExample
    ) -> None:
        """Scores are finite, differ within a group and repeat; fewer units kept are a subset of more."""
        criterion, untouched = maker(), _Untouched(example.model)
        model, trace, x, y = example.model, example.trace, example.inputs, example.targets
        assert criterion.reduction in REDUCTIONS
        scores = score_units(model, trace, {"it": criterion}, HeldBatches.of(x, y, 4), CLASS_IDS)["it"]
        assert set(scores) == {group.name for group in trace.network.groups}
        ranking = rank(scores)
        for group in trace.network.groups:
            assert np.isfinite(scores[group.name]).all()
            assert len(np.unique(scores[group.name])) > 1
            assert sorted(ranking[group.name]) == list(range(group.channels // group.unit))
        again = rank_units(model, trace, criterion, HeldBatches.of(x, y, 4), CLASS_IDS)
        assert all((ranking[name] == again[name]).all() for name in ranking)
        untouched.check()
        space = PolicySpace.on_grid(trace.network.groups)
        policies = (trace.network.policy(space.nearest(np.full(len(ranking), ratio))) for ratio in (0.7, 0.2))
        few, more = (keep(trace, ranking, policy) for policy in policies)
        assert all(set(few[name]) < set(more[name]) for name in ranking)


class SelectorContract:
    """What every ``methods.Selector`` promises."""

    def make(self) -> Selector:
        """Return the selector that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Selector]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture(params=NETWORKS)
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        """Give the tests one small network after another, with the moments of what its layers read."""
        example = _shared_example(request.param, 10)
        batches = HeldBatches.of(example.inputs, example.targets, 4)
        return problem_of(Calibration(example.model, example.trace, batches, CLASS_IDS), labels=True)

    def test_it_orders_every_unit_and_its_refit_is_no_worse_than_none(
        self, maker: Callable[[], Selector], problem: Problem
    ) -> None:
        """Orders repeat, the network is left alone, and what reads a group is refitted without its removed columns."""
        selector, trace = maker(), problem.calibration.trace
        untouched = _Untouched(problem.calibration.model)
        assert selector.refit in REFITS
        selection = select(problem, selector)
        orders, inputs = selection.orders, selection.inputs
        assert set(orders) == {group.name for group in trace.network.groups}
        again = select(problem, selector).orders
        assert selection.errors is None or set(selection.errors) == set(orders)
        for group in trace.network.groups:
            order = orders[group.name]
            assert sorted(order.tolist()) == list(range(group.channels // group.unit))
            np.testing.assert_array_equal(order, again[group.name])
            for reader in problem.readers[group.name]:
                assert reader.inputs is inputs[reader.inputs.layer]
                kept = order[: max(1, len(order) // 2)]
                removed = _removed_channels(reader.weight, reader.columns, reader.inputs.taps, kept)
                new = refitted(reader.inputs, reader.weight, removed, selector.refit)
                plain = refitted(reader.inputs, reader.weight, removed, "bias")
                errors = [output_error(reader.weight, it.weight, reader.inputs.gram) for it in (new, plain)]
                assert errors[0] <= errors[1] * (1 + 1e-6)
                assert not new.weight[:, :, removed.repeat_interleave(reader.inputs.taps)].any()
                assert new.shift.shape == (reader.weight.shape[0] * reader.weight.shape[1],)
        untouched.check()


def _removed_channels(weight: Tensor, columns: Tensor, taps: int, kept: NDArray[np.int64]) -> Tensor:
    removed = torch.zeros(weight.shape[-1] // taps, dtype=torch.bool)
    removed[columns[:, ::taps].flatten() // taps] = True
    removed[columns[kept.tolist(), ::taps].flatten() // taps] = False
    return removed
