"""What every task promises, on outputs and targets that its test gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest
import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, map_tensors, tensors_of_tree
from amcsearch.training import Task

__all__ = ["TaskContract", "TaskExample"]

_CLOSE: Final = 1e-5  # relative and absolute: losses are float32


@dataclass(frozen=True)
class TaskExample:
    """What a network gives for ``size`` samples, at least 3, and their targets: trees with an entry for each sample.

    ``perfect`` are outputs that no network could better, of the shapes of ``output``.
    """

    output: Tree
    targets: Tree
    perfect: Tree
    size: int

    def part(self, start: int, stop: int) -> tuple[Tree, Tree]:
        """Outputs and targets of some samples."""
        part = Batch((self.output,), {}, self.targets, self.size).chosen(range(start, stop))
        return part.args[0], part.targets


class TaskContract:
    """What every ``training.Task`` promises."""

    def make(self) -> Task:
        """Return the task that is tested."""
        raise NotImplementedError

    def example(self) -> TaskExample:
        """Return outputs as of an untrained network, targets and perfect outputs."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Task]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture
    def batch(self) -> TaskExample:
        """Give the tests ``example``."""
        return self.example()

    def test_its_loss_is_one_finite_number_with_a_gradient(self, maker: Callable[[], Task], batch: TaskExample) -> None:
        """Outputs get finite gradients that are not all 0."""
        output = map_tensors(batch.output, _followed)
        loss = maker().loss(output, batch.targets)
        assert loss.numel() == 1
        assert bool(loss.isfinite().all())
        assert loss.requires_grad
        leaves = [tensor for _, tensor in tensors_of_tree(output) if tensor.requires_grad]
        gradients = [g for g in torch.autograd.grad(loss.sum(), leaves, allow_unused=True) if g is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)

    def test_its_loss_is_a_mean_over_what_it_counts(self, maker: Callable[[], Task], batch: TaskExample) -> None:
        """The losses of two parts, weighted by their counts, give the loss of the whole."""
        task = maker()
        counts = [task.count(targets, size) for (_, targets), size in _parts(batch)]
        assert all(isinstance(count, int) and count >= 0 for count in counts)
        assert sum(counts) == task.count(batch.targets, batch.size) > 0
        losses = [
            float(task.loss(*part)) * count for (part, _), count in zip(_parts(batch), counts, strict=True) if count
        ]
        assert sum(losses) / sum(counts) == pytest.approx(float(task.loss(batch.output, batch.targets)), _CLOSE, _CLOSE)

    def test_its_meter_gives_the_same_in_one_batch_and_in_parts(
        self, maker: Callable[[], Task], batch: TaskExample
    ) -> None:
        """A new meter knows nothing of the meters before."""
        task = maker()
        whole = _measured(task, (batch.output, batch.targets))
        assert _measured(task, *(part for part, _ in _parts(batch))) == pytest.approx(whole, _CLOSE, _CLOSE)
        assert _measured(task, (batch.output, batch.targets)) == whole

    def test_its_values_of_samples_have_the_metric_as_their_mean(
        self, maker: Callable[[], Task], batch: TaskExample
    ) -> None:
        """In float64; None is for a metric that is no mean over samples."""
        task = maker()
        values = task.sample_values(batch.output, batch.targets)
        if values is not None:
            assert (tuple(values.shape), values.dtype) == ((batch.size,), torch.float64)
            whole = _measured(task, (batch.output, batch.targets))
            assert float(values.nanmean()) == pytest.approx(whole, _CLOSE, _CLOSE)

    def test_it_draws_targets_by_a_seed_or_refuses(self, maker: Callable[[], Task], batch: TaskExample) -> None:
        """Drawn targets have the shapes of the targets, are the same under a seed, and have a loss."""
        task = maker()
        try:
            draws = [task.draw(batch.output, batch.targets, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        except BadInputError:
            return
        first, again, other = (dict(tensors_of_tree(drawn)) for drawn in draws)
        assert {name: tensor.shape for name, tensor in first.items()} == {
            name: tensor.shape for name, tensor in tensors_of_tree(batch.targets)
        }
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())
        assert bool(task.loss(batch.output, draws[0]).isfinite().all())

    def test_perfect_outputs_are_judged_better(self, maker: Callable[[], Task], batch: TaskExample) -> None:
        """By the metric in its direction, and by the loss."""
        task = maker()
        outputs = (batch.perfect, batch.output)
        perfect, untrained = (_measured(task, (output, batch.targets)) for output in outputs)
        assert task.metric.gain(perfect, untrained) > 0.0
        assert float(task.loss(batch.perfect, batch.targets)) < float(task.loss(batch.output, batch.targets))

    def test_it_trains_on_the_targets_and_towards_a_teacher(
        self, maker: Callable[[], Task], batch: TaskExample
    ) -> None:
        """Both losses are one number with a gradient; a student that equals its teacher is no further than another."""
        task = maker()
        task = task.fitted(batch.targets)
        output = map_tensors(batch.output, _followed)
        for loss in (
            task.training_loss(output, batch.targets),
            task.distillation(output, batch.perfect, batch.targets, 2.0, 0.5),
        ):
            assert loss.numel() == 1
            assert bool(loss.isfinite().all())
            assert loss.requires_grad
        same, another = (
            float(task.distillation(student, batch.perfect, batch.targets, 2.0, 1.0))
            for student in (batch.perfect, batch.output)
        )
        assert same < another


def _followed(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor


def _parts(batch: TaskExample) -> list[tuple[tuple[Tree, Tree], int]]:
    """Outputs and targets of the first sample and of the others, with how many samples they are."""
    return [(batch.part(0, 1), 1), (batch.part(1, batch.size), batch.size - 1)]


def _measured(task: Task, *batches: tuple[Tree, Tree]) -> float:
    meter = task.meter()
    for output, targets in batches:
        meter.update(output, targets)
    return meter.value()
