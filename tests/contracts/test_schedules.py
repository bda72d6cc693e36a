"""What every mask schedule promises, over the registry."""

from collections.abc import Callable, Mapping

import pytest
from torch import Tensor, nn

from amcsearch.graph import HeldBatches
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.mask_schedule import MaskSchedule, Plan
from amcsearch.methods.schedules import SCHEDULES
from amcsearch.methods.schedules.one_shot import OneShot, Pattern
from amcsearch.methods.weights import sparse_weights, weight_scores
from amcsearch.testing import ScheduleContract, network_example
from amcsearch.testing.selection_contracts import NETWORKS
from amcsearch.training.loop import CLASS_IDS, fit
from amcsearch.training.recipe import TrainingRecipe
from amcsearch.training.sparsification import MaskedTraining, bake


class TestSchedules(ScheduleContract):
    @pytest.fixture(params=SCHEDULES)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], MaskSchedule]:
        return SCHEDULES[request.param]


def trained(network: str, schedule: MaskSchedule) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Train with half of the weights under masks."""
    example = network_example(network)
    weights = sparse_weights(example.model, example.trace)
    data = HeldBatches.of(example.inputs, example.targets, 8), CLASS_IDS

    def scores() -> dict[str, Tensor]:
        return weight_scores(example.model, example.trace, Magnitude(), weights, *data)

    hook = MaskedTraining(weights, schedule, Plan(16, sum(w.numel() for w in weights.values()), 0.5), scores)
    recipe = TrainingRecipe(epochs=4, learning_rate=0.05, batch_size=4)
    fit(example.model, example.dataset, recipe, seed=0, hook=hook)
    return example.model, hook.masks


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_and_patterns_hold_to_the_end_of_the_training(network: str) -> None:
    _, by_row = trained(network, OneShot(within="row"))
    assert all(((~m.flatten(1)).sum(1) == round(0.5 * m[0].numel())).all() for m in by_row.values())
    model, by_pattern = trained(network, OneShot(pattern=Pattern(2, 4)))
    bake(model, by_pattern)
    for name in by_pattern:
        rows = model.get_parameter(name).detach().flatten(1)
        runs = rows[:, : rows.shape[1] // 4 * 4].reshape(-1, 4)
        assert ((runs != 0).sum(1) == 2).all()


def test_tied_embeddings_are_left_alone() -> None:
    example = network_example("language_model")
    names = sparse_weights(example.model, example.trace)
    assert "head.weight" not in names
    assert "tokens.weight" not in names
    assert "blocks.0.up.weight" in names
