"""Environment of the layer-wise search: one step a channel group, the action is how much of it to prune.

After AMC (He et al., 2018, arXiv 1802.03494), with whole coupled groups in place of layers, pruning ratios in place of
keep ratios, and the feasible range of ``FeasibleSet`` in place of its one-cost action bound.

Registered with gymnasium when ``amcsearch.search`` is imported:

    gymnasium.make("amcsearch/Layerwise-v0", network=network, feasible=feasible, episode_reward=reward)
"""

from collections.abc import Callable
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy
from amcsearch.search.budget import FeasibleSet
from amcsearch.search.reinforcement.observation import FEATURES, Observer

__all__ = ["LayerwiseEnv"]

_ID: Final = "amcsearch/Layerwise-v0"

Observation = NDArray[np.float32]
Info = dict[str, Any]  # gymnasium's type


class LayerwiseEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One episode makes one policy; every policy it makes is within the budget.

    - Observation: ``observation.FEATURES``, float32 in [0, 1].
    - Action: float32 (1,) in [0, 1], the share of the group's channels to remove. What is executed is the nearest
      kept count from which the budget can still be met; ``info["action"]`` (1,) is the pruning ratio it amounts to.
    - Reward: 0 before the last step, then ``episode_reward(policy)``; ``info["policy"]`` is the policy.

    Nothing in it is random: a seed given to ``reset`` only seeds what gymnasium keeps for its wrappers.

    Args:
        network: the network to prune.
        feasible: its policies within the budget.
        episode_reward: evaluates a finished policy, larger is better.

    Raises:
        BadInputError: the network has no channel group to decide on.
    """

    def __init__(
        self,
        network: NetworkSpec,
        feasible: FeasibleSet,
        episode_reward: Callable[[PruningPolicy], float],
    ) -> None:
        if not network.groups:
            raise BadInputError("the network has 0 channel groups, at least 1 is needed; see what the trace skipped")
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.network, self.feasible, self.episode_reward = network, feasible, episode_reward
        self._observer = Observer(network, feasible)
        self._kept = np.zeros(0, dtype=np.int64)  # (g,), decided so far

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin at the first group with nothing decided."""
        super().reset(seed=seed, options=options)
        self._kept = np.zeros(0, dtype=np.int64)
        return self._observer.observe(self._kept, 0.0), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Decide the next group.

        Raises:
            ValueError: the action is not a number, or the episode is over.
        """
        g, ratio = len(self._kept), float(np.asarray(action).reshape(-1)[0])
        if g == len(self.network.groups):
            raise ValueError("the episode is over; call reset")
        if not np.isfinite(ratio):
            raise ValueError(f"action = {ratio}, must be a pruning ratio in [0, 1]")
        n_keep = self.feasible.nearest_allowed(self._kept, ratio)
        executed = 1.0 - n_keep / self.network.groups[g].channels
        self._kept = np.append(self._kept, n_keep)
        done = len(self._kept) == len(self.network.groups)
        info: Info = {"action": np.array([executed], dtype=np.float32)}
        reward = 0.0
        if done:
            info["policy"] = self.network.policy(self._kept)
            reward = float(self.episode_reward(info["policy"]))
        return self._observer.observe(self._kept, executed), reward, done, False, info


if _ID not in gymnasium.registry:
    gymnasium.register(_ID, entry_point=f"{__name__}:{LayerwiseEnv.__name__}")
