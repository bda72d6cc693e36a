"""Gates, worked by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from torch import nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph.masks import masked
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.gates import GATES
from amcsearch.methods.gates.gumbel import GumbelSoftmax, binary_concrete, straight_through, temperature_at
from amcsearch.methods.gates.hard_concrete import HardConcrete, hard_concrete, open_probability
from amcsearch.methods.gates.hard_concrete import evaluated_gate as evaluated
from amcsearch.methods.gates.slimming import NetworkSlimming, l1
from amcsearch.methods.gates.soft_threshold import SoftThreshold, soft_threshold
from amcsearch.methods.gates.variational import VariationalDropout, log_alpha, negative_kl, output_noise
from amcsearch.methods.unit_slices import UnitSlices
from amcsearch.training.models import MODELS
from amcsearch.training.sparsification import DAMPING, LIMIT, Lagrangian, target_at


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


# hard concrete


@pytest.mark.parametrize(
    ("a", "opened", "is_one", "gate"),
    [(-3.0, 0.1976, 0.0100, 0.0), (0.0, 0.8318, 0.1682, 0.5), (1.5986, 0.9607, 0.5, 0.8982), (3.0, 0.99, 0.8024, 1.0)],
)
def test_hard_concrete_values(a: float, opened: float, is_one: float, gate: float) -> None:
    log_a = torch.tensor(a, dtype=torch.float64)
    assert float(open_probability(log_a)) == pytest.approx(opened, abs=1e-4)
    assert 1.0 - float(open_probability(-log_a)) == pytest.approx(is_one, abs=1e-4)
    assert float(evaluated(log_a)) == pytest.approx(gate, abs=1e-4)


@pytest.mark.parametrize("a", [-3.0, 0.0, 1.5986])
def test_hard_concrete_frequencies(a: float) -> None:
    n = 1_000_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = hard_concrete(torch.tensor(a, dtype=torch.float64), u)
    for hits, p in (
        ((z != 0).sum(), open_probability(torch.tensor(a))),
        ((z == 1).sum(), 1 - open_probability(-torch.tensor(a))),
    ):
        assert abs(float(hits) - n * float(p)) < 4 * math.sqrt(n * float(p) * (1 - float(p)))


@given(st.floats(-4.0, 4.0))
def test_the_penalty_has_the_derivative_of_a_sigmoid(a: float) -> None:
    x = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    p = open_probability(x)
    (slope,) = torch.autograd.grad(p, x)
    assert float(slope) == pytest.approx(float(p.detach()) * (1.0 - float(p.detach())))


@given(st.floats(-3.0, 3.0))
def test_mean_gates_are_symmetric(a: float) -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    up, down = (hard_concrete(torch.tensor(x, dtype=torch.float64), u).mean() for x in (a, -a))
    assert float(up + down) == pytest.approx(1.0, abs=1e-9)


def test_the_edges_of_the_test_gate() -> None:
    edge = math.log(11.0)
    assert float(evaluated(torch.tensor(-edge - 1e-6, dtype=torch.float64))) == 0.0
    assert float(evaluated(torch.tensor(-edge + 1e-3, dtype=torch.float64))) > 0.0
    assert float(open_probability(torch.tensor(-edge, dtype=torch.float64))) == pytest.approx(0.310, abs=1e-3)


# Gumbel-softmax


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1])
def test_the_hard_frequency_does_not_depend_on_the_temperature(temperature: float) -> None:
    n, a = 200_000, torch.tensor(0.7)
    u = torch.rand(n, generator=torch.Generator().manual_seed(1))
    p = float(torch.sigmoid(a))
    hits = float((binary_concrete(a, u, temperature) > 0.5).sum())
    assert abs(hits - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_cooler_gates_are_harder() -> None:
    u = (torch.arange(1000) + 0.5) / 1000
    z = [binary_concrete(torch.tensor(0.7), u, t) for t in (5.0, 1.0, 0.5, 0.1)]
    gaps = [float((soft - (soft > 0.5).float()).abs().mean()) for soft in z]
    assert gaps == sorted(gaps, reverse=True)
    assert [float(soft.mean()) for soft in (z[0], z[1], z[3])] == pytest.approx([0.534, 0.615, 0.668], abs=2e-3)


def test_binary_concrete_is_two_class_gumbel_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    logits = torch.randn(6, 2)
    torch.manual_seed(5)
    expected = F.gumbel_softmax(logits, tau=0.7)[:, 0]
    torch.manual_seed(5)
    gumbels = -torch.empty_like(logits).exponential_().log()
    u = torch.sigmoid(gumbels[:, 0] - gumbels[:, 1])  # the logistic noise that the two make
    torch.testing.assert_close(binary_concrete(logits[:, 0] - logits[:, 1], u, 0.7), expected)


def test_straight_through_has_the_soft_gradient() -> None:
    a = torch.tensor([0.3, -0.8], requires_grad=True)
    u = torch.tensor([0.4, 0.7])
    soft = binary_concrete(a, u, 0.5)
    hard = straight_through(soft)
    assert hard.tolist() == pytest.approx((soft > 0.5).float().tolist())
    (one,) = torch.autograd.grad(soft.sum(), a, retain_graph=True)
    (other,) = torch.autograd.grad(hard.sum(), a)
    torch.testing.assert_close(one, other)


def test_cooling() -> None:
    assert temperature_at(0.0, 1.0, 0.25) == 1.0
    assert temperature_at(0.4, 1.0, 0.25) == pytest.approx(0.5)
    assert temperature_at(0.8, 1.0, 0.25) == temperature_at(1.0, 1.0, 0.25) == pytest.approx(0.25)


# variational dropout


def exact_negative_kl(log_a: float) -> float:
    """By the closed form of E log|eps|: a Poisson mixture of digammas."""
    rate = 0.5 * math.exp(-log_a)
    j = np.arange(int(rate + 40 * math.sqrt(rate) + 60))
    logs = j * math.log(rate) - rate - np.cumsum(np.log(np.maximum(j, 1)))
    mean = 0.5 * (math.log(2.0) + log_a + float((np.exp(logs) * digamma(j + 0.5)).sum()))
    return 0.5 * log_a - mean - 0.5 * (np.euler_gamma + math.log(2.0))


@pytest.mark.parametrize(
    ("log_a", "exact", "approximate"),
    [
        (-8.0, -4.63501, -4.63590),
        (-4.0, -2.62575, -2.63421),
        (0.0, -0.42669, -0.43124),
        (3.0, -0.02469, -0.02542),
        (8.0, -0.00017, -0.00017),
    ],
)
def test_kl_values(log_a: float, exact: float, approximate: float) -> None:
    assert exact_negative_kl(log_a) == pytest.approx(exact, abs=2e-5)
    assert float(negative_kl(torch.tensor(log_a, dtype=torch.float64))) == pytest.approx(approximate, abs=1e-5)


def test_kl_falls_with_noise_and_stays_near_the_exact_value() -> None:
    grid = np.linspace(-7.9, 8.0, 60)
    kl = [-float(negative_kl(torch.tensor(x, dtype=torch.float64))) for x in grid]
    assert all(b < a for a, b in pairwise(kl))
    assert max(abs(-k - exact_negative_kl(x)) for k, x in zip(kl, grid, strict=True)) < 1e-2


@given(st.floats(-7.0, 7.0))
def test_kl_gradient(log_a: float) -> None:
    x = torch.tensor(log_a, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(negative_kl(x), x)
    h = 1e-5
    numeric = (negative_kl(x + h) - negative_kl(x - h)) / (2 * h)
    assert float(slope) == pytest.approx(float(numeric.detach()), abs=1e-7)


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_local_noise_has_the_moments_of_sampled_weights(layer: nn.Linear | nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.tensor([[1.0, -2.0, 0.5]]).view(1, 3, *[1] * (layer.weight.ndim - 2))
    variance = torch.rand_like(layer.weight)
    draws = torch.stack([output_noise(layer, x, variance).flatten() for _ in range(4000)])
    sampled = torch.stack(
        [(torch.randn_like(variance) * variance.sqrt()).flatten(1) @ x.flatten() for _ in range(4000)]
    )
    expected = variance.flatten(1) @ x.flatten().square()
    for found in (draws, sampled):
        assert (found.mean(0).abs() < 4 * (expected / 4000).sqrt()).all()
        assert ((found.var(0) - expected).abs() < 4 * expected * math.sqrt(2 / 4000)).all()


def test_noise_is_added_once_and_only_inside() -> None:
    model = mlp()
    gate = VariationalDropout(log_variance=-2.0).attach(model, trace(model, torch.zeros(1, 3)), 10)
    x = torch.ones(1, 3)
    clean = model(x)
    with gate.noise(model):
        noisy = [model(x) for _ in range(2)]
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(model(x), clean)


def test_with_all_noise_only_the_bias_is_left() -> None:
    model = mlp()
    gate = VariationalDropout(log_variance=20.0).attach(model, trace(model, torch.zeros(1, 3)), 10)
    output = torch.func.functional_call(model, gate.final(), (torch.randn(5, 3),))
    torch.testing.assert_close(output, model[2].bias.expand(5, 2))
    assert all(float(d) == 0.0 for d in gate.density().values())


def test_the_penalty_moves_the_noise_and_leaves_the_weights() -> None:
    model = mlp()
    gate = VariationalDropout(log_variance=-2.0).attach(model, trace(model, torch.zeros(1, 3)), 10)
    gate.begin_step(1.0)
    gate.penalty().backward()
    assert all(weight.grad is None for weight in model.parameters())
    slopes = [noise.grad for noise in gate.log_variance]  # type: ignore[union-attr]
    assert all((slope <= 0).all() and (slope < 0).any() for slope in slopes)  # 0 where log_a is clipped


def test_log_alpha_is_the_noise_to_signal_ratio() -> None:
    found = log_alpha(torch.tensor([1.0, 0.1, 100.0]), torch.tensor([0.0, 0.0, -9.0]))
    assert found.tolist() == pytest.approx([0.0, math.log(100.0), -8.0], abs=1e-5)


# soft threshold


@given(st.floats(-2.0, 2.0), st.floats(0.01, 1.0))
def test_soft_threshold_is_the_proximal_map(w: float, g: float) -> None:
    v = torch.linspace(-2.5, 2.5, 50_001, dtype=torch.float64)
    best = v[(0.5 * (v - w).square() + g * v.abs()).argmin()]
    found = soft_threshold(torch.tensor(w, dtype=torch.float64), torch.tensor(g, dtype=torch.float64))
    assert float(found) == pytest.approx(float(best), abs=2e-4)


def test_soft_threshold_gradients() -> None:
    w = torch.tensor([0.9, -0.7, 0.2], dtype=torch.float64, requires_grad=True)
    s = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)  # sigmoid: 0.378
    assert torch.autograd.gradcheck(lambda a, b: soft_threshold(a, torch.sigmoid(b)), (w, s))
    by_w, by_s = torch.autograd.grad(soft_threshold(w, torch.sigmoid(s)).sum(), (w, s))
    slope = float((torch.sigmoid(s) * (1 - torch.sigmoid(s))).detach())
    assert by_w.tolist() == [1.0, 1.0, 0.0]
    assert float(by_s) == pytest.approx(-slope * (1 - 1))  # the signs of the two weights above cancel


def test_without_task_gradient_s_decays_geometrically() -> None:
    model = mlp()
    method = SoftThreshold(s_init=-4.0, weight_decay=0.5, learning_rate=0.1)
    gate = method.attach(model, trace(model, torch.zeros(1, 3)), 10)
    optimizer = gate.optimizer()
    for step in range(1, 4):
        optimizer.zero_grad()
        torch.autograd.backward(gate.penalty())
        optimizer.step()
        assert next(gate.parameters()).tolist() == pytest.approx([-4.0 * 0.95**step] * 2)


def test_higher_s_is_sparser() -> None:
    model = mlp()
    found = trace(model, torch.zeros(1, 3))
    shares = [
        sum(float(d) for d in SoftThreshold(s_init=s).attach(model, found, 1).density().values())
        for s in (-9.0, -2.0, -1.0, -0.5, -0.1)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


# slimming


def test_scales_shrink_by_exactly_rate_times_strength() -> None:
    gamma = nn.Parameter(torch.tensor([0.5, -0.3, 0.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([gamma], lr=0.1)
    for step in range(1, 5):
        optimizer.zero_grad()
        torch.autograd.backward(0.2 * l1([gamma]))
        optimizer.step()
        assert gamma.tolist() == pytest.approx([0.5 - 0.02 * step, -0.3 + 0.02 * step, 0.0])


def test_slimming_reads_batch_norms_and_gates_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    found = trace(model.eval(), torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    gate = NetworkSlimming(strength=0.1).attach(model, found, 1)
    scores = list(gate.scores().values())
    assert scores[0].tolist() == [0.5, 2.0, 0.0, 1.0]
    assert scores[1].tolist() == [1.0, 1.0, 1.0]
    assert float(gate.penalty().detach()) == pytest.approx(0.1 * (3.5 + 3.0))
    x = torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(torch.func.functional_call(model, gate.final(), (x,)), model(x))


def test_a_channel_with_scale_and_shift_0_can_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    found = trace(model, torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        model[1].weight[1] = model[1].bias[1] = 0.0
    x = torch.randn(2, 1, 2, 2)
    expected = model(x)
    with masked(model, found, {found.network.groups[0].name: np.array([0, 2, 3])}):
        torch.testing.assert_close(model(x), expected)


# one gate a unit


@pytest.mark.parametrize("network", ["resnet20", "mobilenetv2", "vgg"])
def test_a_closed_gate_is_the_removal(network: str) -> None:
    torch.manual_seed(0)
    model = MODELS[network]().eval()
    found = trace(model, torch.zeros(1, 1, 32, 32))
    slices = UnitSlices(model, found)
    generator = torch.Generator().manual_seed(1)
    gates = {name: (torch.rand(n, generator=generator) < 0.7).float() for name, n in slices.counts.items()}
    kept = {}
    for group in found.network.groups:
        gates[group.name][0] = 1.0
        units = found.units[group.name][gates[group.name].bool().numpy()]
        kept[group.name] = np.sort(units.ravel())
    x = torch.randn(2, 1, 32, 32, generator=generator)
    gated = torch.func.functional_call(model, slices.scaled(gates), (x,))
    with masked(model, found, kept):
        torch.testing.assert_close(gated, model(x), rtol=1e-4, atol=1e-5)


def test_sizes_are_what_a_unit_removes() -> None:
    model = mlp()
    slices = UnitSlices(model, trace(model, torch.zeros(1, 3)))
    assert list(slices.sizes.values()) == [3 + 1 + 2]  # a row, its bias, a column


# multipliers


def test_multipliers_climb_by_hand() -> None:
    lagrangian = Lagrangian(rate=0.5)
    share = torch.tensor(0.9, requires_grad=True)
    assert float(lagrangian.penalty(share, 0.4).detach()) == pytest.approx(DAMPING * 0.25)
    lagrangian.ascend(0.9, 0.4)
    assert (lagrangian.linear, lagrangian.square) == pytest.approx((0.25, DAMPING + 0.125))
    assert lagrangian.strength(0.5, 0.4) == pytest.approx(math.exp(0.25 + DAMPING * 0.1))
    value = lagrangian.penalty(share, 0.4)
    assert float(value.detach()) == pytest.approx(0.25 * 0.5 + (DAMPING + 0.125) * 0.25)
    (slope,) = torch.autograd.grad(value, share)
    assert float(slope) == pytest.approx(0.25 + 2 * (DAMPING + 0.125) * 0.5)
    lagrangian.ascend(-100.0, 0.0)
    assert lagrangian.linear == -LIMIT


def test_the_target_falls_from_dense_to_itself() -> None:
    assert [target_at(p, 0.4, 0.5) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.7, 0.4, 0.4])
    assert target_at(0.0, 0.4, 0.0) == 0.4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HardConcrete(drop_rate=1.0), "drop_rate"),
        (lambda: GumbelSoftmax(temperature_end=2.0), "temperatures"),
        (lambda: VariationalDropout(kl_from=0.5, kl_to=0.1), "in order"),
        (lambda: SoftThreshold(s_init=1.0), "s_init"),
        (lambda: NetworkSlimming(strength=-1.0), "strength"),
        *((lambda make=make: make(learning_rate=0.0), "learning_rate") for make in GATES.values()),
        (lambda: HardConcrete(target_warmup=2.0), "target_warmup"),
    ],
)
def test_bad_values_are_named(make: object, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        make()  # type: ignore[operator]
