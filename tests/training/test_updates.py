"""What a step of the training does beside following the gradient, by hand on the smallest network."""

import copy
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import Batch
from amcsearch.training.hook import PlainTraining, Watch
from amcsearch.training.loop import fit
from amcsearch.training.recipe import TrainingRecipe, learning_rate_at
from amcsearch.training.resume import StateFile
from amcsearch.training.updates import Averages, LossScale, check_recipe, make_optimizer

ONE = TensorDataset(torch.tensor([[2.0]]), torch.tensor([0]))
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}


def zeros() -> nn.Linear:
    """One input, two classes: the gradient of its one step on ONE is (-1, 1)."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    return model


def blobs(count: int = 60, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return TensorDataset(torch.randn(count, 2, generator=generator) + 4.0 * y[:, None], y)


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_warm_up_in_steps_and_in_parts_of_epochs() -> None:
    steps = TrainingRecipe(2, 0.8, warmup_steps=4, warmup_epochs=9, schedule="constant")
    assert [learning_rate_at(step, 10, steps) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    parts = TrainingRecipe(2, 0.8, warmup_epochs=0.25, schedule="constant")  # 2.5 steps
    assert [learning_rate_at(step, 10, parts) for step in range(4)] == pytest.approx([0.32, 0.64, 0.8, 0.8])


def test_a_longer_gradient_is_shortened_to_the_norm() -> None:
    model = zeros()
    fit(model, ONE, TrainingRecipe(1, 0.5, clip_norm=0.1, **PLAIN), seed=0)
    # |(-1, 1)| = sqrt 2, so the step is 0.5 * 0.1 / sqrt 2 along each axis
    step = 0.5 * 0.1 / math.sqrt(2.0)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[step], [-step]]), rtol=1e-4, atol=0)
    longer = zeros()
    fit(longer, ONE, TrainingRecipe(1, 0.5, clip_norm=10.0, **PLAIN), seed=0)
    torch.testing.assert_close(longer.weight.detach(), torch.tensor([[0.5], [-0.5]]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("count", [64, 60])  # 60 of 16 at a time are 15 in four steps of two uneven batches
def test_two_half_batches_make_the_step_of_a_whole_one(optimizer: str, count: int) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(2, 2)
    halves = copy.deepcopy(whole)
    settings = {"epochs": 3, "learning_rate": 0.05, "optimizer": optimizer}
    losses = fit(whole, blobs(count), TrainingRecipe(batch_size=16, **settings), seed=1)
    parts = fit(halves, blobs(count), TrainingRecipe(batch_size=8, accumulation=2, **settings), seed=1)
    assert parts == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict())


def test_a_batch_of_an_accumulated_step_is_never_above_the_batch_size() -> None:
    sizes = []
    model = nn.Linear(2, 2)
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    fit(model, blobs(33), TrainingRecipe(1, 0.1, batch_size=4, accumulation=3), seed=0)
    assert sizes == [4, 4, 3] * 3


def test_the_average_follows_its_formula() -> None:
    model = zeros()
    averages = Averages(model, 0.5)
    # the first decay is (1 + 0) / 10 = 0.1: 0.1 * 0 + 0.9 * 10; the second 2 / 11: 2 / 11 * 9 + 9 / 11 * 20
    for value, expected in ((10.0, 9.0), (20.0, (2.0 * 9.0 + 9.0 * 20.0) / 11.0)):
        nn.init.constant_(model.weight, value)
        averages.update(model)
        torch.testing.assert_close(averages.tensors["weight"], torch.full((2, 1), expected))
    for _ in range(20):
        averages.update(model)
    before = averages.tensors["weight"].clone()
    averages.update(model)  # (1 + 22) / (10 + 22) is above the decay, 0.5
    torch.testing.assert_close(averages.tensors["weight"], 0.5 * before + 10.0)


def test_the_average_has_the_buffers_and_takes_the_place_of_the_weights() -> None:
    class Follow(PlainTraining):
        def __init__(self) -> None:
            self.averages: Averages | None = None

        def forward(self, model: nn.Module, batch: Batch, step: int) -> object:
            self.averages = self.averages or Averages(model, 0.9)
            self.model = model
            return super().forward(model, batch, step)

        def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
            super().update(optimizer, step)
            assert self.averages is not None
            self.averages.update(self.model)

    model, plain, follow = normalised(), normalised(), Follow()
    fit(model, blobs(), TrainingRecipe(3, 0.05, batch_size=16, ema=0.9), seed=0)
    fit(plain, blobs(), TrainingRecipe(3, 0.05, batch_size=16), seed=0, hook=follow)
    assert follow.averages is not None
    assert all(torch.equal(tensor, follow.averages.tensors[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model[1].running_mean, plain[1].running_mean)
    assert model[1].num_batches_tracked == plain[1].num_batches_tracked == 12


@pytest.mark.parametrize(
    ("no_decay", "decayed"),
    [
        (("vectors",), {"0.weight", "2.weight", "3.weight", "3.bias"}),
        (("biases", "norms", "embeddings"), {"2.weight"}),
        (("norms",), {"0.weight", "2.weight", "2.bias"}),
        ((), {"0.weight", "2.weight", "2.bias", "3.weight", "3.bias"}),
    ],
)
def test_weight_decay_spares_the_kinds_that_are_named(no_decay: tuple[str, ...], decayed: set[str]) -> None:
    # the norm is over two axes, so its scale and bias are no vectors
    model = nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm((1, 4)))
    optimizer = make_optimizer(model, TrainingRecipe(1, 0.1, optimizer="adamw", no_decay=no_decay))
    names = {parameter: name for name, parameter in model.named_parameters()}
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (5e-4, 0.0)
    assert {names[p] for p in first["params"]} == decayed
    assert {names[p] for group in optimizer.param_groups for p in group["params"]} == set(names.values())


def test_bfloat16_computes_in_it_and_keeps_the_weights_in_float32() -> None:
    seen = []
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    recipe = TrainingRecipe(20, 0.1, batch_size=16, precision="bfloat16")
    losses = fit(model, blobs(), recipe, seed=0)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]


def test_float16_is_refused_without_cuda() -> None:
    with pytest.raises(BadInputError, match=r"float16' needs a CUDA device, .* is 'cpu'; choose bfloat16 or float32"):
        fit(zeros(), ONE, TrainingRecipe(1, 0.1, precision="float16"), seed=0)
    check_recipe(TrainingRecipe(1, 0.1, precision="float16"), "cuda:0")


@pytest.mark.parametrize("field", [{"accumulation": 2}, {"clip_norm": 1.0}, {"precision": "float16"}])
def test_what_masks_and_gates_cannot_do_is_refused(field: dict[str, object]) -> None:
    recipe = TrainingRecipe(1, 0.1, **field)
    with pytest.raises(BadInputError, match=rf"{next(iter(field))} = .* is not possible under masks or gates"):
        check_recipe(recipe, "cuda", is_hooked=True)
    check_recipe(recipe, "cuda")


def test_the_scale_of_a_loss_falls_with_infinite_gradients_and_rises_after_long() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    scale = LossScale()
    parameter.grad = torch.tensor([2.0**16, 2.0**17])
    assert scale.unscale([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    parameter.grad = torch.tensor([1.0, torch.inf])
    assert not scale.unscale([parameter])
    assert (scale.value, scale.good) == (2.0**15, 0)
    for _ in range(2000):
        parameter.grad = torch.ones(2)
        assert scale.unscale([parameter])
    assert scale.value == 2.0**16


def test_an_augmentation_changes_every_batch_and_repeats_by_the_seed() -> None:
    def mirror(batch: Batch) -> Batch:
        return batch.map(lambda x: -x)

    plain, mirrored = zeros(), zeros()
    fit(plain, ONE, TrainingRecipe(1, 0.5, **PLAIN), seed=0)
    fit(mirrored, ONE, TrainingRecipe(1, 0.5, **PLAIN), seed=0, augmentation=mirror)
    assert torch.equal(mirrored.weight, -plain.weight)

    def noisy(batch: Batch) -> Batch:
        return batch.map(lambda x: x + torch.rand_like(x) + float(np.random.rand()))  # noqa: NPY002

    weights = []
    for seed in (3, 3, 4):
        model = zeros()
        fit(model, ONE, TrainingRecipe(2, 0.5, **PLAIN), seed=seed, augmentation=noisy)
        weights.append(model.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [(lambda batch: batch.args[0], "returned a Tensor, must return the Batch"), (lambda batch: 1 / 0, "ZeroDivision")],
)
def test_an_augmentation_that_does_not_give_a_batch_is_named(augmentation: object, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        fit(zeros(), ONE, TrainingRecipe(1, 0.1), seed=0, augmentation=augmentation)


class Script:
    """Judges by a list of values, and keeps the weights that it saw."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.seen = values, []

    def __call__(self, model: nn.Module) -> tuple[float, ...]:
        self.seen.append(tensors_of(model))
        return (self.values[len(self.seen) - 1],)


