"""Criteria: one formula a file, one row here; a row makes a criterion from its hyper-parameters."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.methods.criteria.activation import ActivationMagnitude
from amcsearch.methods.criteria.activation_variance import ActivationVariance
from amcsearch.methods.criteria.bn_scale import BnScale
from amcsearch.methods.criteria.fisher import Fisher, TrueFisher
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.criteria.movement import Movement
from amcsearch.methods.criteria.obd import OptimalBrainDamage
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.methods.criteria.taylor import (
    Taylor,
    TaylorActivation,
    TaylorBn,
    TaylorJoint,
    TaylorParameterwise,
    TaylorPerSample,
)
from amcsearch.methods.criteria.wanda import Wanda, WandaChannels
from amcsearch.methods.criterion import Criterion

__all__ = ["CRITERIA", "Criterion"]

CRITERIA: Final[Mapping[str, Callable[..., Criterion]]] = {
    "magnitude": Magnitude,
    "taylor": Taylor,
    "taylor_bn": TaylorBn,
    "taylor_joint": TaylorJoint,
    "taylor_parameterwise": TaylorParameterwise,
    "taylor_per_sample": TaylorPerSample,
    "taylor_act2017": TaylorActivation,
    "obd": OptimalBrainDamage,
    "fisher": Fisher,
    "true_fisher": TrueFisher,
    "movement": Movement,
    "activation_magnitude": ActivationMagnitude,
    "activation_variance": ActivationVariance,
    "wanda": Wanda,
    "wanda_channels": WandaChannels,
    "bn_scale": BnScale,
    "random": RandomOrder,
}
