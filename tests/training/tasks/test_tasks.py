"""Losses, metrics, draws and guesses of the built-in tasks, by hand on the smallest tensors."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amcsearch.core import METRICS, Metric
from amcsearch.core.errors import BadInputError
from amcsearch.training import CLASS_IDS, TASKS, Custom, Embedding, Task
from amcsearch.training.task import judged_tensor, others_apart, outputs_apart
from amcsearch.training.tasks.class_ids import Classification, language_modelling, segmentation
from amcsearch.training.tasks.regression import regression
from amcsearch.training.tasks.yes_or_no import binary, multilabel

FOUND, WANTED = torch.tensor([[1.0], [2.0], [3.0], [8.0]]), torch.tensor([[1.0], [4.0], [2.0], [4.0]])  # r 0, -2, 1, 4


def measured(task: Task, *batches: tuple[object, object]) -> float:
    meter = task.meter()
    for output, targets in batches:
        meter.update(output, targets)
    return meter.value()


@pytest.mark.parametrize(("loss", "expected"), [("mse", 21 / 4), ("l1", 7 / 4), ("huber", (0 + 1.5 + 0.5 + 3.5) / 4)])
def test_regression_losses(loss: str, expected: float) -> None:
    assert regression(loss=loss).loss(FOUND, WANTED).item() == pytest.approx(expected)
    assert regression(loss=loss).loss(FOUND, WANTED[:, 0]).item() == pytest.approx(expected)  # (N,) is not broadcast


@pytest.mark.parametrize("metric", ["mse", "mae", "r2"])
def test_an_axis_of_one_may_be_missing_on_either_side(metric: str) -> None:
    task = regression(metric=metric)
    expected = measured(task, (FOUND, WANTED))
    assert task.loss(FOUND[:, 0], WANTED).item() == pytest.approx(21 / 4)
    assert measured(task, (FOUND[:, 0], WANTED)) == pytest.approx(expected)
    assert measured(task, (FOUND[:, 0], WANTED[:, 0])) == pytest.approx(expected)
    assert binary().loss(FOUND[:, 0], WANTED.gt(2)).item() == binary().loss(FOUND, WANTED.gt(2)).item()
    with pytest.raises(BadInputError, match=r"outputs of shape \(2, 2\) do not fit targets of shape \(2,\)"):
        task.loss(FOUND.reshape(2, 2), WANTED[:2, 0])


@pytest.mark.parametrize(
    ("metric", "expected"), [("mse", 21 / 4), ("mae", 7 / 4), ("rmse", math.sqrt(21 / 4)), ("r2", 1 - 21 / 6.75)]
)
def test_regression_metrics_over_batches(metric: str, expected: float) -> None:
    task = regression(metric=metric)
    assert measured(task, (FOUND[:1], WANTED[:1]), (FOUND[1:], WANTED[1:])) == pytest.approx(expected)
    assert task.metric.higher_is_better == (metric == "r2")


def test_regression_values_of_samples_and_the_guess() -> None:
    values = regression(metric="mae").sample_values(FOUND, WANTED)
    assert values is not None
    assert values.tolist() == [0.0, 2.0, 1.0, 4.0]
    assert regression(metric="rmse").sample_values(FOUND, WANTED) is None
    guess = regression().guess(FOUND, WANTED)  # mean 2.75: 3.0625, 1.5625, 0.5625, 1.5625
    assert guess is not None
    assert (guess.loss, guess.metric) == (pytest.approx(6.75 / 4), pytest.approx(6.75 / 4))


def test_regression_trains_on_a_loss_without_unit() -> None:
    task = regression()
    for unit in (1.0, 100.0):
        fitted = task.fitted(unit * WANTED)
        assert fitted.training_loss(unit * FOUND, unit * WANTED).item() == pytest.approx(21 / 6.75)
        assert fitted.loss(unit * FOUND, unit * WANTED).item() == pytest.approx(unit**2 * 21 / 4)


def test_regression_units() -> None:
    assert [regression(metric=name, unit="K").metric.unit for name in ("mse", "mae", "rmse", "r2")] == [
        *("K²", "K", "K", "")
    ]


@pytest.mark.parametrize(
    ("loss", "variance"),
    [("mse", 1.0), ("l1", 2 * 2.0**2)],  # D = 2: a normal of D/2, a Laplace of scale D
)
def test_regression_draws_from_the_density_of_its_loss(loss: str, variance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.full((50_000, 2), 3.0)
    drawn = regression(loss=loss).draw(output, output, generator)
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.05)
    assert drawn.var().item() == pytest.approx(variance, rel=0.03)


def test_huber_draws_have_the_mass_of_their_density_within_delta() -> None:
    """D = 1, delta = 1: the normal part weighs sqrt(2 pi)·erf(1/sqrt 2), the tails 2·exp(-1/2)."""
    core, tails = math.sqrt(2 * math.pi) * math.erf(math.sqrt(0.5)), 2 * math.exp(-0.5)
    drawn = regression(loss="huber").draw(
        torch.zeros(50_000, 1), torch.zeros(50_000, 1), torch.Generator().manual_seed(0)
    )
    assert (drawn.abs() <= 1.0).double().mean().item() == pytest.approx(core / (core + tails), abs=0.01)
    assert drawn.abs().max() > 3.0


LOGITS, ANSWERS = torch.tensor([[math.log(3.0)], [-math.log(3.0)], [1.0]]), torch.tensor([[1.0], [1.0], [0.0]])


def test_binary_by_hand() -> None:
    """Chances 3/4 and 1/4 of yes, and sigmoid(1); right, wrong, wrong."""
    expected = (-math.log(0.75) - math.log(0.25) + math.log(1 + math.e)) / 3
    task = binary()
    assert task.loss(LOGITS, ANSWERS).item() == pytest.approx(expected)
    assert task.loss(LOGITS, ANSWERS[:, 0].bool()).item() == pytest.approx(expected)
    assert measured(task, (LOGITS, ANSWERS)) == pytest.approx(1 / 3)
    assert task.sample_values(LOGITS, ANSWERS).tolist() == [1.0, 0.0, 0.0]  # type: ignore[union-attr]
    assert measured(binary("f1"), (LOGITS, ANSWERS)) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    smoothed = task.training_loss(LOGITS[:1], ANSWERS[:1], 0.2)  # 0.9 yes
    assert smoothed.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    drawn = task.draw(LOGITS[:1].expand(20_000, 1), torch.ones(20_000, 1), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.75, abs=0.01)
    guess = task.guess(LOGITS, ANSWERS)
    assert guess is not None
    assert guess.metric == pytest.approx(2 / 3)


def test_binary_distillation_by_hand() -> None:
    """Teacher 3/4, student 1/2, T = 1: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    got = binary().distillation(torch.zeros(1, 1), LOGITS[:1], torch.ones(1, 1), 1.0, 0.25).item()
    assert got == pytest.approx(0.75 * math.log(2.0) + 0.25 * divergence, abs=1e-6)


