"""Methods that choose what to remove: criteria and selectors for channels, gates and schedules while training."""

from amcsearch.methods.criteria import ALIASES, CRITERIA, unaliased
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.first_order import LossFunction, drawn_classes, readers
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.gates import GATES
from amcsearch.methods.global_ranking import NORMALISERS, comparable, removal_steps
from amcsearch.methods.layer_densities import erk_densities, policy_from_densities
from amcsearch.methods.layer_inputs import (
    MEMORY_BYTES,
    POSITIONS,
    LayerInputs,
    following_norms,
    gather_inputs,
    read_calls,
    unread_group,
    why_too_large,
)
from amcsearch.methods.least_squares import DAMPING, REFITS, output_error, refit_drifted
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan
from amcsearch.methods.needs import Need, Statistic, vanishes
from amcsearch.methods.patches import patches, weight_matrix
from amcsearch.methods.ranking import Ranking, UnitScores, keep, rank, rank_units, score_units
from amcsearch.methods.reduction import REDUCTIONS
from amcsearch.methods.schedules import SCHEDULES
from amcsearch.methods.schedules.rounds import ROUND_SHAPES, round_sparsities
from amcsearch.methods.selector import (
    Calibration,
    Problem,
    Refitted,
    RemovalErrors,
    Selector,
    problem_of,
    refitted,
    select,
)
from amcsearch.methods.selectors import SELECTORS
from amcsearch.methods.statistics import Statistics, gather
from amcsearch.methods.unit_slices import UnitSlices
from amcsearch.methods.weight_choice import keep_most, keep_overall, keep_top, n_kept
from amcsearch.methods.weights import layer_of, sparse_weights, weight_scores

__all__ = [
    "ALIASES",
    "CRITERIA",
    "DAMPING",
    "GATES",
    "MEMORY_BYTES",
    "NORMALISERS",
    "POSITIONS",
    "REDUCTIONS",
    "REFITS",
    "ROUND_SHAPES",
    "SCHEDULES",
    "SELECTORS",
    "Calibration",
    "Criterion",
    "Gate",
    "GateMethod",
    "LayerInputs",
    "LossFunction",
    "MaskSchedule",
    "Masks",
    "Moment",
    "Need",
    "Plan",
    "Problem",
    "Ranking",
    "Refitted",
    "RemovalErrors",
    "Selector",
    "Statistic",
    "Statistics",
    "UnitScores",
    "UnitSlices",
    "comparable",
    "drawn_classes",
    "erk_densities",
    "following_norms",
    "gather",
    "gather_inputs",
    "keep",
    "keep_most",
    "keep_overall",
    "keep_top",
    "layer_of",
    "n_kept",
    "output_error",
    "patches",
    "policy_from_densities",
    "problem_of",
    "rank",
    "rank_units",
    "read_calls",
    "readers",
    "refit_drifted",
    "refitted",
    "removal_steps",
    "round_sparsities",
    "score_units",
    "select",
    "sparse_weights",
    "unaliased",
    "unread_group",
    "vanishes",
    "weight_matrix",
    "weight_scores",
    "why_too_large",
]
