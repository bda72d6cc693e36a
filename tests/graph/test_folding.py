"""Computed weights folded into plain ones: the same outputs, and nothing is computed from the weight any more."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, duplicate, fold_weights, masked, remove, trace
from amcsearch.methods.statistics import sliced_parameters


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (self.weight - flat.mean(1)[:, None, None, None]) / flat.std(1)[:, None, None, None]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


CASES: dict[str, Callable[[], nn.Module]] = {
    "weight norm, a hook": lambda: weight_norm(nn.Conv2d(3, 6, 3)),
    "weight norm, a parametrisation": lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
    "spectral norm, a hook": lambda: spectral_norm(nn.Conv2d(3, 6, 3)),
    "spectral norm, a parametrisation": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)),
    "orthogonal, a parametrisation": lambda: parametrizations.orthogonal(nn.Conv2d(3, 6, 3)),
    "a standardised weight": lambda: Standardised(3, 6, 3),
}


def network(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("case", list(CASES))
def test_a_folded_network_computes_the_same_and_can_be_pruned(case: str) -> None:
    torch.manual_seed(0)
    model, x = network(CASES[case]()), torch.randn(1, 3, 5, 5)
    original, model = model, duplicate(model)
    with torch.no_grad():
        expected = original(x)
        assert fold_weights(model, Batch.of(x)) == ["0"]
        assert torch.allclose(model(x), expected, atol=1e-6)
        assert torch.equal(original(x), expected)  # which shares nothing with its copy
    assert sorted(dict(model.named_parameters())) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    traced = trace(model, x)
    assert [(g.name, g.channels) for g in traced.network.groups] == [("0", 6)]
    small = remove(model, traced, {"0": torch.arange(4).numpy()})
    assert tuple(small.get_parameter("0.weight").shape) == (4, 3, 3, 3)
    small.load_state_dict(duplicate(small).state_dict())  # as a training does that begins anew
    assert fold_weights(model, Batch.of(x)) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("case", list(CASES))
def test_a_trace_is_of_plain_weights_and_says_what_has_to_be_folded(case: str) -> None:
    torch.manual_seed(0)
    model, x, half = network(CASES[case]()), torch.randn(1, 3, 5, 5), {"0": torch.arange(3).numpy()}
    names = sorted(model.state_dict())
    traced = trace(model, x)
    assert ([(g.name, g.channels) for g in traced.network.groups], traced.folded) == ([("0", 6)], ("0",))
    assert sorted(model.state_dict()) == names  # a copy was folded
    for use in (remove, lambda *given: masked(*given).__enter__(), lambda m, t, _: sliced_parameters(m, t)):
        with pytest.raises(BadInputError, match=r"layer '0' computes its weight .* call amcsearch.fold_weights"):
            use(model, traced, half)
    assert fold_weights(model, x) == ["0"]
    small = remove(model, traced, half)
    with masked(model, traced, half), torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-6)
    assert trace(model, x).folded == ()


def test_layers_that_compute_more_than_their_weight_stay() -> None:
    model, x = network(Scaled(3, 6, 3)), torch.randn(1, 3, 5, 5)
    assert fold_weights(model, Batch.of(x)) == []
    assert isinstance(model[0], Scaled)
