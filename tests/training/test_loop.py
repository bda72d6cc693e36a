import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from amcsearch.core.errors import BadInputError, DivergedError
from amcsearch.graph import HeldBatches
from amcsearch.training.hook import PlainTraining, Watch
from amcsearch.training.loop import evaluate, fit, random_shift
from amcsearch.training.models import MODELS
from amcsearch.training.reading import batches_of
from amcsearch.training.recipe import Distillation, TrainingRecipe, learning_rate_at
from amcsearch.training.resume import StateFile
from amcsearch.training.splits import stacked


def blobs(count=60, seed=0):
    """Two classes, two features, separable."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return TensorDataset(torch.randn(count, 2, generator=generator) + 4.0 * y[:, None], y)


def linear(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(2, 2))


RECIPE = TrainingRecipe(epochs=5, learning_rate=0.1, batch_size=16)


def test_one_sgd_step_by_hand():
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = TensorDataset(torch.tensor([[2.0]]), torch.tensor([0]))
    recipe = TrainingRecipe(epochs=1, learning_rate=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")
    losses = fit(model, data, recipe, seed=0)
    assert losses == pytest.approx([math.log(2.0)])
    # gradient (p - y)·x = (-1/2, 1/2)·2
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.5], [-0.5]]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns(optimizer):
    model = linear()
    recipe = TrainingRecipe(epochs=30, learning_rate=0.1, batch_size=8, optimizer=optimizer)
    losses = fit(model, blobs(), recipe, seed=0)
    assert losses[-1] < losses[0]
    assert evaluate(model, batches_of(blobs(seed=1)))[1] > 0.95
    assert not model.training


def test_same_seed_same_weights_and_global_generator_untouched():
    start, results = linear(dropout=0.5), []
    for seed in (3, 3, 4):
        model = copy.deepcopy(start)
        state = torch.get_rng_state()
        fit(model, blobs(), RECIPE, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model[1].weight.detach())
        torch.rand(1)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_decay_spares_biases():
    model = nn.Linear(2, 2)
    nn.init.ones_(model.bias)
    nn.init.ones_(model.weight)
    data = TensorDataset(torch.zeros(2, 2), torch.tensor([0, 1]))  # no gradient but the biases', and those cancel
    fit(model, data, TrainingRecipe(1, 0.1, weight_decay=0.5, momentum=0.0, schedule="constant"), seed=0)
    torch.testing.assert_close(model.bias.detach(), torch.ones(2))
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 0.95))


def test_frozen_parameters_stay():
    model = linear()
    model[1].bias.requires_grad_(False)
    before = model[1].bias.clone()
    fit(model, blobs(), RECIPE, seed=0)
    assert torch.equal(model[1].bias, before)


def test_no_epoch_changes_nothing_but_the_mode():
    model = linear()
    before = model[1].weight.clone()
    assert fit(model, blobs(), TrainingRecipe(0, 0.1), seed=0) == []
    assert torch.equal(model[1].weight, before)


def test_batches_are_nearly_equal_so_normalisation_never_sees_one_sample():
    sizes = []
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    fit(model, blobs(33), TrainingRecipe(1, 0.1, batch_size=16), seed=0)
    assert sizes == [11, 11, 11]


def test_progress_hears_every_epoch():
    heard = []
    losses = fit(linear(), blobs(), RECIPE, seed=0, progress=lambda epoch, loss: heard.append((epoch, loss)))
    assert heard == list(enumerate(losses, 1))


def test_teacher_is_followed_and_left_alone():
    teacher, student = linear(1, dropout=0.5).train(), linear(2)
    before = copy.deepcopy(teacher.state_dict())
    recipe = TrainingRecipe(epochs=60, learning_rate=0.1, weight_decay=0.0)
    fit(student, blobs(), recipe, seed=0, teacher=teacher, distillation=Distillation(2.0, 1.0))
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    x, _ = stacked(blobs())
    gap = (student(x).softmax(-1) - teacher.eval()(x).softmax(-1)).abs().max()
    assert gap < 0.05


def test_infinite_loss_names_epoch_and_learning_rate():
    data = TensorDataset(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1]))
    with pytest.raises(BadInputError, match=r"loss is nan in epoch 1 at learning_rate = 0\.25.*lower"):
        fit(nn.Linear(1, 2), data, TrainingRecipe(2, 0.25), seed=0)


def test_network_without_parameters_is_refused():
    with pytest.raises(BadInputError, match="nothing to train"):
        fit(nn.Flatten(), blobs(), RECIPE, seed=0)


@pytest.mark.parametrize(
    "field",
    [
        {"epochs": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"batch_size": 0},
        {"optimizer": "lion"},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"schedule": "step"},
        {"warmup_epochs": -1},
        {"label_smoothing": 1.0},
        {"max_shift": -1},
    ],
)
def test_recipes_out_of_bounds_are_refused(field):
    with pytest.raises(BadInputError, match=next(iter(field))):
        TrainingRecipe(**{"epochs": 1, "learning_rate": 0.1, **field})


@pytest.mark.parametrize("field", [{"temperature": 0.0}, {"alpha": 1.5}])
def test_distillation_out_of_bounds_is_refused(field):
    with pytest.raises(BadInputError, match=next(iter(field))):
        Distillation(**field)


def test_learning_rate_by_hand():
    recipe = TrainingRecipe(epochs=3, learning_rate=0.8, warmup_epochs=1)
    rates = [learning_rate_at(step, 2, recipe) for step in range(6)]
    cosine = [0.4 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx([0.4, 0.8, *cosine])
    constant = TrainingRecipe(epochs=3, learning_rate=0.8, schedule="constant")
    assert {learning_rate_at(step, 2, constant) for step in range(6)} == {0.8}


@given(st.integers(1, 20), st.integers(0, 5), st.integers(1, 9))
def test_learning_rate_rises_then_falls_within_its_peak(epochs, warmup, steps):
    recipe = TrainingRecipe(epochs=epochs, learning_rate=0.3, warmup_epochs=warmup)
    rates = [learning_rate_at(step, steps, recipe) for step in range(epochs * steps)]
    top = min(warmup * steps, len(rates))
    assert all(0.0 < rate <= 0.3 + 1e-12 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_evaluate_by_hand_in_uneven_batches():
    scores = torch.tensor([[math.log(3.0), 0.0]] * 5)
    loss, accuracy = evaluate(nn.Identity(), HeldBatches.of(scores, torch.tensor([0, 0, 0, 1, 1]), 2))
    assert loss == pytest.approx(-(3 * math.log(0.75) + 2 * math.log(0.25)) / 5, abs=1e-6)
    assert accuracy == 0.6


def test_evaluate_restores_modes():
    model = linear(dropout=0.5).train()
    model[1].eval()
    evaluate(model, batches_of(blobs()))
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_evaluate_without_targets_is_refused():
    with pytest.raises(BadInputError, match="no targets"):
        evaluate(nn.Identity(), HeldBatches.of(torch.zeros(1, 2), torch.tensor([-100]), 256))


def test_shift_by_hand():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    expected = {
        (r, c): image[:, :, [max(0, min(2, i + r)) for i in range(3)]][..., [max(0, min(2, i + c)) for i in range(3)]]
        for r in (-1, 0, 1)
        for c in (-1, 0, 1)
    }
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for row in random_shift(image.expand(200, -1, -1, -1), 1, generator).split(1):
        seen |= {offset for offset, shifted in expected.items() if torch.equal(row, shifted)}
    assert seen == set(expected)


def test_shift_keeps_channels_together_and_needs_images():
    image = torch.rand(4, 1, 5, 7).expand(-1, 3, -1, -1)
    shifted = random_shift(image, 2, torch.Generator().manual_seed(0))
    assert shifted.shape == image.shape
    assert torch.equal(shifted[:, 0], shifted[:, 2])
    with pytest.raises(BadInputError, match="max_shift = 2 needs images"):
        random_shift(torch.zeros(4, 5), 2, torch.Generator())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_fits_its_own_few_samples(name):
    torch.manual_seed(0)
    kwargs = {"resnet20": {"width": 4, "depth": 8}, "vgg": {"width": 4}, "vit": {"dim": 16, "depth": 1}}
    model = MODELS[name](**kwargs.get(name, {}))
    x = torch.randint(0, 256, (8, 16)) if name == "language_model" else torch.randn(8, 1, 32, 32)
    y = x.roll(-1, 1) if name == "language_model" else torch.arange(8)
    recipe = TrainingRecipe(12, 3e-3, optimizer="adamw", schedule="constant", weight_decay=0.0)
    losses = fit(model, TensorDataset(x, y), recipe, seed=0)
    assert losses[-1] < 0.8 * losses[0]


def test_training_sees_images_and_weights_in_row_major_order(monkeypatch):
    seen = []
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model.to(memory_format=torch.channels_last)
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0].stride(), module.weight.stride())))
    images = torch.randn(6, 4, 4, 1).permute(0, 3, 1, 2)
    dataset = TensorDataset(images, torch.tensor([0, 1, 0, 1, 0, 1]))
    fit(model, dataset, TrainingRecipe(1, 0.1, batch_size=3, max_shift=1), seed=0)
    assert seen == [((16, 16, 4, 1), (1, 1, 1, 1))] * 2


class Shadow(PlainTraining):
    """Trains by weights of its own making, and counts."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def forward(self, model, batch, step):
        self.seen.append(step)
        return functional_call(model, {"weight": 2.0 * model.weight}, batch.args)

    def penalty(self):
        return torch.tensor(100.0)


