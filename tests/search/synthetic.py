"""The made-up problem of ``amcsearch.testing``, with evaluations that can kill their process.

As a script it starts each named agent in a process of its own that kills itself with SIGKILL at the k-th evaluation.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation
from amcsearch.search.study import Study
from amcsearch.testing import MadeUpEvaluator, chain
from amcsearch.testing import make_study as made_up_study

__all__ = ["Evaluator", "chain", "make_study"]


@dataclass
class Evaluator(MadeUpEvaluator):
    """Kills the process at the ``kill_at``-th evaluation."""

    kill_at: int | None = None

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        if self.kill_at is not None and len(self.calls) + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(policy)


def make_study(
    agent: str = "test", *, kill_at: int | None = None, nan_at: frozenset[int] = frozenset(), **settings: object
) -> Study:
    return made_up_study(agent, evaluator=lambda network: Evaluator(network, nan_at, kill_at=kill_at), **settings)


def run_and_die(agents: Sequence[str], folder: str, kill_at: int, trials: int) -> dict[str, int]:
    """Run each agent in a forked process that dies at its ``kill_at``-th evaluation; return the signals."""
    from amcsearch.search import AGENTS

    died = {}
    for agent in agents:
        child = os.fork()
        if child == 0:
            study = make_study(agent, trials=trials, storage=f"sqlite:///{folder}/{agent}.db", kill_at=kill_at)
            AGENTS[agent]().run(study, 0)
            os._exit(0)
        died[agent] = os.WTERMSIG(os.waitpid(child, 0)[1])
    return died


if __name__ == "__main__":
    folder, kill_at, trials, *agents = sys.argv[1:]
    sys.stdout.write(json.dumps(run_and_die(agents, folder, int(kill_at), int(trials))))
