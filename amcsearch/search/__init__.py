"""Search: how much to prune in every layer, within a budget. Every agent goes through ``Study.evaluate``."""

from collections.abc import Mapping
from typing import Final

from amcsearch.search.baselines import ErkSearch, RandomSearch, SensitivitySearch, UniformSearch
from amcsearch.search.budget import Budget, FeasibleSet, resolve_budget, without_dominated
from amcsearch.search.comparison import (
    AgentRun,
    Mean,
    equal_seconds,
    hypervolumes,
    mean_over_seeds,
    paired_difference,
)
from amcsearch.search.energy_aware import EnergyAware
from amcsearch.search.exact.allocator import Allocator
from amcsearch.search.exact.dynamic_programming import DynamicProgramming, starting_policies
from amcsearch.search.exact.harm import probed_errors, removal_errors
from amcsearch.search.grid import GridSearch
from amcsearch.search.ladder import Ladder
from amcsearch.search.local_search import unseen
from amcsearch.search.netadapt import NetAdapt
from amcsearch.search.reinforcement.ddpg import DDPG
from amcsearch.search.reinforcement.environment import LayerwiseEnv
from amcsearch.search.reward import REWARDS, Reward, RewardContext, bind, with_parameters
from amcsearch.search.samplers import OptunaAgent, cmaes, gp, nsga2, tpe
from amcsearch.search.study import Agent, AgentFactory, Progress, Study
from amcsearch.search.study_database import storage_url
from amcsearch.search.targets.sequences import (
    SEQUENCES,
    CostOf,
    accepted_levels,
    calls_at_most,
    global_sequence,
    last_verified,
    reach,
    safest_first,
)

__all__ = [
    "AGENTS",
    "REWARDS",
    "SEQUENCES",
    "Agent",
    "AgentFactory",
    "AgentRun",
    "Allocator",
    "Budget",
    "CostOf",
    "FeasibleSet",
    "LayerwiseEnv",
    "Mean",
    "OptunaAgent",
    "Progress",
    "Reward",
    "RewardContext",
    "Study",
    "accepted_levels",
    "bind",
    "calls_at_most",
    "equal_seconds",
    "global_sequence",
    "hypervolumes",
    "last_verified",
    "mean_over_seeds",
    "paired_difference",
    "probed_errors",
    "reach",
    "removal_errors",
    "resolve_budget",
    "safest_first",
    "starting_policies",
    "storage_url",
    "unseen",
    "with_parameters",
    "without_dominated",
]

AGENTS: Final[Mapping[str, AgentFactory]] = {
    "ddpg": DDPG,
    "nsga2": nsga2,
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "dynamic_programming": DynamicProgramming,
    "ladder": Ladder,
    "grid": GridSearch,
    "random": RandomSearch,
    "uniform": UniformSearch,
    "erk": ErkSearch,
    "sensitivity": SensitivitySearch,
    "netadapt": NetAdapt,
    "energy_aware": EnergyAware,
}
