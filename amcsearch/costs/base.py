"""The contract of every cost: a number for each layer, from its shapes alone."""

from typing import Protocol

from amcsearch.core import LayerSpec

__all__ = ["CostModel"]


class CostModel(Protocol):
    """One cost of one inference; a network costs ``constant`` plus the sum of ``layer_cost`` over its layers.

    ``name`` is one of ``COST_NAMES``, which also fixes the unit. ``constant`` is what no layer carries
    (the overhead of a call). A model is a pure function: the same shapes always cost the same, so that
    ``CostGrid`` may ask once and remember.
    """

    @property
    def name(self) -> str:
        """Which cost this is, one of ``COST_NAMES``."""
        ...

    @property
    def constant(self) -> float:
        """Cost that does not depend on any layer."""
        ...

    def layer_cost(self, layer: LayerSpec) -> float:
        """Cost of one layer; it may depend on every field but ``name``.

        Raises:
            BadInputError: the model knows nothing about such a layer; the message says how to teach it.
        """
        ...
