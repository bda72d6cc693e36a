"""What every gate and mask schedule promises, in trainings of seconds."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from amcsearch.graph import HeldBatches, first_tensor, trace
from amcsearch.methods import (
    CRITERIA,
    Criterion,
    Gate,
    GateMethod,
    MaskSchedule,
    Plan,
    UnitSlices,
    score_units,
    sparse_weights,
    weight_scores,
)
from amcsearch.testing.selection_contracts import NETWORKS, NetworkExample, network_example
from amcsearch.training import (
    CLASS_IDS,
    GatedTraining,
    MaskedTraining,
    MaskedUnits,
    StateFile,
    TrainingRecipe,
    bake,
    fit,
)

__all__ = ["GateContract", "ScheduleContract"]

_STEPS: Final = 16


def _mean_density(densities: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([density.double().mean() for density in densities.values()]).mean()


Tensors = Mapping[str, Tensor]


def _as_they_are(masks: Tensors, ranks: Tensors) -> Tensors:
    del ranks
    return masks


class _KilledError(Exception):
    """Ends a training in the middle."""


class GateContract:
    """What every ``methods.GateMethod`` and its gate promise."""

    _recipe = TrainingRecipe(epochs=4, learning_rate=0.02, batch_size=4)

    def make(self) -> GateMethod:
        """Return the method that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], GateMethod]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture(params=NETWORKS)
    def network(self, request: pytest.FixtureRequest) -> str:
        """Give the tests the name of one small network after another."""
        return str(request.param)

    def _hook(self, gate: Gate, method: GateMethod) -> GatedTraining:
        return GatedTraining(gate, method, _mean_density, 0.4, _STEPS)

    def test_it_names_its_items_and_is_differentiable(self, maker: Callable[[], GateMethod], network: str) -> None:
        """Scores and densities fit the network, and what the gate learns has a gradient."""
        example, method = network_example(network), maker()
        model, trace = example.model, example.trace
        gate = method.attach(model, trace, 16)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        groups = {g.name: (g.channels // g.unit,) for g in trace.network.groups}
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
        for tensors in (gate.tensors(), gate.final()):
            assert all(tensor.shape == parameters[name].shape for name, tensor in tensors.items())
        with gate.noise(model):
            output = first_tensor(functional_call(model, gate.tensors(), (example.inputs,)))
        torch.autograd.backward(output.square().mean() + gate.penalty())
        learnt = list(gate.parameters())
        assert learnt or gate.drive == "fixed"
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learnt)
        assert any(bool((p.grad != 0).any()) for p in learnt if p.grad is not None) or gate.drive == "fixed"
        after = {name: value for name, value in model.state_dict().items() if "running" not in name}
        assert all(torch.equal(before[name], value) for name, value in after.items())

    def test_gated_training_repeats_and_goes_on_after_a_kill(
        self, maker: Callable[[], GateMethod], network: str, tmp_path: Path
    ) -> None:
        """A training that was killed after two epochs ends as one that was not."""

        def kill(epoch: int, _: float) -> None:
            if epoch == 2:
                raise _KilledError

        def made() -> tuple[NetworkExample, Gate, GateMethod]:
            example, method = network_example(network), maker()
            return example, method.attach(example.model, example.trace, 16), method

        whole, gate, method = made()
        start = copy.deepcopy(gate.scores())
        fit(whole.model, whole.dataset, self._recipe, seed=0, hook=self._hook(gate, method))
        assert any(not torch.equal(start[name], value) for name, value in gate.scores().items())
        store = StateFile(tmp_path / "state.pt")
        part, first, method = made()
        hook = self._hook(first, method)
        with pytest.raises(_KilledError):
            fit(part.model, part.dataset, self._recipe, seed=0, hook=hook, store=store, progress=kill)
        resumed, second, method = made()
        fit(resumed.model, resumed.dataset, self._recipe, seed=0, hook=self._hook(second, method), store=store)
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(value, second.scores()[name]) for name, value in gate.scores().items())

    def test_the_multipliers_move_the_density_towards_the_target(self, maker: Callable[[], GateMethod]) -> None:
        """From dense to 0.4 of the items, within 0.2; a gate whose drive is fixed is left alone."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(128) % 2
        dataset = TensorDataset(torch.randn(128, 6, generator=generator) + 2.0 * y[:, None], y)
        method = maker()
        recipe = TrainingRecipe(epochs=30, learning_rate=0.05, batch_size=16, weight_decay=0.0)
        gate = method.attach(model, trace(model.eval(), torch.zeros(1, 6)), 128)
        if gate.drive == "fixed":
            return
        fit(model, dataset, recipe, seed=0, hook=GatedTraining(gate, method, _mean_density, 0.4, 240))
        assert abs(float(_mean_density(gate.density()).detach()) - 0.4) < 0.2


class ScheduleContract:
    """What every ``methods.MaskSchedule`` promises, of single weights and of units, with several criteria."""

    _recipe = TrainingRecipe(epochs=4, learning_rate=0.05, batch_size=4)

    def make(self) -> MaskSchedule:
        """Return the schedule that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], MaskSchedule]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture(params=NETWORKS)
    def network(self, request: pytest.FixtureRequest) -> str:
        """Give the tests the name of one small network after another."""
        return str(request.param)

    def _weights(
        self, schedule: MaskSchedule, network: str, criterion: Criterion, sparsity: float
    ) -> tuple[nn.Module, Mapping[str, Tensor], int]:
        """Train under masks of weights: the model, the masks and how many weights they have to keep."""
        example = network_example(network)
        model, weights = example.model, sparse_weights(example.model, example.trace)
        plan = Plan(_STEPS, sum(w.numel() for w in weights.values()), sparsity)
        data = HeldBatches.of(example.inputs, example.targets, 8), CLASS_IDS

        def scores() -> dict[str, Tensor]:
            return weight_scores(model, example.trace, criterion, weights, *data)

        hook = MaskedTraining(weights, schedule, plan, scores)
        fit(model, example.dataset, self._recipe, seed=0, hook=hook)
        return model, hook.masks, plan.n_keep

    def _units(
        self, schedule: MaskSchedule, network: str, finish: Callable[[Tensors, Tensors], Tensors] = _as_they_are
    ) -> tuple[Mapping[str, Tensor], Mapping[str, int], int]:
        """Train under masks of units: the masks, the units of each group and how many have to stay."""
        example = network_example(network)
        model, slices = example.model, UnitSlices(example.model, example.trace)
        plan = Plan(_STEPS, sum(slices.counts.values()), 0.4)
        data = HeldBatches.of(example.inputs, example.targets, 8), CLASS_IDS

        def scores() -> dict[str, Tensor]:
            values = score_units(model, example.trace, {"": CRITERIA["magnitude"]()}, *data)[""]
            return {name: torch.from_numpy(value) for name, value in values.items()}

        hook = MaskedUnits(slices, schedule, plan, scores, finish)
        fit(model, example.dataset, self._recipe, seed=0, hook=hook)
        return hook.masks, slices.counts, plan.n_keep

    def test_it_ends_exact_and_repeats(self, maker: Callable[[], MaskSchedule], network: str) -> None:
        """The masks keep what the plan says, in every tensor; a second training gives the same network."""
        model, masks, n_keep = self._weights(maker(), network, CRITERIA["magnitude"](), 0.6)
        assert sum(int(mask.sum()) for mask in masks.values()) == n_keep
        assert all(mask.any() for mask in masks.values())
        bake(model, masks)
        assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
        again, masks, _ = self._weights(maker(), network, CRITERIA["magnitude"](), 0.6)
        bake(again, masks)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))

    @pytest.mark.parametrize(
        "criterion", [CRITERIA["taylor"](variant="joint"), CRITERIA["random"]()], ids=["taylor_joint", "random"]
    )
    def test_any_criterion_serves_it(self, maker: Callable[[], MaskSchedule], criterion: Criterion) -> None:
        """Gradients and noise rank as well as magnitudes."""
        _, masks, n_keep = self._weights(maker(), "resnet20", criterion, 0.5)
        assert sum(int(mask.sum()) for mask in masks.values()) == n_keep

    def test_units_open_and_close_by_it(self, maker: Callable[[], MaskSchedule], network: str) -> None:
        """Whole channels and heads in place of single weights."""
        masks, counts, n_keep = self._units(maker(), network)
        assert {name: len(mask) for name, mask in masks.items()} == counts
        assert sum(int(mask.sum()) for mask in masks.values()) == n_keep
        assert all(mask.any() for mask in masks.values())

    def test_the_training_ends_on_masks_that_were_finished(self, maker: Callable[[], MaskSchedule]) -> None:
        """One unit fewer than the schedule counts: the one that it ranks lowest, in the group with most open."""

        def finish(masks: Mapping[str, Tensor], ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            assert {name: rank.shape for name, rank in ranks.items()} == {n: mask.shape for n, mask in masks.items()}
            largest = max(masks, key=lambda name: int(masks[name].sum()))
            closed = masks[largest].clone()
            closed[torch.where(closed, ranks[largest].double(), torch.inf).argmin()] = False
            return {**masks, largest: closed}

        masks, _, n_keep = self._units(maker(), "resnet20", finish)
        assert sum(int(mask.sum()) for mask in masks.values()) == n_keep - 1
