"""Check of channel groups by experiment: removing channels computes what masking them does, in the shapes predicted.

All groups are checked at once, twice: a random share of the units of each is removed, then a half. Those whose widths
plain code may state are checked apart too, beside others that keep everything. Only where that fails are the groups
at fault looked for: those with layers in the module whose code failed, and where the outputs differ, by halves: n
groups of which k are wrong take about 2 k log2(n) runs. The model's vectors (norms, biases, layer scales) are drawn at
random in a copy, because a vector of zeros would make a wrong removal look right.

A group that fails alone gets more chances. Integers of plain code that equal its width fall with it, those of any name
that equal a size of what code makes of it, and the sizes of shapes that code asks for (``plain_code``). And it is
joined with the groups of as many channels that read it or are read by it: code that takes the width of its input for
that of a part (``split([c, c, levels])``) keeps working as long as all of them lose as many channels. And a tensor that
its modules are given (slopes of positions that are computed from the number of heads) keeps its width, and is cut where
it is given.
"""

import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice, product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import ChannelGroup, NetworkSpec, Side, described
from amcsearch.graph.slices import Trace, joined
from amcsearch.graph.tracing.experiments import (
    SEED,
    FailedRunError,
    Runs,
    difference,
    lively,
    shares_of,
    some_units,
)
from amcsearch.graph.tracing.width_attributes import Guess, guessed, pinned, stated, with_arguments

__all__ = ["verified"]

_DRAWS: Final = 2
_GUESSES: Final = 96  # that fail, of one network
_JOINTS: Final = 8  # joint groups that are tried for one that fails

Indices = NDArray[np.int64]


def verified(model: nn.Module, trace: Trace, guesses: Mapping[str, Sequence[Guess]], runs: Runs) -> Trace:
    """Return the trace without the groups whose removal differs from their masking, or changes an output's shape.

    ``guesses``: what may state a width of each group in the code, to be tried where a group fails.
    """
    if not trace.network.groups:
        return trace
    check = _Check(lively(model), trace, guesses, runs)
    check.add([group.name for group in trace.network.groups])
    return check.trace.without(check.lost)


