"""Short fine-tuning of the finalists, by which one of them is chosen: successive halving.

Accuracy before fine-tuning does not rank accuracy after it (benchmarks/rungs.md), so finalists are compared after a
few epochs. While four or more are left, the better half goes on, twice as long:

    8 finalists for 1 epoch, the best 4 of them for 2, the best 2 of these for 4: 24 epochs in all

Each round trains anew from the pruned network, with the whole learning-rate schedule. What a finalist is worth after a
round is therefore what that many epochs alone would give, and does not depend on the rounds before. Of the last
round the best is chosen.

A finalist is judged as it would be delivered: in int8 the order may be another one, also without fine-tuning.

Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization, arXiv 1502.07943.
There training goes on between rounds; a schedule that ends at a small rate has to begin again.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core import Cost, Evaluation, PruningPolicy, give_back_freed_memory
from amcsearch.graph import duplicate
from amcsearch.jobs.delivery import Exports, Finalist
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.setup import Job
from amcsearch.jobs.user_training import user_training
from amcsearch.jobs.workload import InMemory, judged_batches
from amcsearch.training import StateFile, evaluate

__all__ = ["TrainingRound", "train_finalists", "training_rounds"]

SHORT: Final = 5  # the first round takes one in so many epochs of the whole fine-tuning
FEWEST: Final = 4  # finalists of which half go on


@dataclass(frozen=True)
class TrainingRound:
    """How many finalists are trained, and how; ``training`` is None where they are judged as they are."""

    finalists: int
    training: FinetuneConfig | None

    @property
    def epochs(self) -> int:
        """Epochs of all of them."""
        return 0 if self.training is None else self.finalists * self.training.epochs


def training_rounds(config: Config, given: InMemory, finalists: int) -> list[TrainingRound]:
    """Return the rounds that so many finalists are judged after.

    None of fewer than two finalists, and none where the fine-tuning is one of the user's own. Without a fine-tuning
    there is one round, which trains nothing, where the device computes in another data type than the search judged.
    No round is longer than the whole fine-tuning.
    """
    finetune, epochs_given = config.recovery.finetune, config.search.finalist_epochs
    if user_training(config, given) is not None or finalists < 2:
        return []
    if finetune is None:
        return [] if config.device.dtype == "float32" else [TrainingRound(finalists, None)]
    epochs = min(finetune.epochs, max(1, finetune.epochs // SHORT) if epochs_given is None else epochs_given)
    rounds: list[TrainingRound] = []
    while 0 < epochs <= finetune.epochs:
        rounds.append(TrainingRound(finalists, finetune.model_copy(update={"epochs": epochs})))
        if finalists < FEWEST:
            break
        finalists, epochs = math.ceil(finalists / 2), 2 * epochs
    return rounds


def train_finalists(
    job: Job,
    finalists: Sequence[Finalist],
    exports: Exports,
    reward: Callable[[Evaluation, Cost], float],
    observer: Observer,
    file: StateFile,
) -> list[Finalist]:
    """Fine-tune copies of the finalists within the limit by ``training_rounds``, and judge them on the search split.

    Those of a second round of measuring are not trained. One whose training diverges at every learning rate is judged
    as it is, for so it would be delivered; a metric that is no number is worth minus infinity. ``file`` keeps what was
    judged and the training on its way; a killed run goes on there.

    Raises:
        BadInputError: as ``fine_tune``, ``Exports.as_delivered`` and ``StateFile``.
    """
    field = [finalist for finalist in finalists if finalist.overshoot <= 1.0 and finalist.round == 1]
    latest = {finalist.name: finalist for finalist in finalists}
    judged = _Judged(file)
    give_back_freed_memory()  # by what refitted networks: activations of a training seldom fit its blocks
    for each in training_rounds(job.config, job.given, len(field)):
        best = sorted(field, key=lambda finalist: -finalist.worth)[: each.finalists]
        field = [_trained(job, finalist, exports, reward, each.training, observer, judged) for finalist in best]
        latest.update((finalist.name, finalist) for finalist in field)
    return [latest[finalist.name] for finalist in finalists]


def _trained(
    job: Job,
    finalist: Finalist,
    exports: Exports,
    reward: Callable[[Evaluation, Cost], float],
    training: FinetuneConfig | None,
    observer: Observer,
    judged: "_Judged",
) -> Finalist:
    """Return the finalist as it is after a training, from the pruned network on."""
    epochs = 0 if training is None else training.epochs
    judged.begin(finalist.trial.policy, epochs)
    if judged.evaluation is None:
        begun, model = time.perf_counter(), exports.pruned(finalist.trial.policy)
        if training is not None:
            model = duplicate(model)
            fine_tune(job.config, training, job.workload, model, observer, store=judged, given=job.given)
        batches = judged_batches(job.config, job.workload, "search")
        loss, metric = evaluate(exports.as_delivered(model), batches, job.workload.task)
        judged.end(Evaluation(metric, loss, time.perf_counter() - begun))
    evaluation = judged.evaluation
    assert evaluation is not None
    if math.isnan(evaluation.metric):
        return replace(finalist, trained=None, trained_reward=-math.inf, trained_epochs=epochs)
    worth = reward(evaluation, finalist.trial.cost)
    return replace(finalist, trained=evaluation, trained_reward=worth, trained_epochs=epochs)


class _Judged:
    """What trainings came to, and the state of the one on its way: a ``StateStore`` for that one."""

    def __init__(self, file: StateFile) -> None:
        stored = file.load() or {}
        self._file, self._key = file, ""
        self._evaluations: dict[str, list[float]] = dict(stored.get("evaluations", {}))
        self._training: tuple[str, dict[str, Any]] | None = stored.get("training")

    @property
    def evaluation(self) -> Evaluation | None:
        """What this training came to; None before it has ended."""
        values = self._evaluations.get(self._key)
        return None if values is None else Evaluation(metric=values[0], loss=values[1], seconds=values[2])

    def begin(self, policy: PruningPolicy, epochs: int) -> None:
        """Say which training comes next."""
        self._key = f"{policy.to_json()}, {epochs} epochs"

    def end(self, evaluation: Evaluation) -> None:
        """Keep what this training came to."""
        self._evaluations[self._key] = [evaluation.metric, evaluation.loss, evaluation.seconds]
        self._training = None
        self._write()

    def load(self) -> dict[str, Any] | None:
        """Return the state of this training, where it was on its way."""
        return self._training[1] if self._training is not None and self._training[0] == self._key else None

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state of this training."""
        self._training = self._key, state
        self._write()

    def _write(self) -> None:
        self._file.save({"evaluations": self._evaluations, "training": self._training})