def test_multilabel_by_hand() -> None:
    """Label 0: one hit, one miss, F1 = 2/3; label 1: one hit, one false alarm, F1 = 2/3."""
    logits = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    answers = torch.tensor([[1, 0], [1, 1]])
    assert measured(multilabel(), (logits, answers)) == pytest.approx(2 / 3)
    assert measured(multilabel("accuracy"), (logits, answers)) == 0.5
    ranked = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    wanted = torch.tensor([[1, 1], [0, 0], [1, 0]])  # label 0: (1 + 2/3)/2; label 1: 1/3
    assert measured(multilabel("map"), (ranked, wanted)) == pytest.approx((5 / 6 + 1 / 3) / 2)
    with pytest.raises(BadInputError, match="expects 0 and 1"):
        multilabel().loss(logits, torch.tensor([[1, 3], [0, 1]]))


def test_segmentation_by_hand() -> None:
    """Four pixels, the last one ignored: classes 0, 1, 1 wanted; 0, 1, 0 said. IoU 1/2 and 1/2."""
    said = torch.tensor([[0, 1], [0, 1]])
    logits = torch.nn.functional.one_hot(said, 2).permute(2, 0, 1)[None].float()
    wanted = torch.tensor([[[0, 1], [1, 255]]])
    assert measured(segmentation(ignored=255), (logits, wanted)) == pytest.approx(0.5)
    pixels = segmentation("pixel_accuracy", ignored=255)
    assert measured(pixels, (logits, wanted)) == pytest.approx(2 / 3)
    expected = (2 * math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 3
    assert pixels.loss(logits, wanted).item() == pytest.approx(expected)
    drawn = pixels.draw(100 * logits, wanted, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [[[0, 1], [0, 255]]]
    with pytest.raises(BadInputError, match=r"a target is 255, the network gives 2 classes.*-100 are ignored"):
        segmentation().loss(logits, wanted)
    with pytest.raises(BadInputError, match=r"leave this id out by the task's params: \{ignored: 255\}"):
        segmentation().loss(logits, wanted)
    with pytest.raises(BadInputError, match="mend the targets, or give -100 in place of this id"):
        Classification().loss(logits[:, :, 0, 0], torch.tensor([-1]))


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1, -100], [3, 4, 0]])
    task = language_modelling("perplexity")
    expected = math.exp(task.loss(logits, ids).item())
    assert measured(task, (logits[:1], ids[:1]), (logits[1:], ids[1:])) == pytest.approx(expected, rel=1e-5)
    assert not task.metric.higher_is_better
    assert task.sample_values(logits, ids) is None