@pytest.mark.parametrize(
    ("values", "best"),
    [([5.0, 4.0, 2.0, 3.0], 2), ([1.0, 2.0, 1.0, 1.0], 0), ([9.0, math.inf, 8.0, 8.0], 2), ([3.0, 2.0, 2.0, 1.0], 3)],
)
def test_the_best_epoch_is_kept_and_the_first_of_equal_ones(values: list[float], best: int) -> None:
    judge, model = Script(values), normalised()
    watch = Watch(judge)
    assert len(fit(model, blobs(), TrainingRecipe(3, 0.05, batch_size=16), seed=0, watch=watch)) == 3
    assert watch.best_epoch == best
    assert all(torch.equal(tensor, judge.seen[best][name]) for name, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 8)])
def test_a_training_ends_after_epochs_in_a_row_without_a_better_network(patience: int, epochs: int) -> None:
    values = [9.0, 8.0, 7.0, 7.5, 7.0, 6.5, 7.0, 7.0, 7.0]  # before the training, then after each of eight epochs
    model, watch = normalised(), Watch(Script(values), keep_best=False, patience=patience)
    assert len(fit(model, blobs(), TrainingRecipe(8, 0.05, batch_size=16), seed=0, watch=watch)) == epochs
    assert_same(model, _after(epochs))


