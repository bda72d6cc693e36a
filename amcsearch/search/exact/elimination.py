"""Elimination order for the variables of a sum of small functions, chosen so that tables stay small.

A function that names variables ties them together: each must be known until the last function that names it is
counted. Variables are introduced one by one; one leaves the table as soon as all it is tied to has been introduced.
The work of a step is the product of the sizes of everything in the table and the variable introduced. A chain keeps one
variable in the table, a residual stage the width of the stage and one width inside a block, whatever their number.

There is one table at a time. Variable elimination in general keeps one for each branch and joins them. Our tables have
a budget axis, and joining two would take a min-plus convolution over it, quadratic in its resolution. The order is
greedy: the next variable is the one that leaves the smallest table. Every variable is tried as the first, and the
cheapest order is kept. Of more than 32 variables that are tied together, eight of the fewest ties are tried as the
first and 32 as the next, so that the time grows with the number of variables and not with its square.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

__all__ = ["Step", "elimination_steps", "largest_table", "work"]

_MOST_FIRSTS: Final = 32
_FEW_FIRSTS: Final = 8
_MOST_CANDIDATES: Final = 32


@dataclass(frozen=True)
class Step:
    """``group`` joins a table over ``before``; a table over ``after`` is left, the others are decided."""

    group: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def joint(self) -> tuple[int, ...]:
        """All variables that meet in this step."""
        return (*self.before, self.group)

    @property
    def kept(self) -> tuple[int, ...]:
        """The variables of ``before`` that stay in the table."""
        return tuple(g for g in self.before if g in self.after)

    @property
    def gone(self) -> tuple[int, ...]:
        """The variables of ``before`` that are decided here (``group`` is too, where ``after`` lacks it)."""
        return tuple(g for g in self.before if g not in self.after)


def work(steps: Sequence[Step], sizes: Sequence[int]) -> int:
    """How many combinations of values all steps look at together."""
    return sum(prod(sizes[g] for g in step.joint) for step in steps)


def largest_table(steps: Sequence[Step], sizes: Sequence[int]) -> int:
    """Combinations of values all tables hold together (they are kept to read the solution off them)."""
    return sum(prod(sizes[g] for g in step.before) for step in steps)


def elimination_steps(sizes: Sequence[int], scopes: Iterable[Collection[int]]) -> tuple[Step, ...]:
    """Return one step for each variable, given how many values each has and which ones each function names.

    Variables that no chain of functions ties together are ordered apart, so their work adds up.
    """
    neighbours: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for g in scope:
            neighbours[g] |= set(scope) - {g}
    steps: list[Step] = []
    for component in _components(neighbours):
        orders = [_greedy(first, sizes, neighbours) for first in _firsts(component, neighbours)]
        cheapest: list[Step] = min(orders, key=lambda order: work(order, sizes))
        steps += cheapest
    return tuple(steps)


def _components(neighbours: Sequence[set[int]]) -> list[list[int]]:
    """Sets of variables that are tied together, each ascending."""
    components, reached = [], set[int]()
    for start in range(len(neighbours)):
        if start in reached:
            continue
        members, waiting = {start}, [start]
        while waiting:
            new = neighbours[waiting.pop()] - members
            members |= new
            waiting += new
        reached |= members
        components.append(sorted(members))
    return components


def _firsts(component: Sequence[int], neighbours: Sequence[set[int]]) -> list[int]:
    """Variables to begin with: all of a few, those tied to the fewest of many."""
    if len(component) <= _MOST_FIRSTS:
        return list(component)
    return sorted(sorted(component, key=lambda g: len(neighbours[g]))[:_FEW_FIRSTS])


def _greedy(first: int, sizes: Sequence[int], neighbours: Sequence[set[int]]) -> list[Step]:
    eliminated: set[int] = set()
    steps = [_step(first, (), eliminated, neighbours)]
    while True:
        table = steps[-1].after
        eliminated.add(steps[-1].group)
        near = sorted(set().union(*(neighbours[g] for g in table)) - eliminated)
        if not near:
            return steps
        candidates = (_step(g, table, eliminated, neighbours) for g in near[:_MOST_CANDIDATES])
        steps.append(min(candidates, key=lambda step: _greed(step, sizes)))


def _greed(step: Step, sizes: Sequence[int]) -> tuple[int, int]:
    return prod(sizes[g] for g in step.after), prod(sizes[g] for g in step.joint)


def _step(group: int, table: tuple[int, ...], eliminated: set[int], neighbours: Sequence[set[int]]) -> Step:
    after = (g for g in (*table, group) if any(n != group and n not in eliminated for n in neighbours[g]))
    return Step(group, table, tuple(after))