def test_a_task_judges_the_output_that_is_named_and_keeps_the_others() -> None:
    outputs = {"boxes": torch.zeros(2, 4), "heads": (torch.tensor([[2.0, 0.0], [0.0, 2.0]]),)}
    assert judged_tensor(outputs, "heads.0") is outputs["heads"][0]
    assert measured(TASKS["classification"](output="heads.0"), (outputs, torch.tensor([0, 1]))) == 1.0
    with pytest.raises(BadInputError, match=r"'scores' is no output of the model; its outputs are 'boxes', 'heads.0'"):
        judged_tensor(outputs, "scores")
    teacher = {"boxes": torch.ones(2, 4), "heads": outputs["heads"]}
    assert others_apart(outputs, teacher, "heads.0").item() == 1.0
    assert others_apart(outputs["boxes"], teacher["boxes"], None).item() == 0.0
    assert outputs_apart(outputs, teacher).item() == 0.5


def boxes_loss(output: dict[str, Tensor], targets: list[Tensor]) -> Tensor:
    return torch.stack([(output["boxes"][i] - t).square().sum() for i, t in enumerate(targets)]).mean()


def test_a_task_of_two_functions_gets_trees() -> None:
    output, targets = {"boxes": torch.tensor([[1.0], [2.0]])}, [torch.tensor([1.0]), torch.tensor([2.0, 4.0])]
    metric = Metric("miss", "px", higher_is_better=False)
    by_sample = Custom(
        boxes_loss, lambda o, t: [float((o["boxes"][i] - x).abs().max()) for i, x in enumerate(t)], metric
    )
    assert by_sample.loss(output, targets).item() == 2.0
    assert measured(by_sample, (output, targets)) == 1.0
    assert by_sample.sample_values(output, targets).tolist() == [0.0, 2.0]  # type: ignore[union-attr]
    by_batch = Custom(boxes_loss, lambda o, t: len(t), metric)
    assert measured(by_batch, (output, targets)) == 2.0
    assert by_batch.sample_values(output, targets) is None
    with pytest.raises(BadInputError, match="Custom draws no targets"):
        by_batch.draw(output, targets, torch.Generator())
    with pytest.raises(BadInputError, match="no labels to smooth"):
        by_batch.training_loss(output, targets, 0.1)


