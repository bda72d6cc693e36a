"""Criteria: one formula a file, one row here; a row makes a criterion from its hyper-parameters."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.methods.criteria.taylor import Taylor, TaylorBn, TaylorJoint, TaylorParameterwise, TaylorPerSample
from amcsearch.methods.criterion import Criterion

__all__ = ["CRITERIA", "Criterion"]

CRITERIA: Final[Mapping[str, Callable[..., Criterion]]] = {
    "magnitude": Magnitude,
    "taylor": Taylor,
    "taylor_bn": TaylorBn,
    "taylor_joint": TaylorJoint,
    "taylor_parameterwise": TaylorParameterwise,
    "taylor_per_sample": TaylorPerSample,
    "random": RandomOrder,
}