def _after(epochs: int) -> nn.Module:
    """The network after so many of eight epochs, without a watch."""

    class EndedError(Exception):
        pass

    def end(epoch: int, _: float) -> None:
        if epoch == epochs:
            raise EndedError

    model = normalised()
    with suppress(EndedError):
        fit(model, blobs(), TrainingRecipe(8, 0.05, batch_size=16), seed=0, progress=end)
    return model


def test_patience_counts_the_epochs_that_were_judged() -> None:
    watch = Watch(Script([1.0, 2.0, 2.0]), patience=2)
    watch.see(normalised(), 0)
    watch.see(normalised(), 5)  # a training may begin with a later epoch of its recipe
    assert not watch.is_over
    watch.see(normalised(), 6)
    assert watch.is_over
    assert watch.best_epoch == 0


def test_a_patience_below_one_epoch_is_refused() -> None:
    with pytest.raises(BadInputError, match="patience = 0, must be at least 1"):
        Watch(lambda _: (0.0,), patience=0)


def test_watching_changes_nothing_of_the_training() -> None:
    def judge(model: nn.Module) -> tuple[float, ...]:
        torch.rand(7), np.random.rand()  # noqa: NPY002
        return (0.0,)

    plain, watched = normalised(), normalised()
    recipe = TrainingRecipe(3, 0.05, batch_size=16)
    assert fit(plain, blobs(), recipe, seed=0) == fit(
        watched, blobs(), recipe, seed=0, watch=Watch(judge, keep_best=False)
    )
    assert_same(plain, watched)


ALL = {
    "batch_size": 8,
    "accumulation": 2,
    "optimizer": "adamw",
    "warmup_epochs": 0.5,
    "clip_norm": 0.5,
    "precision": "bfloat16",
    "ema": 0.9,
}


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_killed_training_with_every_option_goes_on_to_the_same_weights(tmp_path, killed_after: int) -> None:
    class KilledError(Exception):
        pass

    def kill(epoch: int, _: float) -> None:
        if epoch == killed_after:
            raise KilledError

    def noisy(batch: Batch) -> Batch:
        return batch.map(lambda x: x + 0.1 * torch.randn_like(x))

    def watch() -> Watch:
        return Watch(lambda model: (round(float(model[0].weight.detach().abs().sum()), 6),), patience=4)

    recipe, unbroken = TrainingRecipe(6, 0.05, **ALL), normalised()
    first, second = copy.deepcopy(unbroken), copy.deepcopy(unbroken)
    whole = watch()
    losses = fit(unbroken, blobs(), recipe, seed=3, watch=whole, augmentation=noisy)
    store = StateFile(tmp_path / "state.pt")
    if killed_after <= len(losses):
        with pytest.raises(KilledError):
            fit(first, blobs(), recipe, seed=3, watch=watch(), augmentation=noisy, store=store, progress=kill)
    resumed = watch()
    assert fit(second, blobs(), recipe, seed=3, watch=resumed, augmentation=noisy, store=store) == losses
    assert resumed.best_epoch == whole.best_epoch
    assert_same(unbroken, second)


@pytest.mark.parametrize(
    "field",
    [
        {"accumulation": 0},
        {"no_decay": ("heads",)},
        {"warmup_epochs": -0.5},
        {"warmup_epochs": math.nan},
        {"warmup_steps": -1},
        {"clip_norm": 0.0},
        {"precision": "int8"},
        {"ema": 1.0},
    ],
)
def test_options_out_of_bounds_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match=next(iter(field))):
        TrainingRecipe(**{"epochs": 1, "learning_rate": 0.1, **field})


def test_weights_are_cast_anew_in_every_step_where_user_code_left_autocast_on() -> None:
    recipe = TrainingRecipe(epochs=3, learning_rate=0.1, batch_size=8, precision="bfloat16")
    first = nn.Linear(2, 2)
    second = copy.deepcopy(first)
    losses = fit(first, blobs(), recipe, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert fit(second, blobs(), recipe, seed=0) == losses
