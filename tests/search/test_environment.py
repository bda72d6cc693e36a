"""The episode: what is executed, what is rewarded, both checkers, and no episode over budget."""

import warnings

import gymnasium
import numpy as np
import pytest
import stable_baselines3
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_of_stable_baselines3

from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.search.budget import FeasibleSet, resolve_budget
from amcsearch.search.reinforcement.environment import LayerwiseEnv


class Staircase:
    """A cost that wide-but-aligned layers win: widths off the grid are computed as if far wider."""

    constant = 3.0

    def __init__(self, name: str, grid: int, penalty: float) -> None:
        self.name, self.grid, self.penalty = name, grid, penalty

    def layer_cost(self, layer: LayerSpec) -> float:
        off = (layer.in_channels % self.grid != 0) + (layer.out_channels % self.grid != 0)
        return layer.in_channels * layer.out_channels * (1.0 + self.penalty * off)


def chain(widths) -> NetworkSpec:
    channels = [4, *widths, 8]
    layers = tuple(LayerSpec(f"l{i}", LayerKind.LINEAR, *channels[i : i + 2]) for i in range(len(channels) - 1))
    couplings = [(Coupling(f"l{i}", Side.OUT), Coupling(f"l{i + 1}", Side.IN)) for i in range(len(widths))]
    return NetworkSpec(layers, tuple(ChannelGroup(f"g{i}", n, couplings[i]) for i, n in enumerate(widths)))


def make_env(widths=(8, 8, 8), budget=None, multiple=1, models=(), reward=lambda policy: float(sum(policy.values()))):
    network = chain(widths)
    space = PolicySpace.on_grid(network.groups, multiple)
    grid = CostGrid(network, [Macs(), Params(), *models])
    limits = resolve_budget({"macs": "0.5x"} if budget is None else budget, grid.cost(network.dense))
    return LayerwiseEnv(network, FeasibleSet(space, grid, limits), reward)


def play(env: LayerwiseEnv, ratios):
    env.reset()
    return [env.step(np.array([ratio], dtype=np.float32)) for ratio in ratios]


def test_an_episode_by_hand():
    steps = play(make_env(budget={"macs": "1x"}), (0.5, 0.0, 0.74))
    assert [step[4]["action"].tolist() for step in steps] == [[0.5], [0.0], [0.75]]
    assert [step[1] for step in steps] == [0.0, 0.0, 4.0 + 8.0 + 2.0]
    assert [step[2] for step in steps] == [False, False, True]
    assert steps[-1][4]["policy"] == PruningPolicy({"g0": 4, "g1": 8, "g2": 2})


def test_an_action_beyond_the_budget_becomes_the_nearest_allowed():
    # 8·(4 + 8 + 8 + 8) = 224 dense, half is 112; keeping 8 and 8 costs 32 + 64, and a third width n costs 16 n more
    steps = play(make_env(), (0.0, 0.0, 0.0))
    assert [step[4]["action"].tolist() for step in steps] == [[0.0], [0.0], [0.875]]
    assert steps[-1][4]["policy"] == PruningPolicy({"g0": 8, "g1": 8, "g2": 1})


def test_kept_counts_stay_on_the_device_grid():
    steps = play(make_env(multiple=4, budget={"macs": "1x"}), (0.3, 0.2, 1.0))
    assert steps[-1][4]["policy"] == PruningPolicy({"g0": 4, "g1": 8, "g2": 4})


