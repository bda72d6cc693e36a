"""Pruning policies, and the space of policies: the only place where ratios become whole channels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup
from amcsearch.core.reading import MIB, parse_json, read_text

__all__ = ["MOST_CHANNELS", "PolicySpace", "PruningPolicy"]

MOST_CHANNELS: Final = 2**31 - 1
"""Of a group in a policy: far beyond any layer, and within the whole numbers of numpy."""
_MOST_BYTES: Final = 4 * MIB


class PruningPolicy(Mapping[str, int]):
    """How many channels every group keeps: an immutable, hashable mapping of group name to ``n_keep``.

    Raises:
        BadInputError: a count that is not a whole number from 0 to ``MOST_CHANNELS``.
    """

    __slots__ = ("_kept",)

    def __init__(self, kept: Mapping[str, int]) -> None:
        for name, n_keep in kept.items():
            is_whole = isinstance(n_keep, int | np.integer) and not isinstance(n_keep, bool)
            if not is_whole or not 0 <= n_keep <= MOST_CHANNELS:
                bound = f"at most {MOST_CHANNELS}" if is_whole and n_keep > 1 else "at least 0"
                raise BadInputError(
                    f"policy: n_keep of {name!r:.80} is {n_keep!r:.40}, must be a whole number of {bound}"
                )
        self._kept = {name: int(n_keep) for name, n_keep in kept.items()}

    def __getitem__(self, name: str) -> int:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __hash__(self) -> int:
        return hash(frozenset(self._kept.items()))

    def __repr__(self) -> str:
        return f"PruningPolicy({self._kept})"

    def to_json(self) -> str:
        """One line of JSON, groups in sorted order: equal policies give equal text."""
        return json.dumps(self._kept, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "PruningPolicy":
        """Read what ``to_json`` wrote.

        Raises:
            BadInputError: as ``parse_json``, or not an object of group names and counts.
        """
        try:
            kept = parse_json(text, "policy")
        except BadInputError as error:
            raise BadInputError(f"{error}; expected {{group: n_keep, …}}") from error
        if not isinstance(kept, dict):
            raise BadInputError(f"policy is a {type(kept).__name__}; expected an object {{group: n_keep, …}}")
        return cls(kept)

    @classmethod
    def read(cls, path: Path) -> "PruningPolicy":
        """Read a ``policy.json``.

        Raises:
            BadInputError: as ``read_text`` or ``from_json``; names the file.
        """
        text = read_text(path, "policy", _MOST_BYTES)
        try:
            return cls.from_json(text)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error


@dataclass(frozen=True)
class PolicySpace:
    """The policies on one device's channel grid: for each group the kept counts it may choose from.

    ``choices[g]`` is ascending and ends with all channels of group g. An agent rounds here once (``nearest`` for
    ratios, ``nearest_counts`` for a policy made elsewhere) and works on with kept counts or their ``indices``.
    """

    groups: tuple[ChannelGroup, ...]
    choices: tuple[NDArray[np.int64], ...]

    @classmethod
    def on_grid(
        cls,
        groups: Sequence[ChannelGroup],
        multiple: int = 1,
        max_pruning_ratio: float = 1.0,
        *,
        vanish: bool = False,
    ) -> "PolicySpace":
        """Return the space of multiples of ``multiple`` that remove at most ``max_pruning_ratio`` of any group.

        With ``vanish`` groups that can vanish may also keep 0 channels, whatever the ratio.

        Raises:
            BadInputError: a multiple below 1, or a ratio outside (0, 1].
        """
        if multiple < 1:
            raise BadInputError(f"channel_multiple = {multiple}, must be at least 1")
        if not 0.0 < max_pruning_ratio <= 1.0:
            raise BadInputError(f"max_pruning_ratio = {max_pruning_ratio}, must be in (0, 1]")
        choices = tuple(
            np.array(group.choices(multiple, max_pruning_ratio, vanish=vanish), dtype=np.int64) for group in groups
        )
        return cls(tuple(groups), choices)

    @property
    def floor(self) -> NDArray[np.int64]:
        """Smallest kept counts, shape (G,)."""
        return np.array([c[0] for c in self.choices], dtype=np.int64)

    @property
    def dense(self) -> NDArray[np.int64]:
        """All channels, shape (G,)."""
        return np.array([c[-1] for c in self.choices], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of policies in the space (a Python integer: it can exceed 2⁶³)."""
        total = 1
        for choice in self.choices:
            total *= len(choice)
        return total

    def random(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw kept counts, shape (count, G), from the smallest policy to nearly dense ones.

        Each policy draws a ceiling from U(0, 1) and then each group a ratio from U(0, ceiling), as a share of the most
        that may be removed. Without the ceiling, the sum over many groups concentrates every draw around one middle
        cost.
        """
        sizes = np.array([len(choices) for choices in self.choices])
        ceiling = rng.random((count, 1))
        removed = rng.random((count, len(sizes))) * ceiling  # share of the choices given up
        return self.counts(np.rint((1.0 - removed) * (sizes - 1)).astype(np.int64))

    def counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the kept counts at ``indices`` (P, G) of ``choices``, shape (P, G)."""
        columns = [choices[indices[:, g]] for g, choices in enumerate(self.choices)]
        return np.stack(columns, axis=1) if columns else indices

    def indices(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where each of the kept counts (G,) stands in ``choices``, shape (G,): the inverse of ``counts``.

        Raises:
            BadInputError: a count that is not a choice of its group.
        """
        counts = np.asarray(kept).tolist()
        try:
            return np.array([at[n] for at, n in zip(self._positions, counts, strict=True)], dtype=np.int64)
        except KeyError:
            g = next(g for g, at in enumerate(self._positions) if counts[g] not in at)
        raise BadInputError(
            f"group {self.groups[g].name!r}: n_keep = {counts[g]} is off the channel grid, its nearest choice is "
            f"{_nearest(self.choices[g], float(counts[g]))}; round the policy with PolicySpace.nearest_counts"
        )

    @cached_property
    def _positions(self) -> list[dict[int, int]]:
        """Of each group: kept count → index."""
        return [{n: i for i, n in enumerate(choices.tolist())} for choices in self.choices]

    def nearest(self, pruning_ratios: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
        """Round one pruning ratio a group, shape (G,), to kept counts, shape (G,); ties keep more channels."""
        kept = [self.nearest_choice(g, float(r)) for g, r in enumerate(pruning_ratios)]
        return np.array(kept, dtype=np.int64)

    def nearest_choice(self, g: int, pruning_ratio: float, allowed: NDArray[np.bool_] | None = None) -> int:
        """Kept count of group ``g`` nearest to a pruning ratio, among the ``allowed`` choices (all by default)."""
        choices = self.choices[g] if allowed is None else self.choices[g][allowed]
        return _nearest(choices, self.groups[g].channels * (1.0 - pruning_ratio))

    def nearest_counts(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Round kept counts (G,) of a policy made for another channel grid, shape (G,); ties keep more channels."""
        counts = [_nearest(choices, float(n)) for choices, n in zip(self.choices, kept, strict=True)]
        return np.array(counts, dtype=np.int64)


def _nearest(choices: NDArray[np.int64], n_keep: float) -> int:
    """The choice nearest to a number of channels; of two, the wider."""
    return int(choices[::-1][np.argmin(np.abs(choices - n_keep)[::-1])])
