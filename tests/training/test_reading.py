"""Data of any size: how often samples are read, what is held, and that streamed samples are those that are held."""

import tracemalloc
import weakref
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import HeldBatches, PerSample
from amcsearch.training.cuts import as_datasets, collate_of, make_splits
from amcsearch.training.forms import PAIR, Form
from amcsearch.training.loop import TrainingRecipe, fit
from amcsearch.training.preparation import checked_splits, fixed_splits
from amcsearch.training.reading import (
    StepParts,
    StreamedBatches,
    TrainReader,
    all_targets,
    batches_of,
    is_ragged,
    read_in_order,
)
from amcsearch.training.splits import DataSplits, Items, is_in_memory, length, read
from amcsearch.training.surveys import check_splits


class Lazy(Dataset):
    """Samples that are made when they are asked for, and counted."""

    def __init__(self, samples, noise=0.0):
        self.samples, self.noise, self.reads = samples, noise, 0

    def __len__(self):
        return self.samples

    def __getitem__(self, i):
        self.reads += 1
        if i >= self.samples:
            raise IndexError(i)
        return torch.full((3,), float(i)) + self.noise * torch.randn(3), i % 4


class Stream(IterableDataset):
    """Samples in their own order, and how many were read."""

    def __init__(self, samples):
        self.samples, self.reads = samples, 0

    def __iter__(self):
        for i in islice(count(), self.samples):
            self.reads += 1
            yield torch.full((3,), float(i)), i % 4


class Sized(Stream):
    """An iterable data set with a length."""

    def __len__(self):
        return self.samples


def prepared(data, memory_mib=100.0, limit=None, **sizes):
    cut = make_splits(data, sizes, 0, memory_mib=memory_mib)
    splits, _ = fixed_splits(cut, 0, memory_mib=memory_mib, limit=limit)
    more = {} if limit is None else {"limit": limit}
    checked, _, _ = checked_splits(splits, input_shape=(3,), output_shape=(4,), targets="given", seed=0, **more)
    return checked


SIZES = {"calibration": 40, "search": 40, "test": 40}


@pytest.mark.parametrize("samples", [10_000, 1_000_000])
def test_a_large_train_split_is_neither_held_nor_read_through(samples):
    prepared({name: Lazy(40) for name in ("train", *SIZES)})  # imports what is imported late
    data = Lazy(samples)
    tracemalloc.start()
    splits = prepared({"train": data, **{name: Lazy(40) for name in SIZES}})
    batches = TrainReader(splits.train, 0).epoch([np.arange(8)] * 4, 0)
    assert sum(batch.size for batch in batches) == 32
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.reads < 1200
    assert peak < 2_000_000
    assert length(splits.train, "train") == samples


