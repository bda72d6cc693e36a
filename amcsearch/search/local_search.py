"""Policies near a given one, hill climbing from the best one, and random policies within the budget.

Agents must never spend an evaluation on an infeasible or repeated policy, and must go on while any other is left.
Policies are rows of kept counts on the space's grid.
"""

from collections.abc import Callable, Container, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace, PruningPolicy
from amcsearch.search.study import Study

__all__ = ["climb", "evaluate_one", "explore", "random_policies", "unseen", "walk_space"]

ENUMERABLE: Final = 1 << 16
"""Spaces up to this size are searched for a last unseen policy by trying all of them."""

_ENUMERATED: Final = 4096  # policies of such a space in one batch
_TRIES: Final = 64
_MAX_STEPS: Final = 20_000
_ROUNDS: Final = 16
_DRAWN: Final = 1024  # random policies in one batch
_NOTHING: Final[frozenset[PruningPolicy]] = frozenset()


def evaluate_one(study: Study, kept: NDArray[np.int64]) -> None:
    """Evaluate one feasible policy (G,) if an evaluation is left or it was served before."""
    policy = study.network.policy(kept)
    if study.remaining or study.seen(policy):
        study.evaluate([policy])


def explore(
    study: Study, centre: Callable[[], NDArray[np.int64]], rng: np.random.Generator, at_once: int | None = None
) -> None:
    """Spend what is left on policies near ``centre`` (G,), which is asked for each of them, or until none is new.

    ``at_once`` is as in ``Study.stream``.
    """

    def neighbours() -> Iterator[PruningPolicy]:
        while (kept := unseen(study, centre(), rng, study.under_way)) is not None:
            yield study.network.policy(kept)

    for _ in study.stream(neighbours(), at_once):
        continue


def climb(study: Study, rng: np.random.Generator) -> None:
    """Spend what is left on neighbours of the best policy so far: stochastic hill climbing."""
    largest = study.feasible.largest_uniform()
    explore(study, lambda: study.network.kept_array(study.best.policy) if study.best else largest, rng)


def random_policies(study: Study, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Return random feasible policies (P, G), or None where rejection finds none.

    They are drawn over the whole range of costs (``PolicySpace.random``), for the best policies lie at the edge of the
    budget, and rejected if infeasible.
    """
    for _ in range(_ROUNDS):
        kept = study.space.random(_DRAWN, rng)
        feasible = kept[study.feasible.contains(kept)]
        if len(feasible):
            return feasible
    return None


def walk_space(space: PolicySpace) -> Iterator[NDArray[np.int64]]:
    """Yield every policy of a space that can be enumerated, in batches of kept counts (P, G)."""
    sizes = tuple(len(choices) for choices in space.choices)
    for start in range(0, space.size, _ENUMERATED):
        flat = np.arange(start, min(start + _ENUMERATED, space.size))
        yield space.counts(np.stack(np.unravel_index(flat, sizes), axis=1))


def unseen(
    study: Study,
    kept: NDArray[np.int64],
    rng: np.random.Generator,
    pending: Container[PruningPolicy] = _NOTHING,
) -> NDArray[np.int64] | None:
    """Return a feasible policy (G,) that ``study`` has not served, as near to ``kept`` (G,) as chance finds one.

    Random steps on the grid come first, in growing boxes around ``kept``. When they fail, the feasible set is walked:
    wholly if it can be enumerated, else depth first along ``feasible.allowed``. None when nothing new was found.
    """
    sizes = np.array([len(choices) for choices in study.space.choices])
    if not study.network.groups:
        return None
    start, radius = study.space.indices(kept), 1
    while True:
        offset = rng.integers(-radius, radius + 1, size=(_TRIES, len(sizes)))
        moved = rng.random((_TRIES, len(sizes))) < min(1.0, (radius + 1) / len(sizes))
        candidates = study.space.counts(np.clip(start + offset * moved, 0, sizes - 1))
        nearby = _first_new(study, candidates, pending)
        if nearby is not None:
            return nearby
        if radius >= sizes.max():
            break
        radius *= 2
    if study.space.size <= ENUMERABLE:
        batches = (_first_new(study, rng.permutation(batch), pending) for batch in _shuffled(study.space, rng))
        return next((new for new in batches if new is not None), None)
    return _descend(study, rng, pending)


def _first_new(
    study: Study, candidates: NDArray[np.int64], pending: Container[PruningPolicy]
) -> NDArray[np.int64] | None:
    for kept in candidates[study.feasible.contains(candidates)]:
        policy = study.network.policy(kept)
        if not study.seen(policy) and policy not in pending:
            return np.asarray(kept)
    return None


def _shuffled(space: PolicySpace, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    batches = list(walk_space(space))
    return [batches[i] for i in rng.permutation(len(batches))]


def _descend(study: Study, rng: np.random.Generator, pending: Container[PruningPolicy]) -> NDArray[np.int64] | None:
    """Walk the tree of prefixes that can be completed within the budget until a leaf is new."""
    stack: list[tuple[int, ...]] = [()]
    for _ in range(_MAX_STEPS):
        if not stack:
            return None
        prefix = stack.pop()
        if len(prefix) == len(study.space.choices):
            new = _first_new(study, np.array([prefix], dtype=np.int64), pending)
            if new is not None:
                return new
            continue
        allowed = study.feasible.allowed(np.array(prefix, dtype=np.int64))
        choices = study.space.choices[len(prefix)][allowed]
        stack.extend((*prefix, int(n)) for n in rng.permutation(choices))
    return None