def test_a_hook_chooses_the_weights_and_its_penalty_is_not_reported_as_task_loss():
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = TensorDataset(torch.tensor([[2.0]]), torch.tensor([0]))
    recipe = TrainingRecipe(epochs=1, learning_rate=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")
    hook = Shadow()
    assert fit(model, data, recipe, seed=0, hook=hook) == pytest.approx([math.log(2.0)])
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1.0], [-1.0]]))  # twice: the chain rule
    assert hook.seen == [0]


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    start = linear(dropout=0.5)
    unbroken, first, second = (copy.deepcopy(start) for _ in range(3))
    losses = fit(unbroken, blobs(), RECIPE, seed=3)

    class KilledError(Exception):
        pass

    def kill(epoch, _):
        if epoch == 3:
            raise KilledError

    store = StateFile(tmp_path / "state.pt")
    with pytest.raises(KilledError):
        fit(first, blobs(), RECIPE, seed=3, store=store, progress=kill)
    assert fit(second, blobs(), RECIPE, seed=3, store=store) == losses
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), second.parameters(), strict=True))


def test_a_damaged_state_is_named(tmp_path):
    path = tmp_path / "state.pt"
    assert StateFile(path).load() is None
    path.write_bytes(b"torn")
    with pytest.raises(BadInputError, match=r"state\.pt"):
        StateFile(path).load()


