"""Discrimination-aware selection: first picks by autograd, orthogonal inputs by hand, heads that learn."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import Batch, HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.least_squares import output_error, refit_least_squares
from amcsearch.methods.selector import Calibration, Problem, problem_of
from amcsearch.methods.selectors.discrimination_aware import DiscriminationAware, head_loss, train_heads


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).double().eval()  # fmt: skip


def calibration() -> Calibration:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(12) % 3
    x[:, 0, :2] += y[:, None, None]
    model = network()
    return Calibration(model, trace(model, x[:1]), HeldBatches.of(x, y, 6), F.cross_entropy)


@pytest.mark.parametrize(("mse_weight", "softmax_weight"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_first_pick_has_the_largest_gradient_at_the_empty_layer(mse_weight: float, softmax_weight: float) -> None:
    given = calibration()
    problem = problem_of(given, positions=None)
    order = DiscriminationAware(0, mse_weight, softmax_weight, rounds=100).orders(problem)["0"]

    model, x, y = given.model, given.batches.whole.args[0], given.batches.whole.targets
    reader = model[3]  # type: ignore[index]
    with torch.no_grad():
        inside = model[:3](x)  # type: ignore[index]
        wanted = reader(inside)
        mean = wanted.mean((0, 2, 3))
        energy = (wanted - mean[:, None, None]).square().sum(1).mean()
    weight = torch.zeros_like(reader.weight, requires_grad=True)
    output = F.conv2d(inside, weight, mean, padding=1)
    # The constant is refitted: only what varies can be explained by weights.
    centred = F.conv2d(inside, weight, padding=1)
    centred = centred - centred.mean((0, 2, 3))[:, None, None]
    mse = (wanted - mean[:, None, None] - centred).square().sum(1).mean() / energy
    loss = mse_weight * mse + softmax_weight * F.cross_entropy(model[4:](output), y)  # type: ignore[index]
    (gradient,) = torch.autograd.grad(loss, weight)
    scores = gradient.flatten(2).norm(dim=2).sum(0)
    assert order[0] == int(scores.argmax())


def test_on_orthogonal_inputs_picks_follow_the_correlation_with_the_output(readers: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(20, 6, generator=generator, dtype=torch.float64)).Q * torch.arange(1, 7)
    it = readers.reader(torch.randn(3, 6, generator=generator, dtype=torch.float64), rows)
    given = calibration()
    selector = DiscriminationAware(0, 1.0, 0.0, rounds=6)
    order = selector.orders(Problem({"g": (it,)}, given))["g"]
    y = rows @ it.weight[0].T
    correlation = (rows.T @ y).abs().sum(1)  # sum over filters of |dL / dW[o, k]|
    assert order.tolist() == torch.argsort(-correlation).tolist()

    losses = []
    for n_keep in range(1, 7):
        removed = torch.ones(6, dtype=torch.bool)
        removed[order[:n_keep]] = False
        new = refit_least_squares(it.weight, it.inputs.gram, removed, 1, 0.01)
        losses.append(output_error(it.weight, new, it.inputs.gram))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.0, abs=1e-12)


def test_rounds_only_coarsen_the_greedy_order(readers: ModuleType) -> None:
    it, _ = readers.random_reader(2, channels=8)
    for rounds in (1, 3, 8, 50):
        order = DiscriminationAware(0, 1.0, 0.0, rounds=rounds).orders(Problem({"g": (it,)}, calibration()))["g"]
        assert sorted(order.tolist()) == list(range(8))
        fine = DiscriminationAware(0, 1.0, 0.0, rounds=8).orders(Problem({"g": (it,)}, calibration()))["g"]
        assert order[0] == fine[0]


def test_the_label_term_changes_the_choice_towards_a_channel_that_tells_the_classes_apart() -> None:
    """The reader's strongest channel by far is noise; a faint one alone carries the label."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    x[:, 2] = y - 0.5
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]))
        model[2].weight.copy_(torch.tensor([[0.0, -9.0], [0.0, 9.0]]))
        for layer in model:
            layer.bias.zero_()
    given = Calibration(model, trace(model, x[:1]), HeldBatches.of(x, y, 30), F.cross_entropy)
    problem = problem_of(given)
    assert DiscriminationAware(0, 1.0, 0.0).orders(problem)["0"][0] == 1
    assert DiscriminationAware(0, 1.0, 1.0).orders(problem)["0"][0] == 2


def test_heads_learn_and_gradients_reach_the_replaced_weight() -> None:
    given = calibration()
    batch = given.batches.whole
    (head,) = train_heads(given.model, ["3"], batch, F.cross_entropy).values()
    assert head.weight.shape == (3, 8)
    with torch.no_grad():
        assert head_loss(given.model, head, {}, batch, F.cross_entropy) < 0.9 * np.log(3)
    weight = given.model.get_parameter("3.weight").detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        head_loss(given.model, head, {"3.weight": weight}, batch, F.cross_entropy), weight
    )
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        own = head_loss(given.model, None, {}, batch, F.cross_entropy)
        torch.testing.assert_close(own, F.cross_entropy(batch.through(given.model), batch.targets))


def test_heads_stand_between_the_layers_and_token_targets_are_classified_one_by_one() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 9)).double().eval()
    tokens = torch.arange(24).reshape(4, 6) % 9

    def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    (head,) = train_heads(model, ["1"], Batch.of(tokens, tokens), token_loss).values()
    assert head(model[:2](tokens), tokens).shape == (4, 6, 9)
    given = Calibration(model, trace(model, tokens[:1]), HeldBatches.of(tokens, tokens, 4), token_loss)
    orders = DiscriminationAware(heads=1).orders(problem_of(given))
    assert {group: sorted(order.tolist()) for group, order in orders.items()} == {
        group.name: list(range(group.channels)) for group in given.trace.network.groups
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 0}, "rounds = 0"),
        ({"samples": 0}, "samples = 0"),
        ({"heads": -1}, "heads = -1"),
        ({"mse_weight": -1.0}, "mse_weight"),
        ({"mse_weight": 0.0, "softmax_weight": 0.0}, "both 0"),
    ],
)
def test_bad_parameters_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        DiscriminationAware(**values)
