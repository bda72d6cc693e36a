"""Masked training by hand: what is off stays off, what is rewound is bit for bit, what is shrunk trains alike."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from amcsearch.graph.batch import Batch
from amcsearch.graph.removal import remove, removed_positions
from amcsearch.graph.slices import check_kept
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.mask_schedule import MaskSchedule, Plan
from amcsearch.methods.schedules.dynamic_surgery import DynamicSurgery
from amcsearch.methods.schedules.lottery import Lottery, round_lengths
from amcsearch.methods.schedules.one_shot import OneShot
from amcsearch.methods.schedules.rigl import RigL
from amcsearch.methods.unit_slices import UnitSlices
from amcsearch.training.loop import fit
from amcsearch.training.recipe import TrainingRecipe
from amcsearch.training.resume import StateFile
from amcsearch.training.sparsification import FixedMasks, MaskedTraining, MaskedUnits, bake


def blobs(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return TensorDataset(torch.randn(count, 6, generator=generator) + 2.0 * y[:, None], y)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


RECIPE = TrainingRecipe(epochs=6, learning_rate=0.1, batch_size=16, weight_decay=0.05)
STEPS = 24


def hooked(model, schedule, sparsity=0.5, recipe=RECIPE):
    weights = {"0.weight": model[0].weight, "3.weight": model[3].weight}
    plan = Plan(recipe.epochs * 4, 64, sparsity)
    return MaskedTraining(weights, schedule, plan, lambda: {n: w.detach().abs() for n, w in weights.items()})


class Spy(MaskedTraining):
    """Notes the network before every step."""

    def watch(self, model):
        self.model, self.history = model, []
        return self

    def update(self, optimizer, step):
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        masks = dict(self.masks)
        super().update(optimizer, step)
        self.history.append((before, masks, {name: w.grad for name, w in self._weights.items()}))


def spied(model, schedule, sparsity=0.5, recipe=RECIPE):
    hook = hooked(model, schedule, sparsity, recipe)
    return Spy(hook._weights, schedule, hook._plan, hook._scores).watch(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_pruned_weights_stay_0_under_momentum_and_decay(optimizer):
    model = network()
    recipe = TrainingRecipe(epochs=6, learning_rate=0.05, batch_size=16, weight_decay=0.1, optimizer=optimizer)
    hook = spied(model, OneShot(), recipe=recipe)
    fit(model, blobs(), recipe, seed=0, hook=hook)
    for before, masks, _ in hook.history:
        assert all((before[name][~mask] == 0).all() for name, mask in masks.items())
    assert sum(int((model.get_parameter(name) != 0).sum()) for name in hook.masks) == 32


def test_masked_training_equals_training_the_shrunken_network():
    dense = network()
    found = trace(dense, torch.zeros(1, 6))
    (group,) = found.network.groups
    kept = {group.name: np.array([0, 2, 3, 6])}
    masks = {}
    for (name, dim), gone in removed_positions(found, check_kept(found, kept)).items():
        tensor = dict(dense.named_parameters()).get(name)
        if tensor is not None:
            keep = masks.setdefault(name, torch.ones_like(tensor, dtype=torch.bool))
            keep.index_fill_(dim, torch.from_numpy(gone), False)
    masked, small = copy.deepcopy(dense), remove(dense, found, kept)
    weights = {name: masked.get_parameter(name) for name in masks}
    hook = MaskedTraining(weights, FixedMasks(masks), Plan(STEPS, 64, 0.5), dict)
    fit(masked, blobs(), RECIPE, seed=0, hook=hook)
    fit(small, blobs(), RECIPE, seed=0)
    shrunk = remove(masked, found, kept)
    for a, b in zip(shrunk.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_surgery_trains_pruned_weights_and_splices_them_with_their_value():
    model = network()
    schedule = DynamicSurgery(gamma=0.0, stop_at=1.0)
    hook = spied(model, schedule)
    fit(model, blobs(), TrainingRecipe(epochs=6, learning_rate=0.3, batch_size=16), seed=0, hook=hook)
    trained = spliced = 0
    for (_, masks, gradients), (after, later, _) in zip(hook.history, hook.history[1:], strict=False):
        for name, mask in masks.items():
            off = ~mask
            trained += int((gradients[name][off] != 0).sum())
            back = off & later[name]
            spliced += int(back.sum())
            assert (after[name][back] != 0).all()
    assert trained > 0
    assert spliced > 0
    assert sum(int(mask.sum()) for mask in hook.masks.values()) == 32


def test_rigl_grows_from_0_at_constant_count_and_leaves_the_function_alone():
    model = network()
    hook = spied(model, RigL(interval=4, alpha=0.5), sparsity=0.6)
    fit(model, blobs(), RECIPE, seed=0, hook=hook)
    moves = 0
    for (before, masks, _), (after, later, _) in zip(hook.history, hook.history[1:], strict=False):
        for name in masks:
            assert int(later[name].sum()) == int(masks[name].sum())
            grown = later[name] & ~masks[name]
            if grown.any():
                moves += 1
                kept = masks[name] & later[name]
                assert (after[name][grown] == 0).all()
                assert torch.equal(after[name][kept], before[name][kept])  # the optimiser left this step out
    assert moves > 2


@pytest.mark.parametrize("rewind_to", [0.0, 0.4])
def test_survivors_go_back_bit_for_bit(rewind_to):
    model, schedule = network(), Lottery(rate=0.3, rewind_to=rewind_to)
    hook = spied(model, schedule, sparsity=0.5)
    fit(model, blobs(), RECIPE, seed=0, hook=hook)
    _, k = round_lengths(hook._plan, schedule)
    early = hook.history[k][0]
    backs = [step for step in range(STEPS) if schedule.rewinds(step, hook._plan)]
    assert len(backs) == 2
    for step in backs:
        now, masks, _ = hook.history[step + 1]
        for name in ("0.bias", "1.weight", "3.bias"):
            assert torch.equal(now[name], early[name])
        for name, mask in masks.items():
            assert torch.equal(now[name][mask], early[name][mask])
            assert (now[name][~mask] == 0).all()
            assert not (mask & ~hook.history[step][1][name]).any()
    assert [sum(int(m.sum()) for m in hook.history[step + 1][1].values()) for step in backs] == [44, 32]


@pytest.mark.parametrize("schedule", [RigL(interval=3), Lottery(rewind_to=0.2), DynamicSurgery()])
def test_a_killed_masked_training_goes_on_to_the_same_masks(schedule: MaskSchedule, tmp_path):
    class KilledError(Exception):
        pass

    def kill(epoch, _):
        if epoch == 3:
            raise KilledError

    whole, part, rest = network(), network(), network()
    hook = hooked(whole, schedule)
    fit(whole, blobs(), RECIPE, seed=0, hook=hook)
    store = StateFile(tmp_path / "state.pt")
    with pytest.raises(KilledError):
        fit(part, blobs(), RECIPE, seed=0, hook=hooked(part, schedule), store=store, progress=kill)
    resumed = hooked(rest, schedule)
    fit(rest, blobs(), RECIPE, seed=0, hook=resumed, store=store)
    assert all(torch.equal(hook.masks[name], resumed.masks[name]) for name in hook.masks)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))


def test_bake_writes_zeros():
    model = nn.Linear(2, 1)
    bake(model, {"weight": torch.tensor([[True, False]])})
    assert model.weight[0, 1] == 0
    assert model.weight[0, 0] != 0


class Toggle(MaskSchedule):
    """Closes unit 1 at step 0 and opens it at step 2."""

    def masks(self, moment):
        if moment.step in (0, 2):
            closed = 1 if moment.step == 0 else -1
            return {name: torch.arange(len(mask)) != closed for name, mask in moment.masks.items()}
        return None


def test_a_closed_unit_is_read_by_nobody_and_opens_at_0():
    model = network()
    slices = UnitSlices(model, trace(model.eval(), torch.zeros(1, 6)))
    hook = MaskedUnits(slices, Toggle(), Plan(4, 8, 0.0), dict)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, gradients = torch.randn(5, 6), []
    for step in range(4):
        optimizer.zero_grad()
        output = hook.forward(model, Batch.of(x), step)
        if step in (1, 2):
            silenced = copy.deepcopy(model)
            with torch.no_grad():
                silenced[3].weight[:, 1] = 0.0
            torch.testing.assert_close(output, silenced(x))
        torch.autograd.backward(output.square().mean())
        gradients.append(model[3].weight.grad[:, 1].clone())
        (mask_gradient,) = (gate.grad for gate in hook._used.values())
        assert (mask_gradient != 0).any()
        hook.update(optimizer, step)
        if step == 2:
            grown = model[3].weight[:, 1].detach().clone()
    assert (gradients[0] != 0).any()
    assert (gradients[1] == 0).all()
    assert (grown == 0).all()
    assert (model[3].weight[:, 1] != 0).any()  # it learns again


def test_surgery_on_units_trains_what_is_closed():
    model = network()
    slices = UnitSlices(model, trace(model.eval(), torch.zeros(1, 6)))
    (name,) = slices.counts
    gates = {name: torch.tensor([0.0, 1.0] * 4, requires_grad=True)}
    x = torch.randn(5, 6)
    grads = []
    for straight in (False, True):
        out = functional_call(model, slices.scaled(gates, straight_through=straight), (x,))
        grads.append(torch.autograd.grad(out.square().sum(), (model[3].weight, gates[name])))
    assert (grads[0][0][:, 0] == 0).all()
    assert (grads[1][0][:, 0] != 0).any()
    torch.testing.assert_close(grads[0][0][:, 1], grads[1][0][:, 1])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_frozen_weights_are_masked_and_not_trained():
    """Half of the 48 + 16 weights go, the smallest of both layers; the frozen layer's others stay as they were."""
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    hook = hooked(model, OneShot())
    fit(model, blobs(), RECIPE, seed=0, hook=hook)
    mask = hook.masks["0.weight"]
    assert sum(int(each.sum()) for each in hook.masks.values()) == 32
    assert 0 < mask.sum() < 48
    assert torch.equal(model[0].weight, before * mask)
