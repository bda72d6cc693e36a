"""What every mask schedule promises, with several criteria, on a CNN, a transformer for images and a language model."""

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.mask_schedule import Plan
from amcsearch.methods.ranking import score_units
from amcsearch.methods.schedules import SCHEDULES
from amcsearch.methods.unit_slices import UnitSlices
from amcsearch.methods.weights import sparse_weights, weight_scores
from amcsearch.training.loop import TrainingRecipe, fit
from amcsearch.training.losses import task_loss
from amcsearch.training.models import MODELS
from amcsearch.training.sparsification import MaskedTraining, MaskedUnits, bake

NETWORKS = {
    "resnet20": {"width": 4, "depth": 8},
    "vit": {"dim": 16, "depth": 1, "num_heads": 2, "mlp_width": 24, "image_size": 16},
    "language_model": {
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_width": 24,
        "vocabulary": 32,
        "tie_embeddings": True,
    },
}
RECIPE = TrainingRecipe(epochs=4, learning_rate=0.05, batch_size=4)
STEPS = 16


@cache
def data(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "language_model":
        tokens = torch.randint(0, 32, (16, 9), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(16, 1, 16, 16, generator=generator), torch.arange(16) % 10


def made(name: str) -> tuple[nn.Module, Trace]:
    torch.manual_seed(0)
    model = MODELS[name](**NETWORKS[name])
    return model, trace(model, data(name)[0][:1])


def trained(network: str, schedule_name: str, criterion_name: str, sparsity: float) -> tuple[nn.Module, MaskedTraining]:
    model, found = made(network)
    inputs, targets = data(network)
    weights = sparse_weights(model, found)
    plan = Plan(STEPS, sum(w.numel() for w in weights.values()), sparsity)

    def scores() -> dict[str, Tensor]:
        return weight_scores(model, found, CRITERIA[criterion_name](), weights, inputs, targets, task_loss, 8)

    hook = MaskedTraining(weights, SCHEDULES[schedule_name](), plan, scores)
    fit(model, TensorDataset(inputs, targets), RECIPE, seed=0, hook=hook)
    return model, hook


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_schedule_ends_exact_and_repeats(network: str, schedule_name: str) -> None:
    model, hook = trained(network, schedule_name, "magnitude", 0.6)
    assert sum(int(mask.sum()) for mask in hook.masks.values()) == hook._plan.n_keep
    assert all(mask.any() for mask in hook.masks.values())
    bake(model, hook.masks)
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in hook.masks.items())
    again, other = trained(network, schedule_name, "magnitude", 0.6)
    bake(again, other.masks)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("criterion_name", ["taylor_joint", "random"])
def test_any_criterion_serves_any_schedule(criterion_name: str, schedule_name: str) -> None:
    _, hook = trained("resnet20", schedule_name, criterion_name, 0.5)
    assert sum(int(mask.sum()) for mask in hook.masks.values()) == hook._plan.n_keep


def test_tied_embeddings_are_left_alone() -> None:
    model, found = made("language_model")
    names = sparse_weights(model, found)
    assert "head.weight" not in names
    assert "tokens.weight" not in names
    assert "blocks.0.up.weight" in names


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_units_open_and_close_by_the_same_schedules(network: str, schedule_name: str) -> None:
    model, found = made(network)
    inputs, targets = data(network)
    slices = UnitSlices(model, found)
    plan = Plan(STEPS, sum(slices.counts.values()), 0.4)

    def scores() -> dict[str, Tensor]:
        values = score_units(model, found, {"": CRITERIA["magnitude"]()}, inputs, targets, task_loss, 8)[""]
        return {name: torch.from_numpy(value) for name, value in values.items()}

    hook = MaskedUnits(slices, SCHEDULES[schedule_name](), plan, scores)
    fit(model, TensorDataset(inputs, targets), RECIPE, seed=0, hook=hook)
    assert {name: len(mask) for name, mask in hook.masks.items()} == slices.counts
    assert sum(int(mask.sum()) for mask in hook.masks.values()) == plan.n_keep
    assert all(mask.any() for mask in hook.masks.values())


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_the_training_ends_on_masks_that_were_finished(schedule_name: str) -> None:
    """One unit fewer than the schedule counts: the one that it ranks lowest, in the group with most open."""
    model, found = made("resnet20")
    inputs, targets = data("resnet20")
    slices = UnitSlices(model, found)
    plan = Plan(STEPS, sum(slices.counts.values()), 0.4)

    def scores() -> dict[str, Tensor]:
        values = score_units(model, found, {"": CRITERIA["magnitude"]()}, inputs, targets, task_loss, 8)[""]
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def finish(masks: Mapping[str, Tensor], ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert {name: rank.shape for name, rank in ranks.items()} == {name: mask.shape for name, mask in masks.items()}
        largest = max(masks, key=lambda name: int(masks[name].sum()))
        closed = masks[largest].clone()
        closed[torch.where(closed, ranks[largest].double(), torch.inf).argmin()] = False
        return {**masks, largest: closed}

    hook = MaskedUnits(slices, SCHEDULES[schedule_name](), plan, scores, finish)
    fit(model, TensorDataset(inputs, targets), RECIPE, seed=0, hook=hook)
    assert sum(int(mask.sum()) for mask in hook.masks.values()) == plan.n_keep - 1