class _Check:
    """Groups that pass together, and those that were lost, with the reason."""

    def __init__(self, model: nn.Module, trace: Trace, guesses: Mapping[str, Sequence[Guess]], runs: Runs) -> None:
        self.model, self.trace, self.runs = model, trace, runs
        self.guesses, self.guesses_left = dict(guesses), _GUESSES
        rng = np.random.default_rng(SEED)
        self.draws = [{name: some_units(units, rng, i) for name, units in trace.units.items()} for i in range(_DRAWS)]
        _set_apart(self.draws[0], trace)
        self.accepted: list[str] = []
        self.failed: dict[str, str] = {}  # on top of those accepted, with the reason
        self.lost: dict[str, str] = {}

    def add(self, names: Sequence[str]) -> None:
        """Accept these groups if they pass on top of those accepted; else look for those at fault.

        They are looked for in the module whose code failed, and where that says nothing, in halves.
        """
        names = self._open(names)
        if not names:
            return
        failure = self._failure([*self.accepted, *names]) or self._failure_apart(names) if len(names) > 1 else None
        if len(names) > 1 and failure is None:
            self.accepted += names
            return
        suspects = self._suspects(names, failure)
        if len(names) == 1 or suspects:
            for name in suspects or names:
                self._try(name)
            self.add(names if suspects else [])
        else:
            middle = len(names) // 2
            self.add(names[:middle])
            self.add(names[middle:])

    def _open(self, names: Sequence[str]) -> list[str]:
        """Those of some groups that are there and undecided."""
        return [name for name in names if name in self.trace.units and name not in {*self.accepted, *self.lost}]

    def _try(self, name: str) -> None:
        """Decide about one group."""
        ways = (self._passes, self._passes_joined, self._passes_given, partial(self._passes_joined, accepted=True))
        if self._open([name]) and not any(passes(name) for passes in ways):
            alone, reason = self._failure([name]), self.failed[name]
            self.lost[name] = alone.reason if alone is not None else f"clashes with another group: {reason}"

    def _suspects(self, names: Sequence[str], failure: "_Failure | None") -> list[str]:
        """The groups of fewest layers around the code that failed: those of the innermost module that has any."""
        for path in failure.modules if failure is not None else ():
            groups = [group for group in self.trace.network.groups if group.name in names]
            inside = [g.name for g in groups if any(c.layer.startswith(f"{path}.") for c in g.couplings)]
            if path and inside:
                return inside if len(inside) <= max(2, len(names) // 4) else []
        return []

    def _passes(self, name: str) -> bool:
        """Accept a group if it passes, as it is or once integers of plain code that equal its width fall with it."""
        if name in self.failed:
            return False
        before = self.trace
        first = failure = self._failure_of(name)
        while failure is not None and (attributes := stated(self.model, self.trace, name, failure.modules)):
            self.trace = replace(self.trace, attributes=(*self.trace.attributes, *attributes))
            failure = self._failure_of(name)
        if failure is not None and (attributes := stated(self.model, before, name, None)):
            self.trace = replace(before, attributes=(*before.attributes, *attributes))
            failure = self._failure_of(name)
        if failure is not None:
            assert first is not None
            failure = self._failure_of_guesses(before, name) and self._failure_of_pins(before, name, first)
        if failure is None:
            self.accepted.append(name)
            return True
        assert first is not None
        self.trace, self.failed[name] = before, first.reason
        return False

    def _failure_of_guesses(self, before: Trace, name: str) -> "_Failure | None":
        """Say why a group fails whatever is guessed of the code; None, and a trace of the guesses, where it passes."""
        failure: _Failure | None = _Failure("nothing is guessed")
        for choice in guessed(before, self.guesses.get(name, ())):
            if failure is None or not self.guesses_left:
                break
            self.trace = choice
            failure = self._failure_of(name)
            self.guesses_left -= failure is not None
        return failure

    def _failure_of_pins(self, before: Trace, name: str, first: "_Failure") -> "_Failure | None":
        """Say why a group fails where code asks for the sizes of its grids, module by module, or its integers fall."""
        self.trace = before
        failure: _Failure | None = first
        while failure is not None and self.guesses_left:
            more = pinned(self.trace, name, self.guesses, failure.modules)
            attributes = () if more is not None else stated(self.model, self.trace, name, failure.modules)
            if more is None and not attributes:
                break
            self.trace = more or replace(self.trace, attributes=(*self.trace.attributes, *attributes))
            failure = self._failure_of(name)
            self.guesses_left -= failure is not None
        return failure

    def _passes_joined(self, name: str, *, accepted: bool = False) -> bool:
        """Accept a group as one with those that fail too and have as many channels on the other side of a layer.

        Or, where that is not enough, as one with those that are ``accepted``.

        Groups that begin in layers of the same name (the queries of every block) are joined together or not at all, and
        the first is tried for all of them.
        """
        roles: dict[str, list[str]] = {}
        partners = _partners(self.trace.network, name)
        for partner in [p for p in partners if p in self.accepted] if accepted else self._open(partners):
            roles.setdefault(partner.rpartition(".")[2], []).append(partner)
        roles = {role: names for role, names in roles.items() if accepted or not self._passes(names[0])}
        choices = (c for size in range(len(roles), 0, -1) for c in combinations(roles, size))
        for choice in islice(choices, _JOINTS):
            if self._passes_as_one([name, *(partner for role in choice for partner in roles[role])]):
                return True
        return False

    def _passes_given(self, name: str) -> bool:
        """Accept a group if it passes once tensors that its modules are given at full width are cut there."""
        before = self.trace
        for choice in islice(with_arguments(self.model, before, name, self.runs.batch), _JOINTS):
            self.trace = choice
            if self._failure_of(name) is None:
                self.accepted.append(name)
                return True
        self.trace = before
        return False

    def _passes_as_one(self, names: Sequence[str]) -> bool:
        before, whole, accepted = self.trace, joined(self.trace, names), self.accepted
        if whole is None:
            return False
        first = next(name for name in whole.units if name in names)
        why, guesses = self.failed.pop(first, ""), self.guesses.get(first, ())
        self.trace, self.accepted = whole, [name for name in accepted if name not in names]
        self.guesses[first] = [replace(g, group=first) for name in names for g in self.guesses.get(name, ())]
        self._draw(first)
        if self._passes(first):
            return True
        self.trace, self.accepted, self.guesses[first] = before, accepted, guesses
        if why:
            self.failed[first] = why
        self._draw(first)
        return False

    def _draw(self, name: str) -> None:
        rng = np.random.default_rng(SEED)
        for i, draw in enumerate(self.draws):
            draw[name] = some_units(self.trace.units[name], rng, i)

    def _failure_of(self, name: str) -> "_Failure | None":
        """Say why a group fails on top of those accepted, or, where code may state widths, by itself."""
        failure = self._failure([*self.accepted, name])
        is_stated = self.accepted and any(self.guesses.get(other) for other in (*self.accepted, name))
        return failure or (self._failure([name], self.draws[-1:]) if is_stated else None)

    def _failure_apart(self, names: Sequence[str]) -> "_Failure | None":
        """Say why groups fail where some of them keep all channels.

        Those whose width code may state have numbers, all others the number 0: every two numbers are apart in some run,
        for each bit is a run of the groups that have it and one of those that do not.
        """
        coded = [name for name in names if self.guesses.get(name)]
        numbers = {name: coded.index(name) + 1 if name in coded else 0 for name in names}
        for bit, value in product(range(len(coded).bit_length()), (0, 1)):
            part = [name for name in names if numbers[name] >> bit & 1 == value]
            failure = self._failure(part, self.draws[-1:]) if part else None
            if failure is not None:
                return failure
        return None

    def _failure(self, names: Sequence[str], draws: "Sequence[dict[str, Indices]] | None" = None) -> "_Failure | None":
        for draw in self.draws if draws is None else draws:
            kept = {name: draw[name] for name in names}
            try:
                reason = difference(self.model, self.trace, kept, self.runs)
            except FailedRunError as error:
                text = " ".join(str(error.__cause__).split())[:120]
                modules = _modules_of(error.small, error.__cause__)
                return _Failure(f"the smaller network does not run: {text}", modules)
            except Exception as error:  # whatever a group that was written down wrongly leads to costs that group
                return _Failure(f"cannot be checked: {described(error)}")
            if reason:
                return _Failure(reason)
        return None


@dataclass(frozen=True)
class _Failure:
    """Why groups do not pass; ``modules``: those whose code ran when it failed, the innermost first."""

    reason: str
    modules: tuple[str, ...] = ()


def _modules_of(model: nn.Module, error: BaseException | None) -> tuple[str, ...]:
    """Names of the modules in whose code an error was raised, the innermost first."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = traceback.walk_tb(error.__traceback__ if error is not None else None)
    running = [names[id(frame.f_locals["self"])] for frame, _ in frames if id(frame.f_locals.get("self")) in names]
    return tuple(dict.fromkeys(reversed(running)))


def _set_apart(kept: dict[str, Indices], trace: Trace) -> None:
    """Let groups that read each other keep different shares, in place, where they have a choice.

    Code that takes the width of one for that of the other (``c // heads``, ``4 * c``) runs while both keep one share.
    """
    shares = {name: len(index) / trace.units[name].size for name, index in kept.items()}
    for name, units in trace.units.items():
        others = {shares[partner] for partner in _partners(trace.network, name, of_any_width=True)}
        if shares[name] in others:
            counts = [n for n in shares_of(len(units)) if n / len(units) not in others]
            if counts:
                shares[name] = counts[0] / len(units)
                kept[name] = np.sort(units[np.random.default_rng(SEED).permutation(len(units))[: counts[0]]].ravel())


def _partners(network: NetworkSpec, name: str, *, of_any_width: bool = False) -> list[str]:
    """Groups of as many channels that write what layers make of this group, or that such layers read."""
    sides: dict[tuple[str, Side], list[ChannelGroup]] = defaultdict(list)
    for group in network.groups:
        for coupling in group.couplings:
            sides[coupling.layer, coupling.side].append(group)
    group = next(group for group in network.groups if group.name == name)
    across = [
        other
        for coupling in group.couplings
        for other in sides[coupling.layer, Side.IN if coupling.side is Side.OUT else Side.OUT]
    ]
    names = {other.name for other in across if of_any_width or other.channels == group.channels} - {name}
    return [other.name for other in network.groups if other.name in names]
