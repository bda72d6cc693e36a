"""Registry of criteria: name → what makes a criterion from its parameters, one formula a file; and older names."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.methods.criteria.activation import ActivationMagnitude
from amcsearch.methods.criteria.activation_variance import ActivationVariance
from amcsearch.methods.criteria.bn_scale import BnScale
from amcsearch.methods.criteria.fisher import Fisher
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.criteria.movement import Movement
from amcsearch.methods.criteria.obd import OptimalBrainDamage
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.methods.criteria.taylor import Taylor
from amcsearch.methods.criteria.wanda import Wanda, WandaChannels
from amcsearch.methods.criterion import Criterion

__all__ = ["ALIASES", "CRITERIA", "Criterion", "unaliased"]

CRITERIA: Final[Mapping[str, Callable[..., Criterion]]] = {
    "magnitude": Magnitude,
    "taylor": Taylor,
    "obd": OptimalBrainDamage,
    "fisher": Fisher,
    "movement": Movement,
    "activation_magnitude": ActivationMagnitude,
    "activation_variance": ActivationVariance,
    "wanda": Wanda,
    "wanda_channels": WandaChannels,
    "bn_scale": BnScale,
    "random": RandomOrder,
}
ALIASES: Final[Mapping[str, tuple[str, Mapping[str, object]]]] = {
    "taylor_bn": ("taylor", {"variant": "bn"}),
    "taylor_joint": ("taylor", {"variant": "joint"}),
    "taylor_parameterwise": ("taylor", {"variant": "parameterwise"}),
    "taylor_per_sample": ("taylor", {"variant": "per_sample"}),
    "taylor_act2017": ("taylor", {"variant": "act2017"}),
    "true_fisher": ("fisher", {"labels": "model"}),
}
"""Other name → the criterion it stands for, with the parameters that it sets."""


def unaliased(name: str, params: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """Return the criterion's name and parameters that ``name`` with ``params`` stands for.

    ``params`` overrule what an alias sets; a name that is no alias comes back as it is.
    """
    registered, preset = ALIASES.get(name, (name, {}))
    return registered, {**preset, **params}