def test_replaying_the_tail_has_its_learning_rates():
    rates = []

    class Watch(PlainTraining):
        def update(self, optimizer, step):
            rates.append(optimizer.param_groups[0]["lr"])
            super().update(optimizer, step)

    recipe = TrainingRecipe(epochs=4, learning_rate=0.1, batch_size=30)
    fit(linear(), blobs(), recipe, seed=0, hook=Watch(), first_epoch=3)
    assert rates == [learning_rate_at(step, 2, recipe) for step in (6, 7)]


@pytest.mark.parametrize(("rate", "what"), [(1e30, "is not finite|largest weight"), (1e4, "the largest weight is")])
def test_weights_that_diverge_in_the_last_step_are_named(rate, what):
    recipe = TrainingRecipe(1, rate, batch_size=1000, schedule="constant")
    with pytest.raises(DivergedError, match=rf"diverged in epoch 1, whose mean loss was .*learning_rate = .*({what})"):
        fit(linear(), blobs(), recipe, seed=0)


def test_a_buffer_that_diverges_is_named():
    class Counter(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("level", torch.zeros(()))

        def forward(self, x):
            self.level = self.level + torch.inf
            return super().forward(x)

    with pytest.raises(DivergedError, match="level is not finite"):
        fit(Counter(), blobs(), RECIPE, seed=0)


def normed(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_frozen_batch_norms_keep_their_statistics_while_all_weights_train():
    recipe = replace(RECIPE, epochs=2, batch_norm="freeze")
    model, began = normed(), normed().state_dict()
    modes = []
    watch = Watch(lambda network: (modes.append(network.training) or float(len(modes)),), keep_best=False)
    fit(model, blobs(), recipe, seed=0, watch=watch)  # which evaluates between the epochs
    ended = model.state_dict()
    assert [name for name in began if torch.equal(began[name], ended[name])] == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    followed = normed()
    fit(followed, blobs(), replace(recipe, batch_norm="train"), seed=0)
    assert not torch.equal(followed[1].running_mean, began["1.running_mean"])


def test_frozen_batch_norms_train_on_a_single_sample_by_hand():
    norm = nn.BatchNorm1d(2, eps=0.0)
    norm.running_var.fill_(4.0)
    data = TensorDataset(torch.tensor([[2.0, 2.0]]), torch.tensor([0]))
    recipe = TrainingRecipe(
        1, 0.5, momentum=0.0, weight_decay=0.0, schedule="constant", batch_norm="freeze"
    )  # by its batch of one, a norm would divide by 0
    fit(norm, data, recipe, seed=0)
    # outputs (1, 1), gradient (p - y) = (-1/2, 1/2) for the shifts and, times the normalised 1, for the scales
    torch.testing.assert_close(norm.bias.detach(), torch.tensor([0.25, -0.25]))
    torch.testing.assert_close(norm.weight.detach(), torch.tensor([1.25, 0.75]))


def test_an_unknown_batch_norm_is_refused():
    with pytest.raises(BadInputError, match="batch_norm = 'keep', must be train or freeze"):
        replace(RECIPE, batch_norm="keep")