@pytest.mark.parametrize("check", [check_env, check_env_of_stable_baselines3])
def test_it_passes_the_checkers(check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both advise actions in [-1, 1]; a pruning ratio is a share
        check(make_env())


def test_gymnasium_makes_it_by_its_name():
    known = make_env()
    kwargs = {"network": known.network, "feasible": known.feasible, "episode_reward": known.episode_reward}
    made = gymnasium.make("amcsearch/Layerwise-v0", **kwargs)
    assert isinstance(made.unwrapped, LayerwiseEnv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        check_env(made.unwrapped)
    made.reset(seed=0)
    for ratio in (0.0, 0.0):
        made.step(np.array([ratio], dtype=np.float32))
    _, reward, done, _, info = made.step(np.array([0.0], dtype=np.float32))
    assert done
    assert reward == 8.0 + 8.0 + 1.0
    assert info["policy"] == PruningPolicy({"g0": 8, "g1": 8, "g2": 1})


BATCHES = {
    stable_baselines3.DDPG: {"learning_starts": 50, "batch_size": 16, "train_freq": 4},
    stable_baselines3.PPO: {"n_steps": 64, "batch_size": 32, "n_epochs": 2},
    stable_baselines3.A2C: {},
}


@pytest.mark.parametrize("algorithm", BATCHES, ids=lambda algorithm: algorithm.__name__)
def test_agents_of_another_library_train_on_it(synthetic, algorithm):
    study = synthetic.make_study(trials=1000)
    env = gymnasium.make(
        "amcsearch/Layerwise-v0",
        network=study.network,
        feasible=study.feasible,
        episode_reward=lambda policy: study.evaluate([policy])[0].reward,
    )
    agent = algorithm("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [16]}, **BATCHES[algorithm])
    before = {name: value.clone() for name, value in agent.policy.named_parameters()}
    agent.learn(256)
    assert agent.num_timesteps >= 256
    assert any(not value.equal(before[name]) for name, value in agent.policy.named_parameters())
    assert 1 < len(study.trials) <= agent.num_timesteps / len(study.network.groups)
    returns = np.array([episode["r"] for episode in agent.ep_info_buffer])[:, None]
    assert np.abs(returns - [trial.reward for trial in study.trials]).min(axis=1).max() < 2e-6  # it rounds to 1e-6
    kept = np.array([study.network.kept_array(trial.policy) for trial in study.trials])
    assert study.feasible.contains(kept).all()


def test_previous_action_in_the_observation_is_the_executed_one():
    env = make_env()
    (first, *_) = play(env, (0.3,))
    assert first[4]["action"][0] in first[0]


def test_misuse_is_refused():
    env = make_env()
    play(env, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.array([0.5], dtype=np.float32))
    env.reset()
    with pytest.raises(ValueError, match="pruning ratio"):
        env.step(np.array([np.nan], dtype=np.float32))
    with pytest.raises(BadInputError, match="0 channel groups"):
        make_env(widths=(), budget={"macs": "1x"})


def test_an_infeasible_budget_says_the_smallest_feasible_value():
    with pytest.raises(InfeasibleBudgetError, match=r"macs ≤ 11\.2: smallest found 14"):
        make_env(budget={"macs": "0.05x"})  # 4·1 + 1·1 + 1·1 + 1·8 = 14


@st.composite
def environments(draw):
    widths = draw(st.lists(st.integers(2, 40), min_size=1, max_size=7))
    grid, penalty = draw(st.sampled_from([2, 4, 8, 16])), draw(st.floats(0.0, 4.0))
    models = (Staircase("latency_ms", grid, penalty), Staircase("energy_mj", 8, 0.5))
    names = draw(st.sets(st.sampled_from(["macs", "params", "latency_ms", "energy_mj"]), min_size=1))
    budget = {name: f"{draw(st.floats(0.2, 1.0))}x" for name in sorted(names)}
    multiple = draw(st.sampled_from([1, 4, 8]))
    try:
        return make_env(widths, budget, multiple, models, lambda _: 0.0)
    except InfeasibleBudgetError:
        return make_env(widths, dict.fromkeys(sorted(names), "1x"), multiple, models, lambda _: 0.0)


@settings(max_examples=60, deadline=None)
@given(environments(), st.integers(0, 2**32))
def test_executed_actions_are_exactly_the_counts_of_the_policy(env, seed):
    """Executed actions round back to the policy's counts, and executed again they give the same policy."""
    space = env.feasible.space
    steps = play(env, np.random.default_rng(seed).random(len(space.groups)))
    kept = env.network.kept_array(steps[-1][4]["policy"])
    executed = np.concatenate([step[4]["action"] for step in steps])
    assert np.array_equal(space.nearest(executed), kept)
    assert np.array_equal(space.counts(space.indices(kept)[None, :])[0], kept)
    assert play(env, executed)[-1][4]["policy"] == steps[-1][4]["policy"]


@settings(max_examples=60, deadline=None)
@given(environments(), st.integers(0, 2**32))
def test_no_episode_of_random_actions_ends_over_budget(env, seed):
    rng = np.random.default_rng(seed)
    limits = env.feasible.budget.limits
    for low in np.linspace(0.0, 0.6, 8):  # hundreds of episodes in all; low ratios press against the limits
        observation, _ = env.reset()
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            observation, _, done, _, info = env.step(rng.uniform(low * rng.random(), 1.0, 1).astype(np.float32))
        cost = env.feasible.grid.cost(info["policy"])
        assert all(cost[name] <= limit * (1 + 1e-9) for name, limit in limits.items())
        small = env.network.with_channels(info["policy"])
        assert CostGrid(small, env.feasible.grid.models).cost(small.dense) == pytest.approx(cost)