@pytest.mark.parametrize("samples", [10_000, 1_000_000])
def test_cuts_of_a_large_split_neither_read_nor_number_it(samples):
    data = Lazy(samples)
    tracemalloc.start()
    splits = make_splits({"train": data}, SIZES, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.reads == 1
    assert peak < 1_000_000
    assert len(splits.train) == samples - 80


@given(st.integers(10, 80), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=30)
def test_cuts_without_classes_are_disjoint_complete_and_repeat(samples, search, test, seed):
    sizes = {"search": search, "test": test, "calibration": 2}
    rows = []
    for _ in range(2):
        splits = make_splits({"train": Lazy(samples)}, sizes, seed)
        rows.append({name: list(getattr(splits, name).indices) for name in ("train", *sizes)})
    assert rows[0] == rows[1]
    assert {name: len(rows[0][name]) for name in sizes} == sizes
    assert sorted(rows[0]["train"] + rows[0]["search"] + rows[0]["test"]) == list(range(samples))
    assert set(rows[0]["calibration"]) <= set(rows[0]["train"])


def test_a_plan_reads_tens_of_samples():
    data = [Lazy(n) for n in (4000, 64, 64)]
    splits = prepared(dict(zip(("train", "search", "test"), data, strict=True)), limit=12, calibration=64)
    assert sum(each.reads for each in data) < 100
    assert [length(getattr(splits, name), name) for name in ("calibration", "search", "test")] == [12, 12, 12]


def test_every_split_but_train_is_read_once_and_a_few_samples_again():
    data = {name: Lazy(200) for name in ("train", "calibration", "search", "test")}
    prepared(data)
    for name in ("calibration", "search", "test"):
        assert 200 < data[name].reads <= 200 + 20


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_streamed_samples_are_those_that_are_held(noise):
    data = {"train": Lazy(300, noise)}
    held, streamed = prepared(data, **SIZES), prepared(data, memory_mib=1e-5, **SIZES)
    for name in SIZES:
        left = batches_of(getattr(held, name), 16, name)
        right = batches_of(getattr(streamed, name), 16, name)
        assert isinstance(left, HeldBatches)
        assert isinstance(right, StreamedBatches)
        for batches in (right, right, right.batched(7), right.chosen(range(40))):
            got = torch.cat([batch.args[0] for batch in batches])
            assert torch.equal(got, left.whole.args[0])
        assert torch.equal(all_targets(right), all_targets(left))
        assert torch.equal(
            torch.cat([b.args[0] for b in right.chosen([5, 2])]), next(iter(left.chosen([5, 2]))).args[0]
        )
        assert [batch.size for batch in right] == [16, 16, 8]


def test_streamed_samples_are_not_kept():
    data = {"train": Lazy(300), "search": Lazy(50), "test": Lazy(50)}
    splits = prepared(data, memory_mib=1e-5)
    before = data["search"].reads
    batches = batches_of(splits.search, 16, "search")
    for _ in range(2):
        assert sum(batch.size for batch in batches) == 50
    assert data["search"].reads == before + 100


def test_one_hot_targets_of_streams_become_class_ids():
    rows = torch.eye(4)

    class OneHot(Lazy):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x, rows[y]

    for memory_mib in (100.0, 1e-5):
        splits = prepared({"train": OneHot(200)}, memory_mib=memory_mib, **SIZES)
        assert all_targets(batches_of(splits.search, 16)).bincount().sum() == 40
        assert read(splits.train, [0, 1]).targets.dtype == torch.int64


def test_workers_read_the_same_batches():
    data = Items(Lazy(50), workers=2)
    plain = [batch.args[0] for batch in batches_of(Items(Lazy(50)), 8)]
    read_by_workers = [batch.args[0] for batch in batches_of(data, 8)]
    assert all(torch.equal(a, b) for a, b in zip(plain, read_by_workers, strict=True))


def test_random_transforms_in_workers_repeat_by_seed_and_differ_from_epoch_to_epoch():
    parts = [np.arange(8), np.arange(8, 16)]

    def epoch(number):
        reader = TrainReader(Items(Lazy(50, noise=1.0), workers=2), seed=3)
        return torch.cat([batch.args[0] for batch in reader.epoch(parts, number)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def test_what_fails_in_a_worker_is_the_users_error():
    class Failing(Lazy):
        def __getitem__(self, i):
            if i == 7:
                raise OSError("disk gone")
            return super().__getitem__(i)

    with pytest.raises(BadInputError, match=r"sample 7 of the search split raised OSError: disk gone \(.*test_reading"):
        list(batches_of(Items(Failing(20), workers=2), 4, "search"))


def test_the_first_samples_of_iterable_splits_are_taken():
    data = {"train": Lazy(300), "search": Stream(10_000), "test": Stream(30)}
    splits = prepared(data, search=25, calibration=20)
    assert batches_of(splits.search, 64).whole.args[0][:, 0].tolist() == list(range(25))
    assert length(splits.test, "test") == 30
    assert data["search"].reads == 25


@pytest.mark.parametrize("samples", [Stream(2000), Sized(2000)], ids=["without a length", "with a length"])
def test_iterable_splits_over_the_memory_limit_are_read_at_every_use(samples):
    data = {"train": Lazy(300), "search": samples, "test": Lazy(30)}
    splits = prepared(data, memory_mib=0.005, search=1000, calibration=20)
    batches = batches_of(splits.search, 64, "search")
    assert isinstance(batches, StreamedBatches)
    assert batches.samples == 1000
    for _ in range(2):
        read_values = torch.cat([batch.args[0][:, 0] for batch in batches])
        assert read_values.tolist() == list(range(1000))
    with pytest.raises(BadInputError, match=r"the search split ended before sample 2000; lower .* data\.splits"):
        prepared(data, memory_mib=0.005, search=3000, calibration=20)


def test_an_iterable_train_split_needs_its_own_other_splits_and_the_samples_of_an_epoch():
    stream = Stream(10_000)
    with pytest.raises(BadInputError, match=r"a stream \(Stream\) without a length; set data\.epoch_samples"):
        make_splits({"train": Items(stream), "search": Lazy(20), "test": Lazy(20)}, {}, 0)
    train = Items(stream, epoch_samples=100)
    with pytest.raises(BadInputError, match="iterable data set, from which search and test cannot be cut"):
        make_splits({"train": train}, {}, 0)
    splits = prepared({"train": train, "search": Lazy(20), "test": Lazy(20)}, calibration=30)
    assert length(splits.train, "train") == 100
    assert length(splits.calibration, "calibration") == 30
    assert stream.reads < 600


def test_an_iterable_train_split_goes_on_from_epoch_to_epoch_and_begins_again():
    reader = TrainReader(Items(Stream(10), epoch_samples=6), 0)
    parts = [np.arange(3), np.arange(3)]
    epochs = [torch.cat([b.args[0][:, 0] for b in reader.epoch(parts, n)]).tolist() for n in range(2)]
    assert epochs == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 1]]
    resumed = TrainReader(Items(Stream(10), epoch_samples=6), 0)
    resumed.drawn = 6
    assert torch.cat([b.args[0][:, 0] for b in resumed.epoch(parts, 1)]).tolist() == epochs[1]


def test_an_empty_stream_is_refused():
    with pytest.raises(BadInputError, match="train split has no samples"):
        list(TrainReader(Items(Stream(0), epoch_samples=6), 0).epoch([np.arange(3)], 0))


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, left, *, right):
        return self.layer(left + right)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_on_several_inputs_is_that_on_their_sum(workers):
    torch.manual_seed(0)
    left, right, ids = torch.randn(40, 3), torch.randn(40, 3), torch.arange(40) % 4
    recipe = TrainingRecipe(2, 0.1, 8)
    form = Form(((0,),), (("right", (1,)),), (2,), 3)
    several, plain = Sums(), nn.Linear(3, 4)
    plain.load_state_dict(several.layer.state_dict())
    rows = list(zip(left, right, ids, strict=True))
    fit(several, Items(rows if not workers else Rows(rows), form, workers=workers), recipe, seed=1)
    fit(plain, TensorDataset(left + right, ids), recipe, seed=1)
    assert torch.allclose(several.layer.weight, plain.weight, atol=1e-6)


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def test_a_training_on_a_stream_takes_its_samples_in_order():
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    stream = Stream(64)
    losses = fit(model, Items(stream, epoch_samples=32), TrainingRecipe(2, 0.001, 8), seed=1)
    assert len(losses) == 2
    assert stream.reads == 64


