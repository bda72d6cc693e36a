import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import first_tensor
from amcsearch.training import CLASS_IDS, Embedding, Task

task_loss, distillation = CLASS_IDS.loss, CLASS_IDS.distillation


def accuracy(scores, target, task: Task = CLASS_IDS):
    meter = task.meter()
    meter.update(scores, target)
    return meter.value()


def correct(scores, target, task: Task = CLASS_IDS):
    """Sum and count of what is right."""
    meter = task.meter()
    meter.update(scores, target)
    return meter.total, meter.known


def test_task_loss_by_hand():
    # softmax of (ln 3, 0) is (3/4, 1/4)
    scores = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert task_loss(scores, torch.tensor([0, 1])).item() == pytest.approx(expected, abs=1e-6)


def test_sequence_loss_is_the_mean_over_positions():
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 1, 2], [3, 4, 0]])
    by_hand = -F.log_softmax(scores, -1).gather(-1, target[..., None]).mean()
    assert task_loss(scores, target).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_a_batch_without_any_target_costs_nothing_and_teaches_nothing():
    scores, none = torch.randn(2, 3, requires_grad=True), torch.tensor([-100, -100])
    for loss in (task_loss(scores, none), distillation(scores, scores.detach() * 0.5, none, 2.0, 0.5)):
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros(2, 3))


def test_accuracy_by_hand():
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(scores, torch.tensor([1, 0, 1, 0])) == 0.75


def test_positions_without_target_count_nowhere():
    scores = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])
    masked, plain = torch.tensor([[1, -100]]), torch.tensor([[1]])
    assert correct(scores, masked) == (1, 1)
    assert task_loss(scores, masked).item() == pytest.approx(task_loss(scores[:, :1], plain).item())
    assert distillation(scores, scores * 0.5, masked, 2.0, 0.5).item() == pytest.approx(
        distillation(scores[:, :1], scores[:, :1] * 0.5, plain, 2.0, 0.5).item()
    )


def test_logits_of_tuple_and_mapping():
    scores = torch.zeros(1, 2)
    assert first_tensor((scores, torch.ones(1))) is scores
    assert first_tensor({"ids": torch.ones(1, dtype=torch.int64), "logits": scores}) is scores


@pytest.mark.parametrize(("shape", "target"), [((4, 3), (5,)), ((2, 4, 3), (2,)), ((4,), (4,))])
def test_shapes_that_do_not_fit_are_named(shape, target):
    with pytest.raises(BadInputError, match="do not fit targets"):
        task_loss(torch.zeros(shape), torch.zeros(target, dtype=torch.int64))


def test_accuracy_without_targets_is_an_error():
    with pytest.raises(BadInputError, match="no targets"):
        accuracy(torch.zeros(1, 2), torch.tensor([-100]))


def test_distillation_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2), T = 1: KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    got = distillation(student, teacher, torch.tensor([0]), 1.0, 0.25).item()
    assert got == pytest.approx(0.75 * math.log(2.0) + 0.25 * divergence, abs=1e-6)


@given(st.floats(0.5, 8.0), st.integers(0, 100))
def test_alpha_zero_is_plain_cross_entropy(temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    target = torch.randint(0, 4, (6,), generator=generator)
    plain = task_loss(student, target).item()
    assert distillation(student, teacher, target, temperature, 0.0).item() == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_gradient_at_high_temperature_is_the_centred_difference(alpha):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(1, 5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    target = torch.tensor([2])
    gradients = []
    for temperature in (500.0, 1000.0):
        loss = distillation(student, teacher, target, temperature, alpha)
        plain = (1.0 - alpha) * F.cross_entropy(student, target)
        gradients.append(torch.autograd.grad(loss - plain, student)[0])
    difference = (student - teacher).detach()
    expected = alpha * (difference - difference.mean()) / 5
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, atol=2e-3, rtol=0)


def test_distillation_is_a_mean_over_samples_and_positions():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 4, 6, generator=generator)
    target = torch.randint(0, 6, (3, 4), generator=generator)
    each = [
        distillation(student[b, t][None], teacher[b, t][None], target[b, t][None], 3.0, 0.6).item()
        for b in range(3)
        for t in range(4)
    ]
    assert distillation(student, teacher, target, 3.0, 0.6).item() == pytest.approx(sum(each) / 12, abs=1e-5)


def test_distillation_names_differing_classes():
    with pytest.raises(BadInputError, match="student logits"):
        distillation(torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([0]), 2.0, 0.5)


def test_vectors_are_matched_by_their_cosine():
    found = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    wanted = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    total = 1.0 + math.sqrt(0.5) - 1.0
    assert correct(found, wanted, Embedding()) == (pytest.approx(total, abs=1e-6), 3)
    assert Embedding().loss(found, wanted).item() == pytest.approx(1.0 - total / 3, abs=1e-6)
    assert accuracy({"embedding": found}, wanted, Embedding()) == pytest.approx(total / 3, abs=1e-6)
    by_token = found.view(1, 3, 2), wanted.view(1, 3, 2)
    assert correct(*by_token, Embedding()) == correct(found, wanted, Embedding())
    teacher = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, -1.0]])  # cosines 0, 1, 1
    expected = 0.25 * (1.0 - total / 3) + 0.75 * (1.0 - 2 / 3)
    assert Embedding().distillation(found, teacher, wanted, 4.0, 0.75).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("target", [torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 1, 3)])
def test_vectors_of_another_shape_are_named(target):
    with pytest.raises(BadInputError, match=r"\(4, 3\) do not fit targets"):
        Embedding().loss(torch.zeros(4, 3), target)
