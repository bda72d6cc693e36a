"""What every gate promises, on a CNN, a transformer for images and a language model."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.gates import GATES
from amcsearch.training.loop import TrainingRecipe, fit
from amcsearch.training.losses import logits
from amcsearch.training.models import MODELS
from amcsearch.training.resume import StateFile
from amcsearch.training.sparsification import GatedTraining

NETWORKS = {
    "resnet20": {"width": 4, "depth": 8},
    "vit": {"dim": 16, "depth": 1, "num_heads": 2, "mlp_width": 24, "image_size": 16},
    "language_model": {"dim": 16, "depth": 1, "num_heads": 2, "vocabulary": 32, "tie_embeddings": True},
}
RECIPE = TrainingRecipe(epochs=4, learning_rate=0.02, batch_size=4)
STEPS = 16


@cache
def data(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "language_model":
        tokens = torch.randint(0, 32, (16, 9), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(16, 1, 16, 16, generator=generator), torch.arange(16) % 10


def made(network: str, gate: str) -> tuple[nn.Module, Trace, Gate, GateMethod]:
    torch.manual_seed(0)
    model = MODELS[network](**NETWORKS[network])
    found = trace(model.eval(), data(network)[0][:1])
    method = GATES[gate]()
    return model, found, method.attach(model, found, 16), method


def mean_density(densities: object) -> Tensor:
    values = [d.double().mean() for d in densities.values()]  # type: ignore[attr-defined]
    return torch.stack(values).mean()


def hook_of(gate: Gate, method: GateMethod) -> GatedTraining:
    return GatedTraining(gate, method, mean_density, 0.4, STEPS)


@pytest.mark.parametrize("gate_name", GATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_gate_names_its_items_and_is_differentiable(network: str, gate_name: str) -> None:
    model, found, gate, method = made(network, gate_name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    groups = {g.name: (g.channels // g.unit,) for g in found.network.groups}
    scores, densities = gate.scores(), gate.density()
    assert set(scores) == set(densities)
    for name, score in scores.items():
        shape = groups[name] if method.granularity == "units" else parameters[name].shape
        assert tuple(score.shape) == tuple(shape)
        assert torch.isfinite(score).all()
        assert ((densities[name] >= 0) & (densities[name] <= 1)).all()
    if method.granularity == "units":
        assert set(scores) == set(groups)
    gate.begin_step(1.0)
    inputs = data(network)[0]
    for tensors in (gate.tensors(), gate.final()):
        assert all(tensor.shape == parameters[name].shape for name, tensor in tensors.items())
    with gate.noise(model):
        output = logits(functional_call(model, gate.tensors(), (inputs,)))
    torch.autograd.backward(output.square().mean() + gate.penalty())
    learnt = list(gate.parameters())
    assert learnt or gate_name == "slimming"
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learnt)
    assert any(bool((p.grad != 0).any()) for p in learnt if p.grad is not None) or gate_name == "slimming"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if "running" not in name)


@pytest.mark.parametrize("gate_name", GATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_gated_training_repeats_and_goes_on_after_a_kill(network: str, gate_name: str, tmp_path: object) -> None:
    class KilledError(Exception):
        pass

    def kill(epoch: int, _: float) -> None:
        if epoch == 2:
            raise KilledError

    dataset = TensorDataset(*data(network))
    whole, _, gate, method = made(network, gate_name)
    start = copy.deepcopy(gate.scores())
    fit(whole, dataset, RECIPE, seed=0, hook=hook_of(gate, method))
    assert any(not torch.equal(start[name], value) for name, value in gate.scores().items())
    store = StateFile(tmp_path / "state.pt")  # type: ignore[operator]
    part, _, first, _ = made(network, gate_name)
    with pytest.raises(KilledError):
        fit(part, dataset, RECIPE, seed=0, hook=hook_of(first, method), store=store, progress=kill)
    rest, _, second, _ = made(network, gate_name)
    fit(rest, dataset, RECIPE, seed=0, hook=hook_of(second, method), store=store)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    assert all(torch.equal(value, second.scores()[name]) for name, value in gate.scores().items())


@pytest.mark.parametrize("gate_name", [name for name in GATES if name != "slimming"])
def test_the_multipliers_move_the_density_towards_the_target(gate_name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(128) % 2
    dataset = TensorDataset(torch.randn(128, 6, generator=generator) + 2.0 * y[:, None], y)
    method = GATES[gate_name]()
    recipe = TrainingRecipe(epochs=30, learning_rate=0.05, batch_size=16, weight_decay=0.0)
    gate = method.attach(model, trace(model.eval(), torch.zeros(1, 6)), 128)
    fit(model, dataset, recipe, seed=0, hook=GatedTraining(gate, method, mean_density, 0.4, 240))
    assert abs(float(mean_density(gate.density()).detach()) - 0.4) < 0.2
