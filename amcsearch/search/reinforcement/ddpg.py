"""AMC's agent: deep deterministic policy gradient over the groups of one network, one episode a policy.

He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", 2018, arXiv 1802.03494, with the
details of its published code. An episode decides every group in turn; its policy is evaluated once, at the end.

    warm-up:     uniform, among policies within the budget
    afterwards:  a ~ N(μ(s), σ²) cut to [0, 1],  σ = 0.5 · 0.95^k,  k = episodes since the warm-up
    then:        one gradient step for each of the episode's transitions, γ = 1

The replay stores the action the budget allowed, not the one proposed. Where we depart:

- The warm-up is a share of the trials (AMC: 100 of 400 to 800 episodes), and draws whole feasible policies as random
  search does (``local_search.random_policies``). AMC bounds uniform actions group by group. The first groups then keep
  many channels and the last ones the fewest allowed, so the replay is filled with bad policies. AMC's way is used only
  where rejection finds no feasible policy.
- For the same reason the episode's actions are all proposed first, without the bound, and then brought within the
  budget together (``FeasibleSet.repair``). Each proposed ratio is rounded once, to a kept count. The repaired counts
  are the policy that is evaluated, and the observations and actions that the replay stores are computed from them.
- AMC's episodes all explore around the actor. Here every second one (``best_share``) explores around the best policy so
  far, μ(s) being its pruning ratio, with the same noise. All episodes train the one actor, and one gradient step
  a transition changes it little within a few hundred episodes. The actor alone finds nearly as good policies, a little
  less reliably. Khadka and Tumer, 2018, arXiv 1805.07917, feed the replay from a population.
- A repeated policy costs no evaluation, but its episode trains the agent. Each such episode undoes one decay of σ, so
  an agent that repeats itself while evaluations remain explores more widely again.
- After ``max_free_episodes`` such episodes in a row the remaining evaluations go to neighbours of the best policy
  (``local_search.climb``).
- ``search.batch`` episodes are explored with one actor and one σ and evaluated side by side, and then learnt in order.
- An evaluation that failed (no finite loss) is learnt as the worst reward so far.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.search.local_search import climb, random_policies
from amcsearch.search.reinforcement.ddpg_learner import EpisodeReplay, Features, Learner, one_thread, truncated_normal
from amcsearch.search.reinforcement.environment import LayerwiseEnv
from amcsearch.search.reinforcement.observation import Observer
from amcsearch.search.study import Study

__all__ = ["DDPG"]


@dataclass(frozen=True)
class DDPG:
    """The agent's settings; the defaults are AMC's, but for ``warm_up_share`` and ``best_share``.

    Raises:
        BadInputError: a setting out of its range.
    """

    warm_up_share: float = 0.25  # of the trials, uniform
    best_share: float = 0.5  # of the later episodes, around the best policy so far instead of the actor's
    sigma: float = 0.5
    sigma_decay: float = 0.95  # an episode
    discount: float = 1.0
    baseline_decay: float = 0.5
    hidden: tuple[int, ...] = (300, 300)  # actor and critic alike
    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    batch_size: int = 64
    tau: float = 0.01
    replay_episodes: int = 100
    updates_per_transition: int = 1
    max_free_episodes: int = 100

    def __post_init__(self) -> None:
        for name in ("warm_up_share", "best_share", "sigma_decay", "discount", "baseline_decay", "tau"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInputError(f"ddpg: {name} = {getattr(self, name)}, must be in [0, 1]")
        for name in ("sigma", "actor_learning_rate", "critic_learning_rate"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise BadInputError(f"ddpg: {name} = {getattr(self, name)}, must be a positive number")
        for name in ("batch_size", "replay_episodes", "updates_per_transition", "max_free_episodes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"ddpg: {name} = {getattr(self, name)}, must be at least 1")

    def run(self, study: Study, seed: int) -> None:
        """Search until no evaluation remains or no new policy is left.

        Raises:
            BadInputError: the network has no channel groups, or the study has several objectives.
        """
        if study.objectives and len(study.objectives) > 1:
            raise BadInputError(
                f"agent ddpg optimises one reward, not {', '.join(study.objectives)}; "
                "set search.objectives to null, or choose nsga2, tpe or gp"
            )
        _Run(self, study, seed).until_settled()
        climb(study, np.random.default_rng([seed, 2]))


@dataclass(frozen=True)
class _Episode:
    """Kept counts (G,) that an episode leads to, its noise (None: drawn at random), and whether no other led there."""

    kept: NDArray[np.int64]
    sigma: float | None
    is_new: bool


class _Run:
    """One search: the environment, what was learnt, and the counters of the exploration."""

    def __init__(self, settings: DDPG, study: Study, seed: int) -> None:
        self.settings, self.study = settings, study
        self.explore, draws = (np.random.default_rng([seed, stream]) for stream in range(2))
        self.env = LayerwiseEnv(study.network, study.feasible, self._evaluate)
        self.observer = Observer(study.network, study.feasible)
        self.feasible_draws = self._feasible_draws()
        self.replay = EpisodeReplay(
            settings.replay_episodes * len(study.network.groups),
            self.env.observation_space,
            self.env.action_space,
            rng=draws,
            baseline_decay=settings.baseline_decay,
        )
        with one_thread(seed):
            self.learner = Learner(
                self.env,
                self.replay,
                hidden=settings.hidden,
                actor_learning_rate=settings.actor_learning_rate,
                critic_learning_rate=settings.critic_learning_rate,
                tau=settings.tau,
                discount=settings.discount,
            )
        self.warm_up = max(1, round(settings.warm_up_share * study.remaining))  # new policies to try at random
        self.evaluated = 0  # new policies
        self.guided = 0  # episodes since the warm-up
        self.decays = 0  # episodes whose noise counts as spent
        self.free = 0  # episodes in a row that brought nothing new
        self.worst = math.inf  # lowest finite reward so far
        for trial in list(study.trials):  # what was evaluated before the first episode
            if trial.is_informative:
                self._learn(*self._played(study.network.kept_array(trial.policy)), train=False)

    def until_settled(self) -> None:
        """Episodes until nothing remains or nothing new comes up."""
        while self.study.remaining and self.free < self.settings.max_free_episodes:
            for episode in self._proposed(min(self.study.batch, self.study.remaining)):
                self._learn(*self._played(episode.kept), train=episode.sigma is not None)
                self.free = 0 if episode.is_new else self.free + 1
                if episode.sigma is not None:
                    self.decays = self.decays + 1 if episode.is_new else max(0, self.decays - 1)

    def _proposed(self, count: int) -> list[_Episode]:
        """Explore ``count`` episodes with one actor, and evaluate their policies side by side."""
        episodes: list[_Episode] = []
        new: dict[PruningPolicy, None] = {}
        for _ in range(count):
            is_warm_up = self.evaluated + len(new) < self.warm_up
            sigma = None if is_warm_up else self.settings.sigma * self.settings.sigma_decay**self.decays
            kept = self._drawn(sigma)
            policy = self.study.network.policy(kept)
            is_new = not self.study.seen(policy) and policy not in new
            if is_new:
                new[policy] = None
            episodes.append(_Episode(kept, sigma, is_new))
        self.study.evaluate(list(new))
        self.evaluated += len(new)
        return episodes

    def _evaluate(self, policy: PruningPolicy) -> float:
        """Reward of a finished episode, through the only door."""
        (trial,) = self.study.evaluate([policy])
        if math.isfinite(trial.reward):
            self.worst = min(self.worst, trial.reward)
            return trial.reward
        return self.worst

    def _played(self, kept: NDArray[np.int64]) -> tuple[list[Features], list[Features], float]:
        """The episode that leads to kept counts (G,): observations (T + 1), executed actions (T), reward."""
        observations = list(self.observer.episode(kept))
        ratios = (1.0 - kept / self.study.space.dense).astype(np.float32)
        actions = [self.learner.policy.scale_action(ratio) for ratio in ratios[:, None]]  # [0, 1] -> [-1, 1]
        return observations, actions, self._evaluate(self.study.network.policy(kept))

    def _uniform(self) -> NDArray[np.int64]:
        """Kept counts (G,) of a random feasible policy; by AMC's bound of each action where none can be drawn."""
        drawn = next(self.feasible_draws, None)
        if drawn is not None:
            return drawn
        kept = np.zeros(0, dtype=np.int64)
        for ratio in self.explore.random(len(self.study.network.groups)):
            kept = np.append(kept, self.study.feasible.nearest_allowed(kept, ratio))
        return kept

    def _feasible_draws(self) -> Iterator[NDArray[np.int64]]:
        """Random feasible policies (G,), until rejection finds none."""
        while (rows := random_policies(self.study, self.explore)) is not None:
            yield from rows

    def _drawn(self, sigma: float | None) -> NDArray[np.int64]:
        """Kept counts (G,) of an episode with this noise; None is uniform."""
        return self._uniform() if sigma is None else self._explored(sigma)

    def _explored(self, sigma: float) -> NDArray[np.int64]:
        """Kept counts (G,) around the actor's or the best policy's, repaired into the budget."""
        share = self.settings.best_share
        around_best = math.floor((self.guided + 1) * share) > math.floor(self.guided * share)
        self.guided += 1
        space, kept, executed = self.study.space, np.zeros(0, dtype=np.int64), 0.0
        best = self.study.best if around_best else None
        centre = None if best is None else 1.0 - self.study.network.kept_array(best.policy) / space.dense
        with one_thread():
            for g in range(len(space.choices)):
                if centre is None:
                    mean = self.learner.pruning_ratio(self.observer.observe(kept, executed))
                else:
                    mean = float(centre[g])
                ratio = truncated_normal(mean, sigma, self.explore)
                n_keep = space.nearest_choice(g, ratio)
                kept, executed = np.append(kept, n_keep), 1.0 - n_keep / space.dense[g]
        return self.study.feasible.repair(kept)

    def _learn(self, observations: list[Features], actions: list[Features], reward: float, *, train: bool) -> None:
        """Store the episode, then one gradient step a transition."""
        if not math.isfinite(reward):
            return  # failed before anything succeeded: nothing to compare with
        self.replay.add_episode(observations, actions, reward)
        if train:
            with one_thread():
                steps = self.settings.updates_per_transition * len(actions)
                self.learner.train(gradient_steps=steps, batch_size=self.settings.batch_size)
