"""The learning half of ``ddpg``: stable-baselines3's DDPG with AMC's replay, baseline and two learning rates.

What is AMC's (He et al., 2018, arXiv 1802.03494, and its code) and not the library's:

- every transition of an episode carries the episode's final reward;
- a moving average of the rewards drawn is subtracted when a batch is drawn, so old and new transitions are always
  measured against one baseline: y = r - b + γ·(1 - done)·Q'(s', μ'(s'));
- actor and critic have learning rates of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Final

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import ddpg
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize

__all__ = ["EpisodeReplay", "Learner", "one_thread", "truncated_normal"]

_STANDARD_NORMAL: Final = NormalDist()

Features = NDArray[np.float32]


def truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """One draw of a normal distribution cut to [0, 1], by inverting its distribution function.

    Args:
        mean: of the uncut normal, in [0, 1].
        sigma: its standard deviation; 0 gives the mean.
        rng: source of the one uniform number used.
    """
    uniform = rng.random()
    if sigma <= 0.0:
        return mean
    low, high = _STANDARD_NORMAL.cdf(-mean / sigma), _STANDARD_NORMAL.cdf((1.0 - mean) / sigma)
    # the ends of the range are outside inv_cdf's domain when the cut is many sigma away
    share = min(max(low + uniform * (high - low), 1e-16), 1.0 - 1e-16)
    return min(max(mean + sigma * _STANDARD_NORMAL.inv_cdf(share), 0.0), 1.0)


@contextmanager
def one_thread(seed: int | None = None) -> Iterator[None]:
    """Run torch on one thread (the same sums in the same order), leaving the caller's threads and generator alone.

    With ``seed``, torch's CPU generator starts from it inside.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class EpisodeReplay(ReplayBuffer):
    """Replay of whole episodes; draws transitions uniformly, from a generator of its own.

    Args:
        buffer_size: transitions held; the oldest leave first.
        observation_space: the environment's.
        action_space: the environment's.
        rng: source of the draws.
        baseline_decay: weight of the old baseline in the moving average.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Features],
        action_space: spaces.Space[Features],
        *,
        rng: np.random.Generator,
        baseline_decay: float,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device="cpu")
        self.baseline: float | None = None
        self._rng, self._baseline_decay = rng, baseline_decay

    def add_episode(self, observations: list[Features], actions: list[Features], reward: float) -> None:
        """Store one episode.

        Args:
            observations: T + 1 of (F,), the last one seen after the end.
            actions: T of (1,), in the library's scale [-1, 1].
            reward: the episode's, written on each of the T transitions.
        """
        for t, action in enumerate(actions):
            done = np.array([t == len(actions) - 1])
            self.add(observations[t], observations[t + 1], action, np.array([reward]), done, [{}])

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:  # noqa: ARG002 (theirs)
        """Draw ``batch_size`` transitions with replacement; rewards are final reward minus baseline."""
        drawn = self._rng.integers(0, self.size(), batch_size)
        rewards = self.rewards[drawn]  # (B, 1)
        mean = float(rewards.mean())
        decay = self._baseline_decay
        self.baseline = mean if self.baseline is None else decay * self.baseline + (1.0 - decay) * mean
        arrays = (
            *(self.observations[drawn, 0], self.actions[drawn, 0], self.next_observations[drawn, 0]),
            *(self.dones[drawn], rewards - np.float32(self.baseline)),
        )
        return ReplayBufferSamples(*(self.to_torch(array) for array in arrays))


class Learner(ddpg.DDPG):
    """stable-baselines3's DDPG with a learning rate for the actor and one for the critic; it never steps the env.

    The library seeds every global generator when given a seed, so it is given none: build it inside ``one_thread``.
    """

    def __init__(
        self,
        env: gymnasium.Env[Features, Features],
        replay: EpisodeReplay,
        *,
        hidden: tuple[int, ...],
        actor_learning_rate: float,
        critic_learning_rate: float,
        tau: float,
        discount: float,
    ) -> None:
        self._rates = (actor_learning_rate, critic_learning_rate)
        super().__init__(
            "MlpPolicy",
            env,
            learning_rate=critic_learning_rate,
            buffer_size=1,  # replaced below
            tau=tau,
            gamma=discount,
            policy_kwargs={"net_arch": {"pi": list(hidden), "qf": list(hidden)}},
            device="cpu",
        )
        self.replay_buffer = replay
        self.set_logger(Logger(folder=None, output_formats=[]))
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Set both rates; the library calls this with [actor's, critic's] before it trains."""
        assert isinstance(optimizers, list)
        for optimizer, rate in zip(optimizers, self._rates, strict=True):
            update_learning_rate(optimizer, rate)

    def pruning_ratio(self, observation: Features) -> float:
        """Return what the actor would do without noise, in [0, 1]."""
        action, _ = self.predict(observation, deterministic=True)
        return float(action[0])
