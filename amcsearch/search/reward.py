"""Rewards: what one evaluated policy is worth to a single-objective agent; larger is better.

Each is a plain function of (evaluation, cost, context) with its parameters as keyword arguments, chosen in the
configuration as ``reward: {name: mnasnet, params: {inside: -0.05}}``. They look at the WORTH of the metric on the
search split, and at error = 1 - worth:

    a share, such as accuracy:   worth = metric, or 1 - metric where lower is better
    any other metric:            worth = (1 + g / (1 + |g|)) / 2,   g = gain over dense / |dense metric|

So a metric without a range (a squared error, a perplexity) is worth 1/2 where it is the dense network's own, more where
it is better and less where it is worse, always between 0 and 1. A squared error twice the dense one's is worth 1/4.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from amcsearch.core import ACCURACY, BadInputError, Cost, Evaluation, Metric, Trial

if TYPE_CHECKING:
    from amcsearch.search.budget import Budget

__all__ = [
    "REWARDS",
    "Reward",
    "RewardContext",
    "accuracy",
    "accuracy_guaranteed",
    "bind",
    "hard_constraint",
    "metric_to_beat",
    "mnasnet",
    "mnasnet_hard",
    "weighted_sum",
    "with_parameters",
]


_REACH: Final = 1e6  # times a metric without a range: beyond it no reward is expected
_HALVINGS: Final = 100


@dataclass(frozen=True)
class RewardContext:
    """What a reward may compare a policy with: the dense model's cost and metric, and the budget's limits.

    ``metric`` says what the metric is, its unit and its direction.
    """

    dense: Cost
    dense_metric: float
    budget: "Budget"
    metric: Metric = ACCURACY

    def worth(self, evaluation: Evaluation) -> float:
        """What the metric is worth, larger is better: see the module; 0 of one that is no number or infinitely bad."""
        value = evaluation.metric
        if self.metric.is_share:
            return self.metric.gain(value, 0.0 if self.metric.higher_is_better else 1.0)
        gain = self.metric.gain(value, self.dense_metric) / (abs(self.dense_metric) or 1.0)
        if not math.isfinite(gain):
            return 1.0 if gain == math.inf else 0.0
        return 0.5 * (1.0 + gain / (1.0 + abs(gain)))


class Reward(Protocol):
    """What one evaluated policy is worth: a pure function, finite where metric and loss are; larger is better."""

    def __call__(self, evaluation: Evaluation, cost: Cost, context: RewardContext, /) -> float:
        """Return the worth of a policy of that evaluation and cost, beside the dense network and the budget."""
        ...


def accuracy(evaluation: Evaluation, cost: Cost, context: RewardContext) -> float:
    """AMC, resource-constrained: R = -error; the budget is met by bounding the actions (He 2018, 1802.03494)."""
    del cost
    return context.worth(evaluation) - 1.0


def accuracy_guaranteed(
    evaluation: Evaluation, cost: Cost, context: RewardContext, *, cost_name: str = "macs"
) -> float:
    """AMC, accuracy-guaranteed: R = -error * log(MACs), or log(#parameters) (He 2018, 1802.03494).

    Raises:
        BadInputError: ``cost_name`` is not ``macs`` or ``params`` (below one unit the logarithm turns the sign).
    """
    if cost_name not in ("macs", "params"):
        raise BadInputError(f"reward accuracy_guaranteed: cost_name = {cost_name!r}, must be 'macs' or 'params'")
    return (context.worth(evaluation) - 1.0) * math.log(max(cost[cost_name], 1.0))


def mnasnet(
    evaluation: Evaluation, cost: Cost, context: RewardContext, *, inside: float = -0.07, outside: float = -0.07
) -> float:
    """MnasNet: worth * prod_c (cost_c / limit_c)^w over budgeted costs (Tan 2019, 1807.11626).

    w is ``inside`` while the cost is within its limit and ``outside`` beyond; -0.07 for both is the paper's soft form
    (5 % of the worth for a doubling of latency).
    """
    reward = context.worth(evaluation)
    for name, limit in context.budget.limits.items():
        ratio = cost[name] / limit
        reward *= ratio ** (inside if ratio <= 1.0 else outside)
    return reward


def mnasnet_hard(evaluation: Evaluation, cost: Cost, context: RewardContext) -> float:
    """MnasNet's hard form, w = 0 within the limit and -1 beyond: no credit for being faster than asked."""
    return mnasnet(evaluation, cost, context, inside=0.0, outside=-1.0)


def hard_constraint(evaluation: Evaluation, cost: Cost, context: RewardContext, *, penalty: float = 10.0) -> float:
    """Worth within the budget; beyond it -penalty * (1 + sum_c overshoot_c), overshoot = cost / limit - 1.

    Finite, so that an agent still learns which way the budget lies, yet below every reward within it.

    Raises:
        BadInputError: a penalty that is not positive.
    """
    if penalty <= 0:
        raise BadInputError(f"reward hard_constraint: penalty = {penalty}, must be above 0")
    shares = (cost[name] / limit for name, limit in context.budget.limits.items())
    overshoot = sum(0.0 if share <= 1.0 else share - 1.0 for share in shares)  # NaN stays NaN, a reward that fails
    return context.worth(evaluation) if overshoot == 0.0 else -penalty * (1.0 + overshoot)


def weighted_sum(
    evaluation: Evaluation,
    cost: Cost,
    context: RewardContext,
    *,
    latency_ms: float = 0.1,
    energy_mj: float = 0.1,
    macs: float = 0.1,
    params: float = 0.0,
    model_bytes: float = 0.0,
    peak_memory_bytes: float = 0.0,
) -> float:
    """Worth - sum_c w_c * cost_c / dense_c: each weight is the worth given for removing that cost wholly.

    Raises:
        BadInputError: a weight on a cost nothing prices.
    """
    reward = context.worth(evaluation)
    weights = {
        "latency_ms": latency_ms,
        "energy_mj": energy_mj,
        "macs": macs,
        "params": params,
        "model_bytes": model_bytes,
        "peak_memory_bytes": peak_memory_bytes,
    }
    for name, weight in weights.items():
        if weight == 0.0:
            continue
        if name not in cost:
            raise BadInputError(
                f"reward weighted_sum: weight {name} = {weight} but nothing prices {name}; "
                f"set it to 0, or give device.table or device.profile (priced: {', '.join(cost)})"
            )
        reward -= weight * cost[name] / context.dense[name]
    return reward


REWARDS: Final[Mapping[str, Callable[..., float]]] = {
    "accuracy": accuracy,
    "accuracy_guaranteed": accuracy_guaranteed,
    "mnasnet": mnasnet,
    "mnasnet_hard": mnasnet_hard,
    "hard_constraint": hard_constraint,
    "weighted_sum": weighted_sum,
}


def with_parameters(reward: str | Callable[..., float], parameters: Mapping[str, object]) -> Reward:
    """Return the named reward, or a function such as those here, with its keyword-only parameters filled in.

    Raises:
        BadInputError: no such reward or parameter, a value of the wrong type, or a function that does not take an
            evaluation, a cost and a context.
    """
    if isinstance(reward, str) and reward not in REWARDS:
        raise BadInputError(f"reward {reward!r} does not exist; choose one of {', '.join(REWARDS)}")
    function = REWARDS[reward] if isinstance(reward, str) else reward
    name = reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)
    known = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key, value in parameters.items():
        if key not in known:
            raise BadInputError(f"reward {name} has no parameter {key!r}; it has {', '.join(known) or 'none'}")
        if not _same_kind(value, known[key]):
            raise BadInputError(f"reward {name}: {key} = {value!r}, must be like {known[key]!r}")
    try:
        inspect.signature(function).bind(None, None, None, **parameters)
    except TypeError as error:
        raise BadInputError(f"reward {name} must take (evaluation, cost, context): {error}") from error
    return partial(function, **parameters)


