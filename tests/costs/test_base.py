"""Costs of one layer at many widths, for models that know single layers only."""

import numpy as np
import pytest

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.base import layer_costs
from amcsearch.costs.compute import Macs, Params

LAYER = LayerSpec("l", LayerKind.LINEAR, 4, 8)


class Widths:
    """A whole number that tells both widths."""

    name = "widths"
    constant = 0.0

    def layer_cost(self, layer: LayerSpec) -> int:
        return 100 * layer.in_channels + layer.out_channels


def test_a_model_of_single_layers_is_asked_for_each_pair() -> None:
    costs = layer_costs(Widths(), LAYER, np.array([1, 2]), np.array([3, 4]))
    assert costs.tolist() == [103, 204]
    assert costs.dtype == np.float64
    with pytest.raises(ValueError, match="shorter"):
        layer_costs(Widths(), LAYER, np.array([1, 2]), np.array([3]))


@pytest.mark.parametrize("model", [Macs(), Params()])
def test_counts_at_many_widths_are_costs(model: Macs | Params) -> None:
    costs = layer_costs(model, LAYER, np.array([1, 2]), np.array([3, 4]))
    assert costs.tolist() == [3, 8]
    assert costs.dtype == np.float64
