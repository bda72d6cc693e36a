"""The dense network's outputs as targets: what they are, and which criteria still say something there."""

import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from amcsearch.graph import HeldBatches
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import ALIASES, CRITERIA
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.needs import vanishes
from amcsearch.methods.ranking import score_units
from amcsearch.training.data import dense_outputs, with_dense_targets
from amcsearch.training.splits import DataSplits, Items, Samples, read, stacked
from amcsearch.training.tasks import Embedding

EVERY = {
    **{name: CRITERIA[name]() for name in CRITERIA},
    **{alias: CRITERIA[name](**params) for alias, (name, params) in ALIASES.items()},
    "obd exact": CRITERIA["obd"](method="exact"),
    "obd gauss_newton": CRITERIA["obd"](method="gauss_newton"),
    "obd first_order": CRITERIA["obd"](method="exact", first_order=True),
    "fisher per_weight": CRITERIA["fisher"](per_weight=True),
    "movement masked": CRITERIA["movement"](keep=0.5),
}
SILENT = {"taylor", "taylor_bn", "taylor_joint", "taylor_parameterwise", "taylor_per_sample", "taylor_act2017"}


def linear(columns: list[list[float]]) -> tuple[nn.Module, Trace]:
    """Three inputs pass a layer that does nothing, and a layer of these columns reads them: y = sum of x_c W_c."""
    weight = torch.tensor(columns).double().T
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, len(weight), bias=False)).double()
    model[0].weight.data, model[1].weight.data = torch.eye(3).double(), weight.clone()
    return model, trace(model, torch.zeros(1, 3).double())


def scores_at(criterion: Criterion, model: nn.Module, found: Trace, x: Tensor) -> Tensor:
    targets = dense_outputs(model, x)
    scores = score_units(model, found, {"": criterion}, HeldBatches.of(x, targets, 4), Embedding())[""]
    return torch.cat([torch.from_numpy(value) for value in scores.values()])


def test_second_derivatives_by_hand():
    # f = (1.5, 0) + (0, 2) + (1.5, 2) = (3, 4): the third lies along f, the others lie 1.2 across it, |f| = 5
    model, found = linear([[1.0, 0.0], [0.0, 2.0], [1.5, 2.0]])
    x = torch.tensor([[1.5, 1.0, 1.0]]).double()
    expected = torch.tensor([0.5 * 1.44 / 25, 0.5 * 1.44 / 25, 0.0]).double()
    torch.testing.assert_close(scores_at(CRITERIA["obd"](method="exact"), model, found, x), expected)
    drawn = scores_at(CRITERIA["fisher"](labels="model"), model, found, x)
    assert drawn[0] > 1e-3
    torch.testing.assert_close(drawn / drawn[0], torch.tensor([1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("name", EVERY)
def test_needs_that_vanish_are_those_whose_scores_are_zero(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    model = model.double().eval()
    criterion = EVERY[name]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()
    scores = scores_at(criterion, model, trace(model, x[:1]), x)
    is_silent = bool(criterion.needs) and all(map(vanishes, criterion.needs))
    assert is_silent == bool(scores.abs().max() < 1e-12)
    assert is_silent == (name in SILENT or name in {"fisher", "fisher per_weight", "movement"})


def test_every_split_gets_the_outputs_of_the_dense_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    whole = TensorDataset(torch.randn(12, 2), torch.full((12,), -100))
    parts = DataSplits(*(Subset(whole, range(start, start + 3)) for start in (0, 3, 6, 9)))
    found = with_dense_targets(parts, model)
    assert model.training
    for start, split in zip((0, 3, 6, 9), (found.train, found.calibration, found.search, found.test), strict=True):
        inputs, targets = stacked(split)
        assert torch.equal(inputs, whole.tensors[0][start : start + 3])
        torch.testing.assert_close(targets, model.eval()(inputs).detach())
        assert Embedding()(model(inputs), targets).item() == pytest.approx(0.0, abs=1e-6)
        model.train()


def test_outputs_are_the_same_in_any_batches():
    model, _ = linear([[1.0, 0.0], [0.0, 2.0], [1.5, 2.0]])
    x = torch.randn(7, 3).double()
    torch.testing.assert_close(dense_outputs(model, x, 2), dense_outputs(model, x, 100))


class Counted(nn.Module):
    """Doubles its input (n, 3), and counts the samples that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.samples = nn.Parameter(torch.tensor(2.0)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.scale * x


class Made(Dataset):
    """Ten samples (3,) that are made when they are asked for, with or without noise that no seed repeats."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.drawn = noise, 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.drawn += 1
        return torch.arange(3.0) + index + self.noise * self.drawn, -100


def of_dense(data: Samples, memory_mib: float = 1.0) -> tuple[Counted, Samples]:
    model = Counted()
    return model, with_dense_targets(DataSplits(data, data, data, data), model, memory_mib=memory_mib).train


def test_outputs_of_samples_that_come_again_are_not_computed_again() -> None:
    model, train = of_dense(Made())
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [9, 0, 5], [3, 4], range(10)):  # an epoch, and parts of others
        batch = read(train, rows)
        assert torch.equal(batch.targets, 2.0 * batch.args[0])
    assert model.samples == 10


def test_a_batch_with_a_new_sample_is_computed_whole() -> None:
    model, train = of_dense(Made())
    for rows in ([0, 1], [1, 2], [2, 0]):
        assert read(train, rows).targets[:, 0].tolist() == [2.0 * row for row in rows]
    assert model.samples == 4


def test_samples_that_change_get_the_outputs_of_what_they_are_now() -> None:
    model, train = of_dense(Made(noise=1.0))
    for _ in range(3):
        batch = read(train, range(10))
        assert torch.equal(batch.targets, 2.0 * batch.args[0])
    assert model.samples == 30
    assert train.function._kept is None  # a random transform: nothing will come again


@pytest.mark.parametrize(("spare", "samples"), [(0, 10), (-1, 20)])
def test_outputs_are_kept_where_those_of_all_samples_fit(spare: int, samples: int) -> None:
    # ten samples: 3 numbers of 4 bytes each, and 256 bytes beside them
    model, train = of_dense(Made(), memory_mib=(10 * (12 + 256) + spare) / 2**20)
    for _ in range(2):
        read(train, range(10))
    assert model.samples == samples


def test_another_process_starts_without_what_was_kept() -> None:
    _, train = of_dense(Made())
    read(train, range(10))
    sent = pickle.loads(pickle.dumps(train))
    assert torch.equal(read(sent, [7]).targets, read(train, [7]).targets)
    assert (train.function.model.samples, sent.function.model.samples) == (10, 11)


def test_outputs_that_depend_on_more_than_tensors_are_computed_at_every_use() -> None:
    model, train = of_dense(Items(Made(), collate=lambda items: ((torch.stack([x for x, _ in items]), "text"), 0)))
    model.forward = lambda inputs: Counted.forward(model, inputs[0])
    for _ in range(2):
        read(train, range(4))
    assert model.samples == 8
