"""AMC's agent: exploration and replay against exact numbers, then learning, seeds and the promises of an agent."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.costs.compute import Macs
from amcsearch.costs.grid import CostGrid
from amcsearch.search.baselines import RandomSearch
from amcsearch.search.budget import FeasibleSet, resolve_budget
from amcsearch.search.reinforcement.ddpg import DDPG, _Run
from amcsearch.search.reinforcement.ddpg_learner import EpisodeReplay, one_thread, truncated_normal


def chain(*widths: int) -> NetworkSpec:
    """Linear layers one after another, 10 classes."""
    channels = [4, *widths, 10]
    layers = tuple(LayerSpec(f"l{i}", LayerKind.LINEAR, *channels[i : i + 2]) for i in range(len(channels) - 1))
    couplings = [(Coupling(f"l{i}", Side.OUT), Coupling(f"l{i + 1}", Side.IN)) for i in range(len(widths))]
    return NetworkSpec(layers, tuple(ChannelGroup(f"g{i}", n, couplings[i]) for i, n in enumerate(widths)))


class FakeStudy:
    """As ``Study``, in memory; ``stored`` policies are served without asking ``reward``."""

    def __init__(
        self,
        reward: Callable[[np.ndarray], float],
        *,
        widths: Sequence[int] = (16, 16, 16, 16),
        trials: int = 40,
        budget: str = "0.5x",
        multiple: int = 1,
        stored: dict[PruningPolicy, Trial] | None = None,
    ) -> None:
        self.network = chain(*widths)
        self.space = PolicySpace.on_grid(self.network.groups, multiple)
        self.grid = CostGrid(self.network, [Macs()])
        limits = resolve_budget({"macs": budget}, self.grid.cost(self.network.dense))
        self.feasible = FeasibleSet(self.space, self.grid, limits)
        self.objectives: tuple[str, ...] | None = None
        self.batch, self.ahead, self.total = 1, 1, trials
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.executed, self.under_way = 0, set[PruningPolicy]()
        self._reward, self._stored, self.served = reward, stored or {}, {}

    @property
    def remaining(self) -> int:
        return self.total - len(self.trials)

    def seen(self, policy: PruningPolicy) -> bool:
        return policy in self.served

    def evaluate(self, policies: Sequence[PruningPolicy], *, probe: bool = False) -> list[Trial]:
        for policy in policies:
            if policy not in self.served:
                assert self.remaining > 0
                assert self.feasible.contains(self.network.kept_array(policy)[None, :])[0]
                self.served[policy] = self._stored.get(policy) or self._execute(policy)
                self.trials.append(self.served[policy])
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        self.best = max(complete, key=lambda trial: trial.reward, default=None)
        return [self.served[policy] for policy in policies]

    def stream(self, policies: Iterable[PruningPolicy], at_once: int | None = None) -> Iterator[Trial]:
        drawn = iter(policies)
        while self.remaining and (policy := next(drawn, None)) is not None:
            yield from self.evaluate([policy])

    def _execute(self, policy: PruningPolicy) -> Trial:
        self.executed += 1
        reward = float(self._reward(self.network.kept_array(policy) / self.space.dense))
        state = TrialState.COMPLETE if math.isfinite(reward) else TrialState.FAILED
        return Trial(len(self.trials), "ddpg", 0, state, policy, Evaluation(0.5, 1.0, 0.0), Cost(), reward)


def additive(kept_ratio: np.ndarray) -> float:
    """Later groups are dearer to accuracy; the optimum under the budget is far from uniform."""
    harm = np.linspace(0.1, 1.0, len(kept_ratio)) @ (1.0 - kept_ratio) ** 2
    return float(math.exp(-harm / len(kept_ratio)))


FAST = DDPG(hidden=(32, 32), batch_size=16)


def box(n: int, low: float = 0.0) -> spaces.Box:
    return spaces.Box(low, 1.0, (n,), np.float32)


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.5), (0.0, 0.5), (1.0, 0.2), (0.3, 0.05), (0.9, 2.0), (0.0, 1e-9)])
def test_truncated_normal_has_scipys_distribution(mean, sigma):
    rng = np.random.default_rng(0)
    draws = np.array([truncated_normal(mean, sigma, rng) for _ in range(4000)])
    assert draws.min() >= 0.0
    assert draws.max() <= 1.0
    exact = stats.truncnorm(-mean / sigma, (1.0 - mean) / sigma, loc=mean, scale=sigma)
    assert draws.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / math.sqrt(4000))
    assert draws.std() == pytest.approx(exact.std(), rel=0.06)
    assert stats.kstest(draws, exact.cdf).pvalue > 1e-3


def test_truncated_normal_without_noise_is_the_mean():
    assert truncated_normal(0.25, 0.0, np.random.default_rng(0)) == 0.25


def replay_of(rewards: Sequence[float], steps: int, capacity: int, decay: float = 0.5) -> EpisodeReplay:
    """Episodes whose observations are (episode, step)."""
    replay = EpisodeReplay(capacity, box(2), box(1), rng=np.random.default_rng(1), baseline_decay=decay)
    for episode, reward in enumerate(rewards):
        seen = [np.array([episode, t], dtype=np.float32) for t in range(steps + 1)]
        replay.add_episode(seen, [np.array([t / steps], dtype=np.float32) for t in range(steps)], reward)
    return replay


def test_replay_draws_every_step_of_every_episode_equally_often():
    steps, episodes = 7, 5
    replay = replay_of([1.0] * episodes, steps, capacity=100)
    batches = [replay.sample(64) for _ in range(500)]
    seen = torch.cat([batch.observations for batch in batches]).numpy().astype(int)
    counts = np.bincount(seen[:, 0] * steps + seen[:, 1], minlength=steps * episodes)
    assert counts.min() > 0
    assert len(counts) == steps * episodes
    assert stats.chisquare(counts).pvalue > 1e-3


def test_replay_keeps_each_transition_whole():
    replay = replay_of([3.0, 5.0], steps=4, capacity=100)
    batch = replay.sample(256)
    observed, following = batch.observations.numpy(), batch.next_observations.numpy()
    assert np.array_equal(following - observed, np.tile([0.0, 1.0], (256, 1)))
    assert np.allclose(batch.actions.numpy()[:, 0], observed[:, 1] / 4)
    assert np.array_equal(batch.dones.numpy()[:, 0] == 1.0, observed[:, 1] == 3)
    assert set(observed[:, 1]) == {0.0, 1.0, 2.0, 3.0}


def test_every_transition_carries_the_final_reward_minus_the_baseline():
    replay = replay_of([3.0, 5.0], steps=4, capacity=100)
    expected = None
    for _ in range(5):
        batch = replay.sample(32)
        final = np.where(batch.observations.numpy()[:, 0] == 0, 3.0, 5.0)
        expected = final.mean() if expected is None else 0.5 * expected + 0.5 * final.mean()
        assert replay.baseline == pytest.approx(expected)
        assert np.allclose(batch.rewards.numpy()[:, 0], final - expected, atol=1e-6)


def test_replay_forgets_the_oldest_episode_first():
    replay = replay_of([0.0, 1.0, 2.0], steps=4, capacity=8)
    assert set(replay.sample(256).observations.numpy()[:, 0]) == {1.0, 2.0}


def test_networks_and_rates_are_amcs():
    run = _Run(DDPG(), FakeStudy(additive), seed=0)
    for network, n_in, n_out in (
        (run.learner.actor.mu, len(run.env.observation_space.low), 1),
        (run.learner.critic.q_networks[0], len(run.env.observation_space.low) + 1, 1),
    ):
        widths = [(m.in_features, m.out_features) for m in network if isinstance(m, torch.nn.Linear)]
        assert widths == [(n_in, 300), (300, 300), (300, n_out)]
    assert len(run.learner.critic.q_networks) == 1
    assert (run.learner.gamma, run.learner.tau) == (1.0, 0.01)
    assert run.replay.buffer_size == 100 * 4
    assert run.learner.replay_buffer is run.replay
    run.replay.add_episode(*run._played(run._drawn(None)))
    run.learner.train(gradient_steps=1, batch_size=64)
    rates = [opt.param_groups[0]["lr"] for opt in (run.learner.actor.optimizer, run.learner.critic.optimizer)]
    assert rates == [1e-4, 1e-3]


def test_critic_target_is_reward_minus_baseline_plus_undiscounted_next_value():
    """One gradient step's loss, worked from the networks: baseline 4 after one batch of the rewards 3 and 5."""
    run = _Run(FAST, FakeStudy(additive), seed=0)
    run.replay.add_episode(*run._played(run._drawn(None))[:2], 3.0)
    run.replay.add_episode(*run._played(run._drawn(None))[:2], 5.0)
    drawn = np.random.default_rng([0, 1]).integers(0, 8, 16)  # what the replay is about to draw
    tensors = [torch.from_numpy(a[drawn, 0]) for a in (run.replay.observations, run.replay.next_observations)]
    actions, done = torch.from_numpy(run.replay.actions[drawn, 0]), torch.from_numpy(run.replay.dones[drawn])
    final = torch.from_numpy(run.replay.rewards[drawn])
    with torch.no_grad():
        after = run.learner.critic_target(tensors[1], run.learner.actor_target(tensors[1]))[0]
        target = final - final.mean() + (1 - done) * after
        loss = ((run.learner.critic(tensors[0], actions)[0] - target) ** 2).mean()
    run.learner.train(gradient_steps=1, batch_size=16)
    assert run.learner.logger.name_to_value["train/critic_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_replay_stores_the_executed_action_in_the_learners_scale():
    run = _Run(FAST, FakeStudy(additive, multiple=8, budget="0.5x"), seed=0)
    observations, actions, _ = run._played(run._drawn(None))
    kept = run.study.network.kept_array(run.study.trials[0].policy)
    assert np.allclose(np.concatenate(actions), 2.0 * (1.0 - kept / 16) - 1.0)
    assert len(observations) == len(actions) + 1


def test_an_episode_is_the_environments_under_the_executed_actions():
    """The environment, stepped with the actions the replay stored, sees the same and ends with the same policy."""
    run = _Run(DDPG(hidden=(8, 8), best_share=0.3), FakeStudy(additive, widths=(32, 24, 20), multiple=4), seed=0)
    for sigma in (None, None, 0.5, 0.5, 0.5, 0.1):
        observations, actions, reward = run._played(run._drawn(sigma))
        observation, _ = run.env.reset()
        for seen_by_agent, action in zip(observations, actions, strict=False):
            assert np.array_equal(observation, seen_by_agent)
            ratio = run.learner.policy.unscale_action(action)
            observation, final, _, _, info = run.env.step(ratio)
            assert info["action"] == pytest.approx(ratio, abs=1e-6)
        assert np.array_equal(observation, observations[-1])
        assert final == reward
        assert info["policy"] in run.study.served


def test_a_feasible_policy_is_evaluated_though_the_bound_would_not_lead_to_it(monkeypatch):
    """Where no known completion reaches a policy, AMC's bound group by group would evaluate another."""
    study = FakeStudy(additive, widths=(8, 8), budget="1x")
    run = _Run(DDPG(hidden=(8, 8)), study, seed=0)
    monkeypatch.setattr(run, "feasible_draws", iter([np.array([4, 4])]))
    monkeypatch.setattr(study.feasible, "allowed", lambda prefix: np.arange(1, 9) == 8)
    _, actions, _ = run._played(run._drawn(None))
    assert study.network.kept_array(study.trials[0].policy).tolist() == [4, 4]
    assert np.concatenate(actions).tolist() == [0.0, 0.0]  # half removed, in [-1, 1]


def squeezed(study: FakeStudy, agent: DDPG | RandomSearch) -> float:
    """Mean kept share of the last group over a search's policies."""
    agent.run(study, 0)
    return float(np.mean([study.network.kept_array(policy)[-1] / 32 for policy in policies(study)]))


def test_the_warm_up_is_random_searchs_and_does_not_squeeze_the_last_groups():
    studies = [FakeStudy(additive, widths=(32,) * 8, multiple=8, trials=60) for _ in range(2)]
    warm_up = DDPG(warm_up_share=1.0, hidden=(8, 8))
    assert squeezed(studies[0], warm_up) == pytest.approx(squeezed(studies[1], RandomSearch()), abs=0.1)


def test_the_warm_up_goes_on_where_rejection_finds_no_feasible_policy(monkeypatch):
    monkeypatch.setattr(sys.modules[DDPG.__module__], "random_policies", lambda study, rng: None)
    study = FakeStudy(additive, trials=12)
    DDPG(warm_up_share=1.0, hidden=(8, 8)).run(study, 0)
    assert len(study.trials) == 12


def test_every_second_episode_explores_around_the_best_policy(monkeypatch):
    run = _Run(FAST, FakeStudy(additive), seed=0)
    run._played(run._drawn(None))
    best = run.study.best.policy
    asked = []
    monkeypatch.setattr(run.learner, "pruning_ratio", lambda seen: asked.append(len(asked)) or 0.0)
    played = []
    monkeypatch.setattr(run, "_evaluate", lambda policy: played.append(policy) or 0.0)
    for _ in range(4):
        before = len(asked)
        run._played(run._drawn(0.0))
        assert len(asked) - before == (4 if len(played) % 2 else 0)  # the actor is asked for each group, or never
    assert played[1] == played[3] == best  # without noise it is the best policy itself


def test_what_the_actor_proposes_is_brought_within_the_budget_as_a_whole(monkeypatch):
    """An actor that prunes nothing is repaired towards dense evenly; the bound alone would empty the last groups."""
    run = _Run(DDPG(hidden=(8, 8), best_share=0.0), FakeStudy(additive, widths=(32,) * 6), seed=0)
    monkeypatch.setattr(run.learner, "pruning_ratio", lambda seen: 0.0)
    _, actions, _ = run._played(run._drawn(0.0))
    ratios = (np.concatenate(actions) + 1.0) / 2.0
    kept = run.study.network.kept_array(run.study.trials[0].policy)
    assert np.allclose(ratios, 1.0 - kept / 32, atol=1e-6)
    assert np.array_equal(kept, run.study.feasible.repair(run.study.space.dense))
    assert kept.min() > 16


def test_noise_starts_after_the_warm_up_and_decays_each_new_episode(monkeypatch):
    study, sigmas = FakeStudy(additive, trials=12), []
    original = _Run._drawn

    def record(self, sigma):
        sigmas.append(sigma)
        return original(self, sigma)

    monkeypatch.setattr(_Run, "_drawn", record)
    DDPG(hidden=(8, 8), warm_up_share=0.5).run(study, 0)
    assert sigmas[:6] == [None] * 6
    assert sigmas[6:] == pytest.approx([0.5 * 0.95**k for k in range(6)])


def test_one_gradient_step_a_transition_after_the_warm_up():
    run = _Run(DDPG(hidden=(8, 8), warm_up_share=0.5), FakeStudy(additive, trials=10), seed=0)
    run.until_settled()
    assert run.learner._n_updates == 5 * 4


@pytest.mark.slow
def test_it_beats_random_search_at_equal_evaluations():
    """Mean regret over seeds on an additive reward whose optimum is found by trying all 4^8 policies."""
    regret = {}
    for name, agent in (("ddpg", DDPG()), ("uniform episodes", DDPG(warm_up_share=1.0)), ("random", RandomSearch())):
        studies = [FakeStudy(additive, widths=(32,) * 8, multiple=8, trials=100) for _ in range(3)]
        for seed, study in enumerate(studies):
            agent.run(study, seed)
            assert study.remaining == 0
        regret[name] = optimum_of(studies[0]) - np.mean([study.best.reward for study in studies])
    assert 0.0 <= regret["ddpg"] < 0.75 * min(regret["random"], regret["uniform episodes"])


def optimum_of(study: FakeStudy) -> float:
    every = np.stack(np.meshgrid(*study.space.choices, indexing="ij"), axis=-1).reshape(-1, len(study.space.groups))
    inside = every[study.feasible.contains(every)] / study.space.dense
    harm = (1.0 - inside) ** 2 @ np.linspace(0.1, 1.0, inside.shape[1])
    return float(np.exp(-harm.min() / inside.shape[1]))


def policies(study: FakeStudy) -> list[PruningPolicy]:
    return [trial.policy for trial in study.trials]


def test_a_seed_gives_the_same_policies_and_another_seed_others():
    runs = [FakeStudy(additive) for _ in range(3)]
    for study, seed in zip(runs, (0, 0, 1), strict=True):
        FAST.run(study, seed)
        np.random.seed(1)  # noqa: NPY002 (whatever the caller does to global generators must not matter)
        torch.manual_seed(1)
    assert policies(runs[0]) == policies(runs[1]) != policies(runs[2])


def test_replaying_a_killed_run_executes_only_what_was_lost():
    whole = FakeStudy(additive)
    FAST.run(whole, 3)
    resumed = FakeStudy(additive, stored={trial.policy: trial for trial in whole.trials[:25]})
    FAST.run(resumed, 3)
    assert policies(resumed) == policies(whole)
    assert resumed.executed == 40 - 25


def test_the_callers_generators_and_threads_are_left_alone():
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    FAST.run(FakeStudy(additive, trials=12), 0)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_one_thread_inside_and_the_callers_threads_after_an_error():
    threads = torch.get_num_threads()
    with one_thread(0):
        assert torch.get_num_threads() == 1
    with pytest.raises(KeyError), one_thread(0):
        raise KeyError
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("trials", [6, 50])
def test_a_space_smaller_than_the_trials_is_spent_and_the_search_returns(trials):
    study = FakeStudy(additive, widths=(4, 4), multiple=2, budget="1x", trials=trials)
    DDPG(hidden=(8, 8), max_free_episodes=5).run(study, 0)
    assert len(study.trials) == 4  # 2 x 2 policies


def test_failed_evaluations_do_not_stop_the_search():
    def fragile(kept_ratio: np.ndarray) -> float:
        return -math.inf if kept_ratio[0] < 0.5 else additive(kept_ratio)

    study = FakeStudy(fragile, trials=24)
    FAST.run(study, 0)
    assert study.remaining == 0
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.FAILED}
    broken = FakeStudy(lambda _: -math.inf, trials=12)
    FAST.run(broken, 0)
    assert broken.remaining == 0