def test_ragged_targets_are_held_for_each_sample():
    samples = Rows([(torch.full((3,), float(n)), torch.ones(n % 3, 4)) for n in range(30)])
    form = Form(((0,),), (), (1,), 2, is_ragged=True)
    data = {name: Items(samples, form) for name in ("train", "calibration", "search", "test")}
    splits, _ = fixed_splits(make_splits(data, {}, 0), 0)
    check_splits(splits, input_shape=(3,), num_classes=None, are_class_ids=False)
    batches = batches_of(splits.search, 8)
    first = next(iter(batches))
    assert isinstance(batches, HeldBatches)
    assert isinstance(first.targets, PerSample)
    assert [len(target) for target in first.targets] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(all_targets(batches)) == 30


def test_targets_of_batches_that_are_padded_are_joined_and_have_one_shape_but_for_lengths():
    items = [(torch.full((n % 3 + 1,), 1.0), torch.full((n % 3 + 1,), n)) for n in range(7)]

    def padded(drawn):
        length = max(len(x) for x, _ in drawn)
        return tuple(torch.stack([F.pad(part[k], (0, length - len(part[k]))) for part in drawn]) for k in (0, 1))

    split = Items(items, PAIR, padded)
    assert all_targets(batches_of(split, 2)).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 0, 0, 4, 4, 0, 5, 5, 5, 6]
    surveys = check_splits(DataSplits(*[split] * 4), input_shape=None, num_classes=None)
    assert surveys["train"].target_shape in ((None,), (3,))
    assert surveys["train"].is_padded


