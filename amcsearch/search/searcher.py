"""What every agent promises."""

from collections.abc import Callable
from typing import Protocol

from amcsearch.search.study import Study

__all__ = ["Searcher", "SearcherFactory"]


class Searcher(Protocol):
    """Proposes policies until the study's evaluations are spent.

    The promise, held by the contract tests over ``SEARCHERS``:

    - it evaluates through ``study.evaluate`` alone, and only policies within the budget (probes excepted);
    - it spends every evaluation, and returns early, without an error, only when no new policy is left;
    - it is a function of the seed and of the results it is served, and keeps no file of its own: resuming a
      killed run means running it again from the start, and the study serves what storage already holds.
    """

    def run(self, study: Study, seed: int) -> None:
        """Search until ``study.remaining`` is zero or nothing new can be proposed.

        Raises:
            BadInputError: the study asks for something this agent cannot do (several objectives, say).
        """


SearcherFactory = Callable[..., Searcher]
"""Makes an agent; every parameter has a default (``search.agent_params`` in the configuration)."""
