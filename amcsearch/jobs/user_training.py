"""A training of the user's own in place of ours: what it is given, and what is checked of the network it gives back.

Whatever it does with the network, only weights and buffers come back: they are put into the pruned network as it was,
and that has to compute what the returned network computes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from amcsearch.config import Config, import_factory
from amcsearch.core import BadInputError, UserCode
from amcsearch.graph import Batch, duplicate
from amcsearch.jobs.workload import InMemory, Workload
from amcsearch.runs import RunFolder, make_folder
from amcsearch.runtime import OUTPUTS, compare
from amcsearch.training import Samples, Task, seeded

__all__ = ["TrainingRequest", "UserTraining", "train_by_user", "training_folder", "user_training"]

_KEY: Final = "recovery.finetune.factory"
LONGEST: Final = 80  # characters of the name of a folder


@dataclass(frozen=True)
class TrainingRequest:
    """What a training of one's own is given.

    ``model`` is the pruned network in training mode, on the CPU; ``teacher`` the dense one in eval mode, a copy. The
    splits ``train`` and ``search`` are map-style data sets of (input, target) for a ``torch.utils.data.DataLoader``;
    the samples of ``search`` are those that policies are judged on. ``task`` has the loss and the metric:
    ``task.loss(outputs, targets)`` is a scalar tensor. ``seed`` is the configuration's: torch, numpy and
    Python are seeded by it. ``torch_device`` is where to train. ``folder`` is for files such as checkpoints; it stays
    in the run folder as ``.user_training/NAME``, so that a training that was interrupted finds its own again.
    """

    model: nn.Module
    teacher: nn.Module
    train: Samples
    search: Samples
    task: Task
    seed: int
    torch_device: str
    folder: Path


UserTraining = Callable[[TrainingRequest], nn.Module]
"""Trains ``request.model`` and returns it."""


def user_training(config: Config, given: InMemory) -> UserTraining | None:
    """Return the user's own training, if one is handed over or configured.

    Raises:
        BadInputError: it cannot be imported or called.
    """
    finetune = config.recovery.finetune
    training: UserTraining | None = given.finetune
    if training is None and finetune is not None and finetune.factory is not None:
        training = import_factory(finetune.factory)
    if training is not None and not callable(training):
        raise BadInputError(f"finetune is a {type(training).__name__}, expected a function of a TrainingRequest")
    return training


def training_folder(run: RunFolder, config: Config, given: InMemory) -> Path:
    """Where a training of the user's keeps its files: a folder for each training, so that none takes up another's."""
    finetune, training = config.recovery.finetune, given.finetune
    name = "recipe" if finetune is None or finetune.factory is None else finetune.factory
    if training is not None:
        name = str(getattr(training, "__qualname__", type(training).__qualname__))
    return run.user_training / re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-LONGEST:].lstrip(".")


def train_by_user(training: UserTraining, config: Config, workload: Workload, model: nn.Module, folder: Path) -> None:
    """Train ``model`` in place by the user's own training.

    Raises:
        BadInputError: it raises, or returns something else than the network with other weights: another structure,
            weights that are not finite, outputs that the weights alone do not give.
    """
    make_folder(folder)
    request = TrainingRequest(
        model=duplicate(model).train(),
        teacher=duplicate(workload.model).eval(),
        train=workload.splits.train,
        search=workload.splits.search,
        task=workload.task,
        seed=config.seed,
        torch_device=config.evaluation.torch_device,
        folder=folder,
    )
    with UserCode(f"{_KEY}: training"), seeded(config.seed):
        returned = training(request)
    if not isinstance(returned, nn.Module):
        raise BadInputError(
            f"{_KEY} returned a {type(returned).__name__}, must return the network; end it with return request.model"
        )
    returned.cpu()
    _check_tensors(model.state_dict(), returned.state_dict())
    model.load_state_dict(returned.state_dict())
    _check_outputs(model, returned, workload.example)


def _check_tensors(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    cure = (
        "return the network that was given (of a wrapper such as torch.compile or DistributedDataParallel, the inside)"
    )
    for name in [*before, *after]:
        if name not in before or name not in after:
            where = "has no" if name in before else "has a further"
            raise BadInputError(f"{_KEY} returned another network, which {where} {name!r}; {cure}")
        if before[name].shape != after[name].shape:
            shapes = f"{tuple(after[name].shape)}, must be {tuple(before[name].shape)}"
            raise BadInputError(f"{_KEY} returned another network: {name!r} is of shape {shapes}; {cure}")
        if not after[name].isfinite().all():
            raise BadInputError(f"{_KEY} returned weights that are not finite: {name!r}; lower its learning rate")


def _check_outputs(model: nn.Module, returned: nn.Module, example: Batch) -> None:
    """Compare the pruned network under the returned weights with what was returned."""
    with UserCode(f"{_KEY}: the network it returned"):
        agreement = compare(model, returned, [example], labels=False)
    if not agreement.relative <= OUTPUTS or agreement.changed:
        raise BadInputError(
            f"{_KEY} returned another network: its output {agreement.output or 'of the example'} differs by "
            f"{agreement.relative:.3g} of its scale from that of the same weights in the pruned network, at most "
            f"{OUTPUTS:g} is allowed; change weights and buffers alone"
        )
