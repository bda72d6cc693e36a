"""Search: how much to prune in every layer, within a budget. Every agent goes through ``Study.evaluate``."""

from collections.abc import Mapping
from typing import Final

from amcsearch.search.baselines import ErkSearch, RandomSearch, SensitivitySearch, UniformSearch
from amcsearch.search.ddpg import DDPG
from amcsearch.search.dynamic_programming import DynamicProgramming
from amcsearch.search.energy_aware import EnergyAware
from amcsearch.search.grid import GridSearch
from amcsearch.search.netadapt import NetAdapt
from amcsearch.search.optuna_search import cmaes, gp, nsga2, tpe
from amcsearch.search.reward import REWARDS
from amcsearch.search.searcher import Searcher, SearcherFactory
from amcsearch.search.study import Study

__all__ = ["REWARDS", "SEARCHERS", "Searcher", "SearcherFactory", "Study"]

SEARCHERS: Final[Mapping[str, SearcherFactory]] = {
    "ddpg": DDPG,
    "nsga2": nsga2,
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "dynamic_programming": DynamicProgramming,
    "grid": GridSearch,
    "random": RandomSearch,
    "uniform": UniformSearch,
    "erk": ErkSearch,
    "sensitivity": SensitivitySearch,
    "netadapt": NetAdapt,
    "energy_aware": EnergyAware,
}