def test_a_list_of_a_collate_is_of_samples_where_it_is_as_long_as_every_batch():
    items = [(torch.ones(2), torch.ones(n % 3, 4)) for n in range(9)]

    def listed(drawn):
        return torch.stack([x for x, _ in drawn]), [y for _, y in drawn]

    def heads(drawn):
        return torch.stack([x for x, _ in drawn]), [torch.zeros(len(drawn)), torch.ones(len(drawn), 4)]

    assert is_ragged(Items(items, PAIR, listed))
    assert not is_ragged(Items(items, PAIR, heads))
    batches = batches_of(Items(items, replace(PAIR, is_ragged=True), listed), 4)
    assert [len(y) for y in all_targets(batches)] == [0, 1, 2] * 3
    with pytest.raises(BadInputError, match="has a list as targets, expected a list of 4"):
        next(iter(batches_of(Items(items, replace(PAIR, is_ragged=True), heads), 4)))
    with pytest.raises(BadInputError, match=r"targets of a batch have the tensors 0, 1, 2, 3, those of another 0;"):
        all_targets(batches_of(Items(items, PAIR, listed), 4))


def test_batches_of_collate_are_made_anew_from_samples_in_memory():
    data = Lazy(40)

    def joined(drawn):
        return torch.stack([x for x, _ in drawn]), [y for _, y in drawn]

    four = {name: Items(data, PAIR, joined) for name in ("train", "calibration", "search", "test")}
    splits, _ = fixed_splits(make_splits(four, {}, 0), 0)
    before = data.reads
    assert [batch.size for batch in batches_of(splits.search, 16)] == [16, 16, 8]
    assert data.reads == before
    assert is_in_memory(splits.search)


def test_names_of_validation_mean_search():
    for name in ("val", "valid", "validation", "dev"):
        assert set(as_datasets({"train": Lazy(9), name: Lazy(5)})) == {"train", "search"}
    with pytest.raises(BadInputError, match="val and search are both the search split"):
        as_datasets({"train": Lazy(9), "val": Lazy(5), "search": Lazy(5)})


def test_a_tuple_of_data_sets_is_refused_with_the_cure():
    with pytest.raises(BadInputError, match=r"returned a tuple of 2 data sets .*'search': …"):
        as_datasets((Lazy(9), Lazy(5)), "data.factory")


def test_loaders_give_their_data_set_their_samples_and_their_collate():
    data = Lazy(20)
    loader = DataLoader(data, 4, sampler=SubsetRandomSampler([3, 5, 7]))
    (train,) = as_datasets(loader).values()
    assert type(train) is Subset
    assert [int(read(train, [i]).args[0][0, 0]) for i in range(3)] == [3, 5, 7]
    assert collate_of({"train": loader}) is None

    def mine(drawn):
        return drawn

    assert collate_of({"train": DataLoader(data, collate_fn=mine), "test": DataLoader(data, collate_fn=mine)}) is mine
    with pytest.raises(BadInputError, match=r"different collate_fn; give data\.collate"):
        collate_of({"train": DataLoader(data, collate_fn=mine), "test": DataLoader(data)})
    with pytest.raises(BadInputError, match="batch_size=None"):
        as_datasets(DataLoader(data, batch_size=None))