def test_what_it_cannot_do_is_said():
    study = FakeStudy(additive)
    study.objectives = ("accuracy", "macs")
    with pytest.raises(BadInputError, match="agent ddpg optimises one reward, not accuracy, macs"):
        FAST.run(study, 0)
    with pytest.raises(BadInputError, match="0 channel groups"):
        FAST.run(FakeStudy(additive, widths=(), budget="1x"), 0)


@pytest.mark.parametrize(
    "setting",
    [
        {"warm_up_share": 1.5},
        {"best_share": -0.5},
        {"sigma": 0.0},
        {"batch_size": 0},
        {"tau": -0.1},
        {"actor_learning_rate": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_named(setting):
    (name,) = setting
    with pytest.raises(BadInputError, match=f"ddpg: {name} = .*must be"):
        DDPG(**setting)


def test_the_replay_begins_with_what_was_evaluated_before() -> None:
    study = FakeStudy(lambda kept: float(kept.mean()))
    rows = [study.feasible.largest_uniform(), study.space.floor]
    study.evaluate([study.network.policy(kept) for kept in rows])
    run = _Run(DDPG(), study, 0)
    groups = len(study.network.groups)
    assert run.replay.size() == 2 * groups
    executed = (run.replay.actions[: 2 * groups].reshape(2, groups) + 1.0) / 2.0  # from [-1, 1] to pruning ratios
    np.testing.assert_allclose(executed, 1.0 - np.array(rows) / study.space.dense, atol=1e-6)
    assert study.executed == 2
