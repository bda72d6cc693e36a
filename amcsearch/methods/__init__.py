"""How to choose what to remove: saliency per weight, ranked over coupled slices."""

from amcsearch.methods.criteria import CRITERIA, Criterion
from amcsearch.methods.ranking import Ranking, UnitScores, keep, rank, rank_units, score_units

__all__ = ["CRITERIA", "Criterion", "Ranking", "UnitScores", "keep", "rank", "rank_units", "score_units"]
