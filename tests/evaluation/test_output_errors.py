"""Errors of groups as they reach the network's outputs: by hand, and where outputs do not compare."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from amcsearch.core import PolicySpace
from amcsearch.evaluation import output_errors as module
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.evaluation.output_errors import corrected, errors_at_outputs, looked_at
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace

LAYERS = np.array([1.0, 0.75, 0.5, 0.25, 0.0])  # of four units of equal weight and orthogonal activations


class Branches(nn.Module):
    """Four inputs with weight 3 beside four with weight 1, each through a layer of four units."""

    def __init__(self) -> None:
        super().__init__()
        self.strong, self.weak = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        self.strong_head, self.weak_head = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.strong.weight.copy_(torch.eye(8)[:4])
            self.weak.weight.copy_(torch.eye(8)[4:])
            self.strong_head.weight.fill_(3.0)
            self.weak_head.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.strong_head(self.strong(x)) + self.weak_head(self.weak(x))


class Decided(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) > 0.0).long()


class Fragile(Branches):
    """Its outputs are infinite once a unit is gone."""

    def forward(self, x: Tensor) -> Tensor:
        widths = self.strong.out_features + self.weak.out_features
        return super().forward(x) + (0.0 if widths == 8 else math.inf)


def signs(samples: int) -> Tensor:
    """Rows of +1 and -1 whose eight columns are orthogonal in every 8 rows."""
    row = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    return torch.kron(torch.kron(row, row), row).repeat(samples // 8, 1)


def evaluator_of(model: nn.Module, x: Tensor) -> tuple[Evaluator, PolicySpace]:
    found = trace(Branches(), x[:1])
    ranking = {name: np.arange(len(units)) for name, units in found.units.items()}
    batches = HeldBatches.of(x, None, 16)
    return Evaluator(model, found, ranking, None, batches), PolicySpace.on_grid(found.network.groups)


def test_by_hand_what_a_group_writes_into_the_output_decides() -> None:
    x = signs(16)
    evaluator, space = evaluator_of(Branches(), x)
    strong, weak = (group.name for group in space.groups)
    found = errors_at_outputs(evaluator, evaluator.search, space, {strong: LAYERS, weak: LAYERS})
    # energy of the outputs: 4 · 3² + 4 · 1² = 40; a unit of the first branch takes 9 of it, one of the second 1
    assert found[strong].tolist() == pytest.approx([0.9, 0.675, 0.45, 0.225, 0.0])
    assert found[weak].tolist() == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])


def test_by_hand_a_power_of_the_kept_count_goes_through_both_ratios() -> None:
    errors = np.array([1.0, 0.5, 0.25, 0.1, 0.0])
    found = corrected({"g": errors}, {"g": {1: 0.05, 2: 0.0125}})["g"]  # ratios 0.1 and 0.05
    assert found.tolist() == pytest.approx([0.2, 0.05, 0.0125, 0.1 * 0.1 / 3, 0.0])


def test_by_hand_a_power_is_bounded_and_the_narrow_cut_counts() -> None:
    errors = np.array([1.0, 0.5, 0.25, 0.1, 0.0])
    found = corrected({"g": errors}, {"g": {1: 0.05, 2: 1e-9}})["g"]
    assert found.tolist() == pytest.approx([0.4, 0.05, 0.00625, 0.01 / 9, 0.0])


def test_by_hand_the_error_of_a_branch_that_vanishes_is_its_own() -> None:
    errors = np.array([1.0, 0.5, 0.0])
    assert corrected({"g": errors}, {"g": {0: 0.3, 1: 0.05}})["g"].tolist() == pytest.approx([0.3, 0.05, 0.0])
    assert corrected({"g": errors}, {"g": {0: 0.01, 1: 0.05}})["g"].tolist() == pytest.approx([0.05, 0.05, 0.0])


def test_a_group_that_nothing_was_measured_of_takes_the_median_ratio() -> None:
    errors = {name: np.array([1.0, 0.5, 0.0]) for name in "abcd"}
    distances = {"a": {1: 0.05}, "b": {1: 0.1}, "c": {1: 0.2}, "d": {1: math.nan}}
    assert corrected(errors, distances)["d"].tolist() == pytest.approx([0.2, 0.1, 0.0])


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20),
    st.dictionaries(st.integers(0, 20), st.floats(allow_nan=True, allow_infinity=True), max_size=3),
)
def test_errors_stay_finite_never_rise_and_are_0_of_a_whole_group(
    falls: list[float], distances: dict[int, float]
) -> None:
    errors = np.cumsum([0.0, *falls])[::-1]
    measured = {kept: far for kept, far in distances.items() if kept < len(errors)}
    found = corrected({"g": errors}, {"g": measured})["g"]
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 0.0).all()
    assert found[-1] == 0.0


@pytest.mark.parametrize("kind", [Decided, Fragile])
def test_errors_stay_as_they_are_where_outputs_do_not_compare(kind: type[nn.Module]) -> None:
    evaluator, space = evaluator_of(kind(), signs(16))
    errors = {group.name: LAYERS for group in space.groups}
    assert errors_at_outputs(evaluator, evaluator.search, space, errors) is errors


def test_a_few_of_many_samples_are_looked_at_and_as_many_networks_as_were_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluator, space = evaluator_of(Branches(), signs(512))
    errors = {group.name: LAYERS for group in space.groups}

    def rows() -> list[int]:
        passes: list[int] = []
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, _: passes.append(len(args[0])) if isinstance(module, Branches) else None
        )
        errors_at_outputs(evaluator, evaluator.search, space, errors)
        hook.remove()
        return passes

    network = evaluator.trace.network
    passes = rows()
    assert passes[0] == 8  # to see how large outputs are
    assert looked_at(space, network, 512) == (5, 128)  # dense, and of either group half and an eighth
    assert sum(passes[1:]) == 5 * 128
    monkeypatch.setattr(module, "_OUTPUT_BYTES", 4 * 20)
    assert sum(rows()[1:]) == 5 * 20
    monkeypatch.setattr(module, "_WORK", 1.0)
    assert looked_at(space, network, 512) == (5, 8)
    assert sum(rows()[1:]) == 5 * 8
