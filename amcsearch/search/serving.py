"""Trials of the policies that an agent asks for: stored ones, and new ones that this driver or others evaluate.

A policy goes to a worker as soon as it is drawn from the agent and a worker is idle, and trials come in the order in
which their policies were drawn. In a shared study a driver claims a policy at that moment: it evaluates what it claims,
claims no more than its workers do at once, and is served what the other drivers store.
"""

import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from amcsearch.core import Cost, Evaluation, Incumbent, PruningPolicy, Trial, check_interrupt
from amcsearch.search.study_store import TrialStore, priced

if TYPE_CHECKING:
    from amcsearch.costs import CostGrid
    from amcsearch.evaluation import Executor, PolicySource

__all__ = ["Asked", "Serving"]

_POLL_S: Final = 0.1  # between questions after what other drivers evaluate


@dataclass
class Asked:
    """Policies that an agent asks for, in order: those ``unknown`` need an evaluation, ``probes`` are over budget.

    ``draw`` adds the next one; false where there is none now.
    """

    draw: Callable[[], bool] = lambda: False
    policies: list[PruningPolicy] = field(default_factory=list)
    unknown: list[PruningPolicy] = field(default_factory=list)
    costs: dict[PruningPolicy, Cost] = field(default_factory=dict)
    probes: set[PruningPolicy] = field(default_factory=set)
    incumbents: dict[PruningPolicy, Incumbent] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PruningPolicy]:
        """Yield all policies, and draw where the reader has those that were drawn."""
        for position in count():
            if position == len(self.policies) and not self.draw():
                return
            yield self.policies[position]


class Append(Protocol):
    """Makes the trial of an evaluation, with its number in the storage, and stores it."""

    def __call__(
        self, number: int, policy: PruningPolicy, cost: Cost, evaluation: Evaluation, *, probe: bool
    ) -> tuple[Trial, bool]:
        """Return the trial; false beside it where another driver stores it, or has."""
        ...


class Serving:
    """Gets the trials that are asked for from ``store``, or from ``executor`` and then stored by ``append``.

    ``served`` has the policies whose trials the agent has; ``stops`` tells the executor what a policy has to beat.
    """

    def __init__(
        self,
        store: TrialStore,
        executor: "Executor",
        grid: "CostGrid",
        append: Append,
        served: Container[PruningPolicy],
        *,
        stops: bool,
    ) -> None:
        self._store, self._executor, self._grid = store, executor, grid
        self._append, self._served, self._stops = append, served, stops
        self.stored = {trial.policy: trial for trial in priced(store.news(), grid)}
        """Stored trials that were not served yet."""
        self._written, self._known = len(self.stored), {**store.earlier(), **store.siblings()}

    def ask(self, request: Asked, policies: Sequence[PruningPolicy]) -> None:
        """Add policies that were not served before."""
        request.policies.extend(policies)
        request.unknown.extend(p for p in policies if p not in self.stored and p not in self._known)

    def trials(self, request: Asked) -> Iterator[Trial]:
        """Yield the trial of every policy, in order; what is new is stored before that."""
        return self._shared(request) if self._store.is_shared else self._alone(request)

    def _alone(self, request: Asked) -> Iterator[Trial]:
        results = self._results(_handed_out(request), request)
        for policy in request:
            trial = self.stored.pop(policy, None)
            if trial is None:
                evaluation = self._known[policy] if policy in self._known else next(results)
                trial, _ = self._record(policy, evaluation, request)
            yield trial

    def _results(self, unknown: "PolicySource", request: Asked) -> Iterator[Evaluation]:
        """Yield a new evaluation of every policy, in order."""
        return self._executor.map(unknown, request.incumbents) if self._stops else self._executor.map(unknown)

    def _shared(self, request: Asked) -> Iterator[Trial]:
        """Yield the trial of every policy, in order, as this driver and the others store them."""
        claimed: deque[PruningPolicy] = deque()  # by this driver, and under way
        results: Iterator[Evaluation] = iter(())
        try:
            for number, policy in enumerate(request):
                while policy not in self.stored:
                    evaluation = next(results, None)
                    if evaluation is None:  # the others had claimed all that there was; one of them may have died
                        results = self._results(self._claims(request, number, claimed), request)
                        evaluation = next(results, None)
                    if evaluation is not None:
                        self._store_claimed(claimed.popleft(), evaluation, request)
                    if policy not in self.stored and not self._read_news() and evaluation is None:
                        check_interrupt()
                        time.sleep(_POLL_S)
                yield self.stored.pop(policy)
        finally:
            self._store.release()

    def _claims(self, request: Asked, begin: int, claimed: deque[PruningPolicy]) -> Iterator[PruningPolicy | None]:
        """Yield the policies from number ``begin`` on that nobody else evaluates, each claimed when it is asked for.

        None while there is no other. Each is tried once.
        """
        for number in count(begin):
            while number == len(request.policies):
                if not request.draw():
                    yield None
            policy = request.policies[number]
            if policy in self.stored or policy in self._served or not self._store.claim(policy):
                continue
            if policy in self._known:
                self._store_claimed(policy, self._known[policy], request)
            else:
                claimed.append(policy)
                yield policy

    def _store_claimed(self, policy: PruningPolicy, evaluation: Evaluation, request: Asked) -> None:
        trial, is_stored = self._record(policy, evaluation, request)
        if is_stored:
            self.stored[policy] = trial

    def _read_news(self) -> bool:
        """Take over what was stored since; false where it is nothing."""
        news = priced(self._store.news(), self._grid)
        self.stored.update({trial.policy: trial for trial in news if trial.policy not in self._served})
        return bool(news)

    def _record(self, policy: PruningPolicy, evaluation: Evaluation, request: Asked) -> tuple[Trial, bool]:
        cost, probe = request.costs[policy], policy in request.probes
        trial, is_stored = self._append(self._written, policy, cost, evaluation, probe=probe)
        self._written += 1
        return trial, is_stored


def _handed_out(request: Asked) -> Iterator[PruningPolicy | None]:
    """Yield the policies that need an evaluation, each as soon as it is drawn; None while there is no other."""
    for number in count():
        while number == len(request.unknown):
            if not request.draw():
                yield None
        yield request.unknown[number]