class Collector:
    """A metric with ``update`` and ``compute``, as those of torchmetrics."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, output: object, targets: list[Tensor]) -> None:
        del output
        self.count += len(targets)

    def compute(self) -> int:
        return self.count


def test_a_metric_that_collects_is_copied_for_every_evaluation() -> None:
    task = Custom(boxes_loss, Collector(), Metric("seen"))
    batch = ({"boxes": torch.zeros(2, 1)}, [torch.zeros(1), torch.zeros(1)])
    assert [measured(task, batch, batch), measured(task, batch)] == [4.0, 2.0]


@pytest.mark.parametrize("targets", [torch.rand(4), torch.rand(4, 3), torch.ones(4, dtype=torch.bool)])
def test_class_ids_are_never_read_out_of_other_targets(targets: Tensor) -> None:
    with pytest.raises(BadInputError, match="expected class ids as integers"):
        CLASS_IDS.loss(torch.zeros(4, 3), targets)


def test_a_check_names_a_loss_and_a_metric_that_are_no_numbers() -> None:
    unreduced = Custom(lambda o, t: (o - t) ** 2, lambda o, t: 1.0, Metric("m"))
    with pytest.raises(BadInputError, match=r"loss is of shape \(2, 1\).*take the mean"):
        unreduced.check(torch.zeros(2, 1), torch.ones(2, 1))
    wide = Custom(lambda o, t: o.sum(), lambda o, t: o, Metric("m"))
    with pytest.raises(BadInputError, match=r"gives \(2, 1\); return a number for every sample"):
        wide.check(torch.zeros(2, 1), torch.ones(2, 1))
    word = Custom(lambda o, t: o.sum(), lambda o, t: "good", Metric("m"))  # type: ignore[arg-type, return-value]
    with pytest.raises(BadInputError, match=r"task\.params\.metric returned 'good'; return a number for every sample"):
        word.check(torch.zeros(2, 1), torch.ones(2, 1))


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: (o - t).square().mean().detach(),
        lambda o, t: torch.tensor((o - t).square().mean().item()),
        lambda o, t: (o.argmax(1) != t.argmax(1)).float().mean(),
        lambda o, t: torch.from_numpy(((o - t) ** 2).detach().numpy()).mean(),
    ],
)
def test_a_loss_without_a_gradient_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    task = Custom(loss, lambda o, t: 1.0, Metric("m"))
    with torch.inference_mode():
        output = torch.tensor([[0.0, 1.0]])
    with pytest.raises(BadInputError, match=r"loss has no gradient, .* without \.detach"):
        task.check(output, torch.ones(1, 2))
    Custom(lambda o, t: (o - t).square().mean(), lambda o, t: 1.0, Metric("m")).check(output, torch.ones(1, 2))


def test_metrics_print_in_their_unit_and_know_their_direction() -> None:
    accuracy, error = METRICS["accuracy"], Metric("mae", "K", higher_is_better=False)
    assert [accuracy.text(0.9375), error.text(0.41234)] == ["93.75 %", "0.4123 K"]
    assert [accuracy.gain(0.5, 0.75), error.gain(0.5, 0.75)] == [-0.25, 0.25]
    assert [accuracy.worst, error.worst] == [0.0, math.inf]
    assert [error.label, error.word, accuracy.label, accuracy.word] == ["MAE", "MAE", "Accuracy", "accuracy"]
    with pytest.raises(BadInputError, match="small letters"):
        Metric("My metric")


def test_a_cosine_of_drawn_vectors_is_of_the_output_with_noise() -> None:
    output = torch.zeros(10_000, 2)
    drawn = Embedding().draw(output, output, torch.Generator().manual_seed(0))
    assert drawn.std().item() == pytest.approx(1.0, abs=0.02)


def test_the_unit_of_shares_is_not_that_of_numbers_up_to_100() -> None:
    outputs, targets = torch.tensor([[40.0], [60.0]]), torch.tensor([[50.0], [80.0]])
    with pytest.raises(BadInputError, match="write percent"):
        regression(metric="mae", unit="%")
    custom = Custom(torch.nn.functional.mse_loss, torch.nn.functional.l1_loss, Metric("off", "%", False))
    with pytest.raises(BadInputError, match=r"metric off is 15, .*divide it by 100"):
        custom.check(outputs, targets)
    custom.check(outputs / 100.0, targets / 100.0)
    with pytest.raises(BadInputError, match="metric off is NaN"):
        replace(custom, metric_function=lambda o, _: o[:, 0] * math.nan).check(outputs, targets)


def test_probabilities_of_yes_are_judged_as_the_logits_they_come_from() -> None:
    logits, answers = torch.tensor([[-2.0], [3.0], [-1.0], [0.5]]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    chances = logits.sigmoid()
    for task in (binary(probabilities=True), binary("f1", probabilities=True)):
        as_logits = replace(task, probabilities=False)
        task.check(chances, answers)
        assert measured(task, (chances, answers)) == measured(as_logits, (logits, answers))
        assert task.loss(chances, answers).item() == pytest.approx(as_logits.loss(logits, answers).item(), rel=1e-5)
        guide = (0.5 * logits, (0.5 * logits).sigmoid())
        apart = [t.distillation(s, g, answers, 2.0, 0.7) for t, s, g in
                 ((as_logits, logits, guide[0]), (task, chances, guide[1]))]  # fmt: skip
        assert apart[1].item() == pytest.approx(apart[0].item(), rel=1e-5)


def test_probabilities_that_are_not_said_to_be_some_are_refused() -> None:
    """0.02 and 0.9 as logits both say yes."""
    outputs, answers = torch.tensor([[0.02], [0.9]]), torch.tensor([[0.0], [1.0]])
    with pytest.raises(BadInputError, match=r"from 0\.02 to 0\.9, as after a sigmoid.*probabilities: true"):
        binary().check(outputs, answers)
    with pytest.raises(BadInputError, match=r"from -1 to 2, not from 0 to 1"):
        multilabel(probabilities=True).check(torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.0, 1.0]]))
    binary().check(outputs - 1.0, answers)
    binary().check(torch.tensor([[0.2], [0.3]]), answers)  # what a random network gives


@pytest.mark.parametrize("task", [Classification(), segmentation()])
def test_a_softmax_at_the_end_is_doubtful(task: Task) -> None:
    outputs = torch.randn(4, 3, 2, 2) if task.metric.name == "miou" else torch.randn(4, 3)
    assert task.doubt(outputs) is None
    assert task.doubt(outputs.log_softmax(1)) is None
    assert "before its softmax" in str(task.doubt(outputs.softmax(1)))
