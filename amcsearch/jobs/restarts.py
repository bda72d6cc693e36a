"""Trainings that begin anew at a lower learning rate where they diverge.

A search is paid for when its network is trained. So a learning rate that is too high for a network (one without norms,
or whose loss is of large scale) does not end the run: the same weights are trained again at a tenth of it, up to three
times. Gradients are shortened to the length 1 then, where the recipe does not say otherwise: a loss of millions asks
for rates that a few tries do not find.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from torch import nn

from amcsearch.core import DivergedError
from amcsearch.jobs.workload import Workload
from amcsearch.training import StateStore, TrainingRecipe, batches_of, evaluate, guess_on

__all__ = ["LossCheck", "Restarted", "restarting"]

LOWER_RATES: Final = 3
MOST_LOSS: Final = 10.0  # times the loss before the training, or that of guessing
SHARE: Final = 0.1  # of the learning rate before
CLIP_NORM: Final = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Restarted(Generic[Result]):
    """What a training came to, and the learning rate that it was done at; None where it diverged at every rate.

    ``notes`` say at which rates it diverged and at which one it was done; empty where the first was right. ``error`` is
    that of the last rate that diverged.
    """

    result: Result | None
    rate: float | None
    notes: tuple[str, ...]
    error: DivergedError | None


def restarting(
    key: str,
    recipe: TrainingRecipe,
    store: StateStore | None,
    warn: Callable[[str], None],
    train: Callable[[TrainingRecipe, StateStore | None], Result],
    *,
    clips: bool = True,
) -> Restarted[Result]:
    """Train by a recipe; where that diverges, again at a tenth of its learning rate, up to three times.

    Args:
        key: the configuration's key of the learning rate, for messages.
        recipe: with the learning rate to begin with.
        store: keeps which rate it is, beside the state of the training, so that a killed one goes on at that rate.
        warn: told of every rate that diverged.
        train: trains from the same weights whenever it is called, and keeps its state in the store that it is given.
        clips: whether gradients may be shortened; not under masks and gates.
    """
    lower = replace(recipe, clip_norm=CLIP_NORM) if clips and recipe.clip_norm is None else recipe
    clipped = "" if lower is recipe else f" with gradients of a length of at most {CLIP_NORM:g}"
    rates = [recipe.learning_rate * SHARE**i for i in range(1 + LOWER_RATES)]
    rate = _RateOf(store)
    error: DivergedError | None = None
    while rate.index < len(rates):
        try:
            tried = replace(lower if rate.index else recipe, learning_rate=rates[rate.index])
            result = train(tried, None if store is None else rate)
        except DivergedError as diverged:
            error, rate.index = diverged, rate.index + 1
            if rate.index < len(rates):
                anew = f"it begins anew from the same weights at {rates[rate.index]:.3g}{clipped}"
                warn(f"{key} = {rates[rate.index - 1]:.3g}: {diverged}; {anew} (restart {rate.index} of {LOWER_RATES})")
        else:
            return Restarted(result, rates[rate.index], _notes(key, rates[: rate.index + 1], clipped), error)
    return Restarted(None, None, (), error)


def _notes(key: str, rates: list[float], clipped: str) -> tuple[str, ...]:
    *diverged, done = rates
    if not diverged:
        return ()
    tried = ", ".join(f"{rate:.3g}" for rate in diverged)
    also = f", and {key.rpartition('.')[0]}.clip_norm to {CLIP_NORM:g}" if clipped else ""
    return (f"{key}: the training diverged at {tried}, so it was done at {done:.3g}{clipped}; set it to that{also}",)


class LossCheck:
    """Compares the loss of the calibration split after a training with that before it, and with that of guessing.

    Args:
        model: the network before the training.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self._batches, self._task = batches_of(workload.splits.calibration, name="calibration"), workload.task
        guess = guess_on(model, self._batches, self._task)
        self._guessing = 0.0 if guess is None else guess.loss  # 0 where it is not known
        self._began, _ = evaluate(model, self._batches, self._task)

    def __call__(self, trained: nn.Module, recipe: TrainingRecipe) -> None:
        """Refuse a network whose loss is far above both.

        Raises:
            DivergedError: names the losses and the learning rate.
        """
        ended, _ = evaluate(trained, self._batches, self._task)
        most = MOST_LOSS * max(self._guessing, self._began)  # in this order a NaN at the beginning counts as guessing
        if not ended <= most:
            raise DivergedError(
                f"the training diverged in epoch {recipe.epochs} at learning_rate = "
                f"{recipe.learning_rate:.3g}: the loss of the calibration split is {ended:.4g}, before it was "
                f"{self._began:.4g}, must be at most {most:.4g}; lower the learning rate, or lengthen the warm-up"
            )


class _RateOf:
    """A ``StateStore`` that keeps the index of the learning rate beside the state of the training at that rate."""

    def __init__(self, store: StateStore | None) -> None:
        self._store, self.index = store, 0
        stored = None if store is None else store.load()
        if stored is not None:
            self.index = int(stored.get("lower_rate", 0))

    def load(self) -> dict[str, Any] | None:
        """Return the state of the training at this rate."""
        stored = None if self._store is None else self._store.load()
        if stored is None or int(stored.get("lower_rate", 0)) != self.index:
            return None
        return {name: value for name, value in stored.items() if name != "lower_rate"}

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state of the training at this rate."""
        if self._store is not None:
            self._store.save({**state, "lower_rate": self.index} if self.index else state)