def bind(
    reward: str | Callable[..., float], parameters: Mapping[str, object], context: RewardContext
) -> Callable[[Evaluation, Cost], float]:
    """Return a reward with its parameters and context filled in, tried once on the dense model.

    Raises:
        BadInputError: as ``with_parameters`` or the reward itself, or a reward of the dense model that is no number.
    """
    function = with_parameters(reward, parameters)

    def bound(evaluation: Evaluation, cost: Cost) -> float:
        return function(evaluation, cost, context)

    value = bound(Evaluation(context.dense_metric, 0.0, 0.0), context.dense)
    if not isinstance(value, numbers.Real):
        raise BadInputError(f"the reward of the dense network is {value!r}, must be a number; return a float")
    return bound


def metric_to_beat(reward: Callable[[Evaluation, Cost], float], best: Trial, cost: Cost) -> float:
    """Return the metric up to which a policy of that cost is worth no more than ``best``, by bisection.

    Infinitely good where no metric is enough, infinitely bad where any is. ``reward`` must rise with the metric.
    """
    level, metric = best.evaluation.metric, best.judged_by
    sign = metric.gain(1.0, 0.0)

    def is_better(gain: float) -> bool:
        return reward(replace(best.evaluation, metric=level + sign * gain), cost) > best.reward

    reach = 2.0 if metric.is_share else _REACH * max(1.0, abs(level))
    if not is_better(0.0) and is_better(1e-12 * reach):  # the cost has no part in it
        return level
    if is_better(-reach) or not is_better(reach):
        return -sign * math.inf if is_better(-reach) else sign * math.inf
    low, high = -reach, reach
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if is_better(middle) else (middle, high)
    return level + sign * low


def _same_kind(value: object, default: object) -> bool:
    if isinstance(default, str):
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
