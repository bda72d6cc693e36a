"""Order of execution of a network: its moments, and the tensors that are live at each of them.

A moment is one operation. A tensor is live from the moment that writes it to the last one that reads it; inputs are
live from the first moment, outputs to the last.

Where a group keeps no channels, the operations that read it write a constant, which is none of the live tensors. What
follows from constants alone is not computed, nor is what nothing computed reads. So an operation is computed if some
of its operands vary and some computed operation reads its result, and a tensor is live up to the last computed
operation that reads it. Both hold while certain groups keep channels (``Needs``), and more so the more groups do.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError

__all__ = ["ALWAYS", "Execution", "LiveTensor", "MomentBytes", "Needs", "WidthSum"]

Needs = frozenset[frozenset[str]]
"""Sets of groups: something holds while all groups of one of them keep channels. No set contains another."""
ALWAYS: Final[Needs] = frozenset({frozenset()})
_NEVER: Final[Needs] = frozenset()
_Key = TypeVar("_Key", str, int)


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

    It is live from moment ``first`` to moment ``last``, both included, while ``needs`` hold. ``is_map`` holds for
    floating-point tensors that the network passes on between its operations: they are of the target's data type.
    Inputs, outputs and integers keep ``item_bytes``.

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
    needs: Needs = ALWAYS

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise BadInputError(
                f"tensor {self.name!r}: live from moment {self.first} to {self.last}, must be at least 0 and in order"
            )


@dataclass(frozen=True)
class MomentBytes:
    """Live bytes of moments as polynomials in kept counts; none falls when a count grows.

    ``terms`` names for each column the positions of the groups that are multiplied, () for the constant. A column
    counts while all groups of one of its sets in ``alternatives`` keep channels, and always if it has none. ``bytes``
    (M, terms) are the coefficients, all at least 0.
    """

    terms: tuple[tuple[int, ...], ...]
    alternatives: tuple[tuple[tuple[int, ...], ...], ...]
    bytes: NDArray[np.float64]

    def of(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Live bytes (P, M) of every moment for kept counts (P, G)."""
        columns = [kept[:, list(term)].prod(axis=1, dtype=np.float64) for term in self.terms]
        for column, sets in zip(columns, self.alternatives, strict=True):
            if sets:
                column *= np.any([(kept[:, list(groups)] > 0).all(axis=1) for groups in sets], axis=0)
        factors = np.stack(columns, axis=1) if columns else np.zeros((len(kept), 0))
        return np.asarray(factors @ self.bytes.T)

    def scope(self, moment: int) -> tuple[int, ...]:
        """Positions of the groups that a moment depends on, ascending."""
        positions: set[int] = set()
        for term, sets, size in zip(self.terms, self.alternatives, self.bytes[moment], strict=True):
            positions |= {*term, *(g for groups in sets for g in groups)} if size else set()
        return tuple(sorted(positions))

    def largest(self) -> "MomentBytes":
        """Return the moments that can be the largest: none that another exceeds, term by term, for every policy."""
        order = np.argsort(-self.bytes.sum(axis=1), kind="stable")
        kept: list[int] = []
        for moment in order.tolist():
            if not kept or not (self.bytes[kept] >= self.bytes[moment]).all(axis=1).any():
                kept.append(moment)
        return MomentBytes(self.terms, self.alternatives, self.bytes[sorted(kept)])


