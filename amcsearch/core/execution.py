"""Order of execution of a network: its moments, and the tensors that are live at each of them.

A moment is one operation. A tensor is live from the moment that writes it to the last one that reads it; inputs are
live from the first moment, outputs to the last.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError

__all__ = ["Execution", "LiveTensor", "MomentBytes", "WidthSum"]


@dataclass(frozen=True, slots=True)
class WidthSum:
    """Length of a dimension: ``fixed``, and for each group (name, length a kept channel)."""

    fixed: float
    steps: tuple[tuple[str, float], ...]

    def without(self, lost: Mapping[str, int]) -> "WidthSum":
        """Return the length where some groups, with their channels, keep all of them."""
        whole = sum(step * lost[name] for name, step in self.steps if name in lost)
        return WidthSum(self.fixed + whole, tuple(step for step in self.steps if step[0] not in lost))

    def joined(self, others: Collection[str], first: str) -> "WidthSum":
        """Return the length where ``others`` are one group with ``first``."""
        steps: dict[str, float] = {}
        for name, step in self.steps:
            group = first if name in others else name
            steps[group] = steps.get(group, 0.0) + step
        return WidthSum(self.fixed, tuple(steps.items()))


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A tensor of one sample: ``elements`` times the product of ``widths`` numbers of ``item_bytes`` each.

    It is live from moment ``first`` to moment ``last``, both included. ``is_map`` holds for floating-point tensors that
    the network passes on between its operations: they are of the target's data type. Inputs, outputs and integers
    keep ``item_bytes``.

    Raises:
        BadInputError: moments out of order.
    """

    name: str
    first: int
    last: int
    elements: float
    widths: tuple[WidthSum, ...] = ()
    item_bytes: int = 4
    is_map: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise BadInputError(
                f"tensor {self.name!r}: live from moment {self.first} to {self.last}, must be at least 0 and in order"
            )


@dataclass(frozen=True)
class MomentBytes:
    """Live bytes of moments as polynomials in kept counts.

    ``terms`` names for each column the positions of the groups that are multiplied, () for the constant;
    ``bytes`` (M, terms) are the coefficients, all at least 0.
    """

    terms: tuple[tuple[int, ...], ...]
    bytes: NDArray[np.float64]

    def of(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Live bytes (P, M) of every moment for kept counts (P, G)."""
        columns = [kept[:, list(term)].prod(axis=1, dtype=np.float64) for term in self.terms]
        factors = np.stack(columns, axis=1) if columns else np.zeros((len(kept), 0))
        return np.asarray(factors @ self.bytes.T)

    def scope(self, moment: int) -> tuple[int, ...]:
        """Positions of the groups that a moment depends on, ascending."""
        return tuple(
            sorted({g for term, size in zip(self.terms, self.bytes[moment], strict=True) if size for g in term})
        )

    def largest(self) -> "MomentBytes":
        """Return the moments that can be the largest: none that another exceeds, term by term, for every policy."""
        order = np.argsort(-self.bytes.sum(axis=1), kind="stable")
        kept: list[int] = []
        for moment in order.tolist():
            if not kept or not (self.bytes[kept] >= self.bytes[moment]).all(axis=1).any():
                kept.append(moment)
        return MomentBytes(self.terms, self.bytes[sorted(kept)])


@dataclass(frozen=True)
class Execution:
    """Operations in order (``moments``, each with its place), and the tensors that they write and read.

    Nothing of both where the order of execution is not known.

    Raises:
        BadInputError: a tensor that is live beyond the last moment.
    """

    moments: tuple[str, ...] = ()
    tensors: tuple[LiveTensor, ...] = ()

    def __post_init__(self) -> None:
        for tensor in self.tensors:
            if tensor.last >= len(self.moments):
                raise BadInputError(
                    f"tensor {tensor.name!r}: live to moment {tensor.last}, must be below {len(self.moments)}"
                )

    @property
    def groups(self) -> frozenset[str]:
        """Names of all groups that a tensor's size depends on."""
        return frozenset(name for tensor in self.tensors for width in tensor.widths for name, _ in width.steps)

    def joined(self, others: Collection[str], first: str) -> "Execution":
        """Return the same where ``others`` are one group with ``first``, of as many channels."""
        return Execution(
            self.moments,
            tuple(replace(x, widths=tuple(width.joined(others, first) for width in x.widths)) for x in self.tensors),
        )

    def without(self, lost: Mapping[str, int]) -> "Execution":
        """Return the same where some groups, with their channels, keep all of them."""
        return Execution(
            self.moments,
            tuple(replace(x, widths=tuple(width.without(lost) for width in x.widths)) for x in self.tensors),
        )

    def moment_bytes(self, groups: Sequence[str], map_bytes: int, samples: int = 1) -> MomentBytes:
        """Return the live bytes of every moment, for groups of these names in this order.

        Args:
            groups: names of all groups, (G,).
            map_bytes: bytes of a number of a map.
            samples: in a batch.
        """
        index = {name: g for g, name in enumerate(groups)}
        columns: dict[tuple[int, ...], int] = {(): 0}
        entries: list[tuple[LiveTensor, int, float]] = []
        for tensor in self.tensors:
            item = (map_bytes if tensor.is_map else tensor.item_bytes) * samples * tensor.elements
            choices = [
                [((), width.fixed), *(((index[n],), step) for n, step in width.steps)] for width in tensor.widths
            ]
            for parts in product(*choices):
                term = tuple(sorted(g for groups_of_part, _ in parts for g in groups_of_part))
                size = item * prod(step for _, step in parts)
                if size:
                    entries.append((tensor, columns.setdefault(term, len(columns)), size))
        sizes = np.zeros((len(self.moments), len(columns)))
        for tensor, column, size in entries:
            sizes[tensor.first : tensor.last + 1, column] += size
        return MomentBytes(tuple(columns), sizes)
