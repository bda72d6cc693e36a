import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.training.cuts import make_splits, stratified
from amcsearch.training.splits import fetch, stacked


def numbered(count, classes=3):
    """Sample i is the number i, its class i mod classes."""
    numbers = torch.arange(count)
    return TensorDataset(numbers.float()[:, None], numbers % classes)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def ids(dataset):
    return stacked(dataset)[0].flatten().int().tolist()


@given(st.integers(20, 200), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_cuts_are_disjoint_complete_and_of_the_asked_size(count, calibration, search, test, seed):
    sizes = {"calibration": calibration, "search": search, "test": test}
    splits = make_splits({"train": numbered(count)}, sizes, seed)
    parts = {name: set(ids(getattr(splits, name))) for name in ("train", "calibration", "search", "test")}
    assert {name: len(parts[name]) for name in sizes} == sizes
    assert parts["train"] | parts["search"] | parts["test"] == set(range(count))
    assert len(parts["train"]) + search + test == count
    assert parts["calibration"] <= parts["train"]
    assert not parts["search"] & parts["test"]


def test_cuts_repeat_by_seed_and_do_not_depend_on_other_sizes():
    data = {"train": numbered(100)}
    one = make_splits(data, {"search": 20, "calibration": 5, "test": 10}, 7)
    same = make_splits(data, {"search": 20, "calibration": 9, "test": 10}, 7)
    other = make_splits(data, {"search": 20, "calibration": 5, "test": 10}, 8)
    assert ids(one.search) == ids(same.search)
    assert ids(one.search) != ids(other.search)


def test_default_sizes_are_a_fifth_and_given_splits_stay():
    test = numbered(7)
    splits = make_splits({"train": numbered(50), "test": test}, {}, 0)
    assert splits.test is test
    assert [len(x) for x in (splits.search, splits.calibration, splits.train)] == [10, 10, 40]


def test_default_sizes_stop_growing_at_512():
    splits = make_splits({"train": numbered(4000)}, {}, 0)
    assert [len(x) for x in (splits.search, splits.calibration, splits.test)] == [512, 512, 800]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_keeps_class_shares_to_within_one(labels, data):
    labels = np.array(labels)
    size = data.draw(st.integers(1, len(labels)))
    chosen = stratified(np.arange(len(labels)), labels, size, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == size
    for label in np.unique(labels):
        share = size * np.mean(labels == label)
        assert abs(np.sum(labels[chosen] == label) - share) <= len(np.unique(labels))


def test_stratified_by_hand():
    labels = np.array([0] * 8 + [1] * 4)
    chosen = stratified(np.arange(12), labels, 6, np.random.default_rng(3))
    assert np.bincount(labels[chosen]).tolist() == [4, 2]


def test_sequence_targets_are_cut_freely():
    data = TensorDataset(torch.zeros(30, 4, dtype=torch.int64), torch.zeros(30, 4, dtype=torch.int64))
    splits = make_splits({"train": data}, {"search": 5, "test": 5, "calibration": 3}, 0)
    assert len(splits.train) == 20


def test_labels_of_a_list_in_memory_are_read_from_its_items():
    items = [(torch.zeros(1), i % 2) for i in range(20)]
    splits = make_splits({"train": items}, {"search": 10, "test": 4, "calibration": 2}, 0)
    assert stacked(splits.search)[1].sum() == 5


def test_fetch_is_the_same_for_tensors_subsets_and_items():
    data = numbered(10)
    nested = Subset(Subset(data, [9, 7, 5, 3]), [2, 0])
    x, y = fetch(nested, [0, 1])
    assert x.flatten().tolist() == [5.0, 9.0]
    assert y.tolist() == [2, 0]
    items_x, items_y = fetch(Items([nested[0], nested[1]]), [0, 1])
    assert torch.equal(items_x, x)
    assert torch.equal(items_y, y)


def test_stacked_stops_at_the_limit():
    assert ids(Subset(numbered(10), [4, 3, 2])) == [4, 3, 2]
    assert len(stacked(numbered(10), 4)[0]) == 4
    assert len(stacked(numbered(10), 40)[0]) == 10


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([numbered(3)], "data is a list"),
        ({"test": numbered(3)}, "no train split"),
        ({"train": numbered(3), "valid": numbered(3)}, r"unknown splits \['valid'\]"),
        ({"train": numbered(3), "search": Items([])}, "search split has no samples"),
        ({"train": 3}, "train split is a int"),
    ],
)
def test_unusable_factory_results_are_named(result, message):
    with pytest.raises(BadInputError, match=message):
        make_splits(result, {}, 0)


def test_given_splits_that_share_samples_are_refused():
    data = numbered(20)
    given = {"train": Subset(data, range(15)), "search": Subset(data, range(12, 20))}
    with pytest.raises(BadInputError, match="search and train share 3 samples"):
        make_splits(given, {}, 0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"search": 8, "test": 2, "calibration": 1}, "search 8, calibration 1|fit into 10 train samples"),
        ({"search": 4, "test": 4, "calibration": 3}, "fit into 10 train samples"),
        ({"search": 0}, "search = 0, expected at least 1"),
        ({"valid": 2}, "valid = 2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(BadInputError, match=message):
        make_splits({"train": numbered(10)}, sizes, 0)


def test_smallest_cut_that_fits():
    splits = make_splits({"train": numbered(10)}, {"search": 4, "test": 4, "calibration": 2}, 0)
    assert sorted(ids(splits.calibration)) == sorted(ids(splits.train))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([torch.zeros(1)], "is a Tensor, expected a pair"),
        ([(torch.zeros(1), 0), (torch.zeros(2), 0)], r"input of sample 1 .* shape \(2,\), that of sample 0 \(1,\)"),
        ([("a", 0)], "input of sample 0 of the given split is a str"),
    ],
)
def test_items_that_are_no_samples_are_named(items, message):
    with pytest.raises(BadInputError, match=message):
        stacked(Items(items))