@dataclass(frozen=True)
class Execution:
    """Operations in order (``moments``, each with its place), and the tensors that they write and read.

    ``reads`` and ``writes`` are positions in ``tensors``, for every moment; ``where_vanishing`` asks for them.
    All are empty where the order of execution is not known.

    Raises:
        BadInputError: a tensor that is live beyond the last moment.
    """

    moments: tuple[str, ...] = ()
    tensors: tuple[LiveTensor, ...] = ()
    reads: tuple[tuple[int, ...], ...] = ()
    writes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for tensor in self.tensors:
            if tensor.last >= len(self.moments):
                raise BadInputError(
                    f"tensor {tensor.name!r}: live to moment {tensor.last}, must be below {len(self.moments)}"
                )

    @property
    def groups(self) -> frozenset[str]:
        """Names of all groups that a tensor's size, or whether it is live, depends on."""
        of_sizes = {name for tensor in self.tensors for width in tensor.widths for name, _ in width.steps}
        return frozenset(of_sizes.union(*(groups for tensor in self.tensors for groups in tensor.needs)))

    def joined(self, others: Collection[str], first: str) -> "Execution":
        """Return the same where ``others`` are one group with ``first``, of as many channels."""

        def of(x: LiveTensor) -> LiveTensor:
            needs = (frozenset(first if name in others else name for name in groups) for groups in x.needs)
            return replace(x, widths=tuple(width.joined(others, first) for width in x.widths), needs=_shortest(needs))

        return replace(self, tensors=tuple(map(of, self.tensors)))

    def without(self, lost: Mapping[str, int]) -> "Execution":
        """Return the same where some groups, with their channels, keep all of them."""

        def of(x: LiveTensor) -> LiveTensor:
            needs = _shortest(groups.difference(lost) for groups in x.needs)
            return replace(x, widths=tuple(width.without(lost) for width in x.widths), needs=needs)

        return replace(self, tensors=tuple(map(of, self.tensors)))

    def where_vanishing(self, readers: Mapping[str, Collection[int]]) -> "Execution":
        """Return the same where groups may keep no channels.

        ``readers`` are the moments that read each of them.
        """
        varies, computed = self._computed(readers)
        uses: list[list[int]] = [[] for _ in self.tensors]  # the moments that read or write each tensor
        for moment, (reads, writes) in enumerate(zip(self.reads, self.writes, strict=True)):
            for i in {*reads, *writes}:
                uses[i].append(moment)
        parts: list[LiveTensor] = []
        for tensor, varying, moments in zip(self.tensors, varies, uses, strict=True):
            if not moments:  # an input that nothing reads
                parts.append(tensor)
                continue
            begins = [tensor.first, *(moment + 1 for moment in moments[:-1])]
            needs, end = self._read_at_the_end(tensor), tensor.last
            of_tensor: list[LiveTensor] = []  # the last first
            for begin, moment in zip(reversed(begins), reversed(moments), strict=True):
                needs = _either(needs, computed[moment])
                of_tensor.append(replace(tensor, first=begin, last=end, needs=_both(varying, needs)))
                end = begin - 1
            parts += _merged(of_tensor[::-1])
        return Execution(self.moments, tuple(parts))

    def _read_at_the_end(self, tensor: LiveTensor) -> Needs:
        return ALWAYS if tensor.last == len(self.moments) - 1 else _NEVER

    def _computed(self, readers: Mapping[str, Collection[int]]) -> tuple[list[Needs], list[Needs]]:
        """Return when each tensor varies with the sample, and when each moment is computed."""
        written = {i for moment in self.writes for i in moment}
        varies = [_NEVER if i in written else ALWAYS for i in range(len(self.tensors))]
        moments = []
        for moment, (reads, writes) in enumerate(zip(self.reads, self.writes, strict=True)):
            groups = frozenset(name for name, at in readers.items() if moment in at)
            moments.append(_both(_either(*(varies[i] for i in reads)), frozenset({groups})))
            for i in writes:
                varies[i] = _either(varies[i], moments[-1])
        read = [self._read_at_the_end(tensor) for tensor in self.tensors]  # by what follows
        for moment in reversed(range(len(moments))):
            moments[moment] = _both(moments[moment], _either(*(read[i] for i in self.writes[moment])))
            for i in {*self.reads[moment], *self.writes[moment]}:
                read[i] = _either(read[i], moments[moment])
        return varies, moments

    def moment_bytes(self, groups: Sequence[str], map_bytes: int, samples: int = 1) -> MomentBytes:
        """Return the live bytes of every moment, for groups of these names in this order.

        Args:
            groups: names of all groups, (G,).
            map_bytes: bytes of a number of a map.
            samples: in a batch.
        """
        index = {name: g for g, name in enumerate(groups)}
        columns: dict[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], int] = {((), ()): 0}
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
                    needs = _shortest(frozenset(index[n] for n in names).difference(term) for names in tensor.needs)
                    sets = () if frozenset() in needs else tuple(sorted(tuple(sorted(each)) for each in needs))
                    entries.append((tensor, columns.setdefault((term, sets), len(columns)), size))
        sizes = np.zeros((len(self.moments), len(columns)))
        for tensor, column, size in entries:
            sizes[tensor.first : tensor.last + 1, column] += size
        return MomentBytes(tuple(term for term, _ in columns), tuple(sets for _, sets in columns), sizes)


def _shortest(sets: Iterable[frozenset[_Key]]) -> frozenset[frozenset[_Key]]:
    """Return the sets that contain no other."""
    distinct = frozenset(sets)
    return frozenset(each for each in distinct if not any(other < each for other in distinct))


def _either(*needs: Needs) -> Needs:
    return _shortest(groups for each in needs for groups in each)


def _both(first: Needs, second: Needs) -> Needs:
    return _shortest(a | b for a in first for b in second)


def _merged(parts: Sequence[LiveTensor]) -> list[LiveTensor]:
    """Join consecutive parts of a tensor that are live while the same groups keep channels; drop those never live."""
    merged: list[LiveTensor] = []
    for part in parts:
        if merged and merged[-1].needs == part.needs:
            merged[-1] = replace(merged[-1], last=part.last)
        elif part.needs:
            merged.append(part)
    return merged
