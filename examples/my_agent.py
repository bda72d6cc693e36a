"""An agent of one's own: simulated annealing (Kirkpatrick et al. 1983) over the kept counts.

A worse policy is taken with probability exp(-loss of reward / temperature), and the temperature falls to 0.

Name it in a configuration, with its parameters:

    search: {agent: "examples/my_agent.py:Annealing", agent_params: {temperature: 0.05}}

and hold it to the promise in a test:

    class TestAnnealing(AgentContract):
        def make(self): return Annealing()
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.search import Study, unseen


@dataclass(frozen=True)
class Annealing:
    """Walk from the largest uniform policy to neighbours, at first also to worse ones."""

    temperature: float = 0.02

    def run(self, study: Study, seed: int) -> None:
        """Search until the evaluations are spent or no new policy is left."""
        rng = np.random.default_rng(seed)
        here = study.feasible.largest_uniform()
        kept: NDArray[np.int64] | None = here
        reward, start = -np.inf, study.remaining
        while study.remaining and kept is not None:
            [trial] = study.evaluate([study.network.policy(kept)])
            heat = self.temperature * study.remaining / start + 1e-9
            if trial.reward >= reward or rng.random() < np.exp((trial.reward - reward) / heat):
                here, reward = kept, trial.reward
            kept = unseen(study, here, rng)  # a new policy within the budget near `here`, None when all are known
