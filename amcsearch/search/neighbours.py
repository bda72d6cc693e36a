"""Policies not yet evaluated: near a given one, or anywhere in the feasible set.

Agents must never spend an evaluation on an infeasible or repeated policy, and must go on while any other is left.
Policies are rows of kept counts on the space's grid; ``index`` rows hold positions in ``space.choices`` instead.
"""

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace, PruningPolicy

if TYPE_CHECKING:
    from amcsearch.search.study import Study

__all__ = ["kept_at", "positions", "unseen", "walk_space"]

ENUMERABLE: Final = 1 << 16
"""Spaces up to this size are searched for a last unseen policy by trying all of them."""

_BATCH: Final = 4096
_TRIES: Final = 64
_MAX_STEPS: Final = 20_000
_NOTHING: Final[frozenset[PruningPolicy]] = frozenset()


def kept_at(space: PolicySpace, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kept counts at positions (P, G) of ``space.choices``: shape (P, G)."""
    return np.stack([choices[index[:, g]] for g, choices in enumerate(space.choices)], axis=1)


def positions(space: PolicySpace, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each kept count (G,) stands in ``space.choices``: shape (G,), the inverse of ``kept_at``."""
    return np.array([np.searchsorted(choices, n) for choices, n in zip(space.choices, kept, strict=True)], np.int64)


def walk_space(space: PolicySpace) -> Iterator[NDArray[np.int64]]:
    """Yield every policy of a space that can be enumerated, in batches of kept counts (P, G)."""
    sizes = tuple(len(choices) for choices in space.choices)
    for start in range(0, space.size, _BATCH):
        flat = np.arange(start, min(start + _BATCH, space.size))
        yield kept_at(space, np.stack(np.unravel_index(flat, sizes), axis=1))


def unseen(
    study: "Study",
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
    start, radius = positions(study.space, kept), 1
    while True:
        offset = rng.integers(-radius, radius + 1, size=(_TRIES, len(sizes)))
        moved = rng.random((_TRIES, len(sizes))) < min(1.0, (radius + 1) / len(sizes))
        candidates = kept_at(study.space, np.clip(start + offset * moved, 0, sizes - 1))
        found = _first_new(study, candidates, pending)
        if found is not None:
            return found
        if radius >= sizes.max():
            break
        radius *= 2
    if study.space.size <= ENUMERABLE:
        batches = (_first_new(study, rng.permutation(batch), pending) for batch in _shuffled(study.space, rng))
        return next((found for found in batches if found is not None), None)
    return _descend(study, rng, pending)


def _first_new(
    study: "Study", candidates: NDArray[np.int64], pending: Container[PruningPolicy]
) -> NDArray[np.int64] | None:
    for kept in candidates[study.feasible.contains(candidates)]:
        policy = study.network.policy(kept)
        if not study.seen(policy) and policy not in pending:
            return np.asarray(kept)
    return None


def _shuffled(space: PolicySpace, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    batches = list(walk_space(space))
    return [batches[i] for i in rng.permutation(len(batches))]


def _descend(study: "Study", rng: np.random.Generator, pending: Container[PruningPolicy]) -> NDArray[np.int64] | None:
    """Walk the tree of prefixes that can be completed within the budget until a leaf is new."""
    stack: list[tuple[int, ...]] = [()]
    for _ in range(_MAX_STEPS):
        if not stack:
            return None
        prefix = stack.pop()
        if len(prefix) == len(study.space.choices):
            found = _first_new(study, np.array([prefix], dtype=np.int64), pending)
            if found is not None:
                return found
            continue
        allowed = study.feasible.allowed(np.array(prefix, dtype=np.int64))
        choices = study.space.choices[len(prefix)][allowed]
        stack.extend((*prefix, int(n)) for n in rng.permutation(choices))
    return None