def test_tuples_of_tensors_are_items_of_as_many_parts():
    (train,) = as_datasets((torch.zeros(5, 2), torch.ones(5, 3), torch.arange(5))).values()
    assert len(train[0]) == 3
    with pytest.raises(BadInputError, match=r"tensors of \[5, 4, 5\] samples"):
        as_datasets((torch.zeros(5, 2), torch.ones(4, 3), torch.arange(5)))


def test_a_stream_is_gone_through_once_for_many_batches():
    stream = Stream(10_000)
    parts = [np.arange(i, i + 8) for i in range(0, 512, 8)]
    batches = read_in_order(Items(stream, epoch_samples=10_000), parts, "train")
    assert torch.cat([batch.args[0] for batch in batches])[:, 0].tolist() == list(range(512))
    assert stream.reads == 512


@pytest.mark.parametrize(("rows", "words"), [([2, 7], "ended before sample 7"), ([3, 2], "in their order")])
def test_a_stream_says_what_it_cannot_give(rows, words):
    with pytest.raises(BadInputError, match=words):
        read(Items(Stream(4), epoch_samples=10), rows, "train")


def test_batches_of_an_epoch_by_hand():
    # 7 samples in 3 steps: 3, 2 and 2 of them; a step has two batches
    parts = StepParts(np.array([4, 2, 6, 0, 5, 1, 3]), 3, 2)
    assert [part.tolist() for part in parts] == [[4, 2], [6], [0], [5], [1], [3]]
    assert [(parts.samples(i), parts.count(i)) for i in range(3)] == [(3, 2), (2, 2), (2, 2)]
    assert [part.tolist() for part in parts[2:4]] == [[0], [5]]
    with pytest.raises(IndexError, match="batch 6 of 6"):
        parts[6]


@given(st.integers(1, 60), st.data())
def test_batches_of_an_epoch_are_nearly_equal_cuts_of_nearly_equal_steps(samples, data):
    steps, most = data.draw(st.integers(1, samples)), data.draw(st.integers(1, 9))
    order = torch.arange(samples)
    cut = [rows.tensor_split(min(most, len(rows))) for rows in order.tensor_split(steps)]
    parts = StepParts(order.numpy(), steps, most)
    assert [part.tolist() for part in parts] == [part.tolist() for of_step in cut for part in of_step]
    assert len(parts) == sum(map(len, cut))
    assert [parts.count(i) for i in range(steps)] == [len(of_step) for of_step in cut]


def test_a_training_reads_every_sample_once_an_epoch_and_holds_a_batch():
    alive = {"now": 0, "most": 0}

    class Followed(Lazy):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            alive["now"] += 1
            alive["most"] = max(alive.values())
            weakref.finalize(x, lambda: alive.update(now=alive["now"] - 1))
            return x, y

    data = Followed(400)
    recipe = TrainingRecipe(epochs=2, learning_rate=1e-6, batch_size=32)
    fit(nn.Linear(3, 4), Items(data), recipe, seed=0)
    assert data.reads == 800
    assert alive["most"] <= 64


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 8, 8), 256), ((3, 32, 32), 256), ((3, 64, 64), 64), ((3, 100, 100), 26), ((3, 224, 224), 16), ((9,), 256)],
)
def test_fewer_large_images_go_through_a_network_at_once(shape: tuple[int, ...], size: int) -> None:
    """256 * 32 * 32 pixels a batch, at least 16 images; a size that is asked for counts more."""
    images = torch.zeros(1, *shape).expand(300, *shape)
    dataset = TensorDataset(images, torch.zeros(300, dtype=torch.long))
    assert [batch.size for batch in batches_of(dataset)][:1] == [size]
    assert [batch.size for batch in batches_of(dataset, 200)] == [200, 100]
