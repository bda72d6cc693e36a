"""Refitting pruned networks: exact where it can be exact, and never in the way of what else a policy needs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.layer_inputs import gather_inputs
from amcsearch.methods.least_squares import REFITS
from amcsearch.recovery import refit as module
from amcsearch.recovery.batch_norm import recalibrate_batch_norm
from amcsearch.recovery.refit import Reconstruction
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.plain import vgg
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model, vit


def halves(found: Trace, seed: int = 0) -> Kept:
    rng, kept = np.random.default_rng(seed), {}
    for name, units in found.units.items():
        kept[name] = np.sort(units[rng.permutation(len(units))[: max(1, len(units) // 2)]].ravel())
    return kept


class Chain(nn.Module):
    """conv → BN → ReLU → conv (with bias, or with a batch norm) → its output."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 3, padding=1, bias=not norm)
        self.norm_b = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Conv2d(4, 3, 1)

    def inner(self, x: Tensor) -> Tensor:
        return self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(x)))


def chain(norm: bool) -> tuple[Chain, Tensor, Trace]:
    torch.manual_seed(0)
    model = Chain(norm).double().eval()
    x = torch.randn(6, 2, 7, 7, dtype=torch.float64)
    recalibrate_batch_norm(model, HeldBatches.of(x, None, 6))
    return model, x, trace(model, x[:1])


def refit(model: nn.Module, x: Tensor, found: Trace, kept: Kept, rule: str, damping: float = 0.01) -> nn.Module:
    inputs = gather_inputs(model, found, HeldBatches.of(x, None, 4), positions=None)
    smaller = remove(model, found, kept)
    Reconstruction(model, found, inputs.values(), rule, damping).apply(smaller, kept)
    return smaller


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_a_layers_output_is_the_least_squares_fit_of_the_dense_one(norm: bool, seed: int) -> None:
    model, x, found = chain(norm)
    kept = {found.network.groups[0].name: halves(found, seed)[found.network.groups[0].name]}
    smaller = refit(model, x, found, kept, "least_squares", 0.0)
    dense, pruned = model.b(F.relu(model.norm_a(model.a(x)))), smaller.b(F.relu(smaller.norm_a(smaller.a(x))))
    patches = F.unfold(F.relu(smaller.norm_a(smaller.a(x))), 3, padding=1).mT.flatten(0, 1)
    rows = torch.cat([patches, torch.ones(len(patches), 1).double()], 1)
    targets = dense.flatten(2).mT.flatten(0, 1)
    best = rows @ torch.linalg.lstsq(rows, targets).solution
    found_there = pruned.flatten(2).mT.flatten(0, 1)
    if norm:  # what is missing in the mean sits in the running mean
        found_there = found_there + (targets - found_there).mean(0)
    torch.testing.assert_close(found_there, best)


@pytest.mark.parametrize("rule", ["bias", "scales", "least_squares"])
@torch.no_grad()
def test_the_batch_norm_behind_has_the_statistics_of_the_new_outputs(rule: str) -> None:
    model, x, found = chain(True)
    seen_by_norm(model, x)
    name = found.network.groups[0].name
    smaller = refit(model, x, found, {name: halves(found)[name]}, rule)
    mean, variance = smaller.norm_b.running_mean.clone(), smaller.norm_b.running_var.clone()
    seen_by_norm(smaller, x)
    torch.testing.assert_close(mean, smaller.norm_b.running_mean)
    torch.testing.assert_close(variance, smaller.norm_b.running_var)


def seen_by_norm(model: nn.Module, x: Tensor) -> None:
    """Set the second norm's running statistics to those of what it reads in eval mode."""
    outputs = model.b(F.relu(model.norm_a(model.a(x)))).movedim(1, 0).flatten(1)
    model.norm_b.running_mean.copy_(outputs.mean(1))
    model.norm_b.running_var.copy_(outputs.var(1))


@torch.no_grad()
def test_outputs_that_leave_too_change_nothing_for_those_that_stay() -> None:
    model, x, found = chain(False)
    first, second = (group.name for group in found.network.groups)
    kept = halves(found)
    both = refit(model, x, found, kept, "least_squares")
    inputs_only = refit(model, x, found, {first: kept[first]}, "least_squares")
    torch.testing.assert_close(both.b.weight, inputs_only.b.weight[kept[second]])
    torch.testing.assert_close(both.b.bias, inputs_only.b.bias[kept[second]])


@torch.no_grad()
def test_each_rule_is_closer_to_the_dense_layer_than_the_one_before() -> None:
    for norm in (False, True):
        model, x, found = chain(norm)
        kept = {found.network.groups[0].name: np.array([0, 3, 4])}
        errors = [
            float((refit(model, x, found, kept, rule, 0.0).inner(x) - model.inner(x)).square().sum())
            for rule in ("none", "bias", "scales", "least_squares")
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.7 * errors[0]


NETWORKS = {
    "resnet": lambda: resnet20(width=8, depth=8),
    "mobilenetv2": lambda: mobilenetv2(width_multiplier=0.5),
    "vgg": lambda: vgg(width=4),
    "vit": lambda: vit(depth=1, dim=32, mlp_width=32),
    "language_model": lambda: language_model(depth=1, dim=32, mlp_width=32, vocabulary=32),
}


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_every_network_is_refitted_the_same_each_time_and_is_as_it_was_where_nothing_leaves(network: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    x = torch.randint(0, 32, (8, 12)) if network == "language_model" else torch.randn(8, 1, 32, 32)
    found = trace(model, x[:1])
    before = copy.deepcopy(model.state_dict())
    inputs = gather_inputs(model, found, HeldBatches.of(x, None, 4))
    for rule in REFITS:
        it = Reconstruction(model, found, inputs.values(), rule)
        dense = {group.name: np.arange(group.channels) for group in found.network.groups}
        outputs = []
        for reconstruction, kept in [(it, halves(found)), (it, dense), (it, halves(found)), (_sent(it), halves(found))]:
            smaller = remove(model, found, kept)
            reconstruction.apply(smaller, kept)
            outputs.append(smaller(x))
        torch.testing.assert_close(outputs[1], model(x))
        assert torch.equal(outputs[0], outputs[2])
        assert torch.equal(outputs[0], outputs[3])
        assert torch.isfinite(outputs[0]).all()
        if rule == "none":
            torch.testing.assert_close(outputs[0], remove(model, found, halves(found))(x))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def _sent(it: Reconstruction) -> Reconstruction:
    return pickle.loads(pickle.dumps(it))


@torch.no_grad()
def test_a_head_that_others_can_stand_in_for_leaves_without_loss() -> None:
    torch.manual_seed(0)
    model = vit(depth=1, dim=32, num_heads=4).double().eval()
    attention = model.blocks[0].attention
    for layer in (attention.q, attention.k, attention.v):  # head 3 is a copy of head 1
        layer.weight[24:] = layer.weight[8:16]
        layer.bias[24:] = layer.bias[8:16]
    x = torch.randn(20, 1, 32, 32, dtype=torch.float64)
    found = trace(model, x[:1])
    (name,) = (n for n, units in found.units.items() if units.shape[1] == 8)
    kept = {name: np.arange(24)}
    torch.testing.assert_close(refit(model, x, found, kept, "least_squares", 1e-10)(x), model(x), rtol=1e-6, atol=1e-6)
    assert float((refit(model, x, found, kept, "none")(x) - model(x)).abs().max()) > 1e-3


def test_the_cache_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, found = chain(True)
    inputs = gather_inputs(model, found, HeldBatches.of(x, None, 4))
    plenty = Reconstruction(model, found, inputs.values(), "least_squares")
    monkeypatch.setattr(module, "CACHE_BYTES", 8 * 4 * 27)
    scarce = Reconstruction(model, found, inputs.values(), "least_squares")
    for seed in (0, 1, 2, 0, 1, 2):
        kept = halves(found, seed)
        states = []
        for it in (plenty, scarce):
            smaller = remove(model, found, kept)
            it.apply(smaller, kept)
            states.append(smaller.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(scarce._cache) == 1
    assert scarce._cached_bytes <= 8 * 4 * 27


def test_the_evaluator_refits_before_it_recalibrates() -> None:
    torch.manual_seed(0)
    model = resnet20(width=4, depth=8).eval()
    x, y = torch.randn(40, 1, 16, 16), torch.arange(40) % 10
    found = trace(model, x[:1])
    ranking = {name: np.arange(len(units)) for name, units in found.units.items()}
    policy = found.network.policy(np.array([g.channels // 2 for g in found.network.groups]))
    reconstruction = Reconstruction(
        model, found, gather_inputs(model, found, HeldBatches.of(x, None, 20)).values(), "least_squares"
    )
    batches = HeldBatches.of(x, y, 20)
    evaluator = Evaluator(model, found, ranking, batches, batches, reconstruction=reconstruction)
    kept = {g.name: np.arange(g.channels // 2) for g in found.network.groups}
    smaller = remove(model, found, kept).eval()
    reconstruction.apply(smaller, kept)
    recalibrate_batch_norm(smaller, HeldBatches.of(x, None, 20))
    with torch.no_grad():
        torch.testing.assert_close(evaluator.pruned(policy)(x), smaller(x), rtol=1e-4, atol=1e-5)
        plain = Evaluator(model, found, ranking, batches, batches).pruned(policy)
        assert float((plain(x) - smaller(x)).abs().max()) > 1e-3
    first = evaluator.evaluate(policy).loss
    assert evaluator.evaluate(policy).loss == first == _sent(evaluator).evaluate(policy).loss


@pytest.mark.parametrize(
    ("rule", "damping", "message"), [("lasso", 0.1, "known: none"), ("bias", -1.0, "damping = -1")]
)
def test_bad_values_are_named(rule: str, damping: float, message: str) -> None:
    model, _, found = chain(False)
    with pytest.raises(BadInputError, match=message):
        Reconstruction(model, found, [], rule, damping)
