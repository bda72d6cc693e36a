"""What is done to splits before a job uses them: read once, checked, converted, compared."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.training.cuts import as_datasets, make_splits
from amcsearch.training.preparation import checked_splits, fixed_splits
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import DataSplits, fetch, stacked

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % 4


class Noisy(Dataset):
    """Inputs with noise that ``draw`` gives."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return INPUTS[i] + self.draw(), int(TARGETS[i])


class OnDisk(Dataset):
    """Items that are read one by one, in the order of their classes."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return INPUTS[i], int(self.ids[i])


def fresh():
    generator = torch.Generator()
    generator.seed()
    return torch.randn(3, generator=generator)


GLOBAL = {
    "torch": lambda: torch.randn(3),
    "numpy": lambda: torch.from_numpy(np.random.randn(3)).float(),  # noqa: NPY002
    "python": lambda: random.random(),
}


def cut(data):
    return make_splits({"train": data}, {}, 0)


def fixed(data):
    return fixed_splits(cut(data), 0)


def parts(*ranges, inputs=INPUTS, targets=TARGETS):
    """Train, calibration, search and test as tensors of their own."""
    return DataSplits(*(TensorDataset(inputs[list(r)].clone(), targets[list(r)].clone()) for r in ranges))


def check(splits, targets="given", output_shape=(4,), **more):
    checked, warnings, _ = checked_splits(
        splits, input_shape=(3,), output_shape=output_shape, targets=targets, seed=0, **more
    )
    return checked, warnings


@pytest.mark.parametrize("name", GLOBAL)
def test_what_is_judged_on_is_read_once_and_by_the_seed(name):
    splits, (warning,) = fixed(Noisy(GLOBAL[name]))
    assert torch.equal(stacked(splits.search)[0], stacked(splits.search)[0])
    assert "calibration, search, test give other samples at every reading" in warning
    assert "seed" not in warning
    again, _ = fixed(Noisy(GLOBAL[name]))
    assert torch.equal(stacked(splits.search)[0], stacked(again.search)[0])
    train = Subset(splits.train, range(5))  # may be random: that is how networks are trained
    assert not torch.equal(stacked(train)[0], stacked(train)[0])


def test_noise_of_no_seed_is_said():
    splits, (warning,) = fixed(Noisy(fresh))
    assert torch.equal(stacked(splits.test)[0], stacked(splits.test)[0])
    assert "follows no seed" in warning
    assert "cannot be resumed" in warning


def test_what_does_not_change_is_not_warned_of():
    assert fixed(Noisy(lambda: 0.0))[1] == ()
    assert fixed(TensorDataset(INPUTS, TARGETS))[1] == ()


def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_been_drawn():
    def draw():
        return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002

    with seeded(3):
        first = draw()
    with seeded(3):
        with seeded(4):
            assert draw() != first
        assert draw() == first


class Growing(Dataset):
    """One more sample at every asking."""

    count = 40

    def __len__(self):
        Growing.count += 1
        return Growing.count

    def __getitem__(self, i):
        return INPUTS[i % 40], 0


def test_a_length_that_changes_is_refused():
    with pytest.raises(BadInputError, match=r"the train split has (\d+) samples, then \d+; its length must not change"):
        cut(Growing())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.int64])
def test_class_ids_of_any_size_become_int64(dtype):
    for data in (TensorDataset(INPUTS, TARGETS.to(dtype)), list(zip(INPUTS, TARGETS.to(dtype).numpy(), strict=True))):
        splits, warnings = check(fixed(data)[0])
        for split in (splits.train, splits.search):
            assert stacked(split)[1].dtype == torch.int64
        assert warnings == ()
        assert [int(stacked(split)[1].sum()) for split in (splits.search, splits.test)] == [12, 12]  # 2 of each class


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_inputs_become_float32(dtype):
    for data in (TensorDataset(INPUTS.to(dtype), TARGETS), list(zip(INPUTS.to(dtype), TARGETS, strict=True))):
        splits, _ = fixed(data)
        assert {fetch(s, [0, 1])[0].dtype for s in (splits.train, splits.search, splits.test)} == {torch.float32}


def test_inputs_with_a_gradient_are_cut_off_it():
    splits, _ = fixed(TensorDataset(INPUTS.clone().requires_grad_(), TARGETS))
    assert not fetch(splits.train, [0, 1])[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool])
@pytest.mark.parametrize("as_items", [False, True])
def test_one_hot_rows_become_class_ids_and_that_is_said(dtype, as_items):
    rows = torch.nn.functional.one_hot(TARGETS, 4).to(dtype)
    data = list(zip(INPUTS, rows, strict=True)) if as_items else TensorDataset(INPUTS, rows)
    before = cut(data)
    splits, (warning,) = check(fixed_splits(before, 0)[0])
    assert "one-hot" in warning
    for name in ("train", "calibration", "search", "test"):
        ids = stacked(getattr(splits, name))[1]
        assert ids.dtype == torch.int64
        assert torch.equal(ids, stacked(getattr(before, name))[1].long().argmax(1))
    assert stacked(splits.search)[1].bincount().tolist() == [2, 2, 2, 2]


def test_one_hot_positions_of_a_sequence_become_class_ids():
    ids = torch.randint(0, 5, (40, 7), generator=torch.Generator().manual_seed(1))
    data = TensorDataset(INPUTS, torch.nn.functional.one_hot(ids, 5).float())
    splits, _ = check(fixed(data)[0], output_shape=(7, 5))
    assert stacked(splits.search)[1].shape == (8, 7)


def test_class_ids_of_positions_that_look_like_one_hot_rows_stay():
    ids = torch.eye(4, dtype=torch.int64).repeat(10, 1)  # one class id a position, V = 2
    splits, warnings = check(fixed(TensorDataset(INPUTS, ids))[0], output_shape=(4, 2))
    assert torch.equal(stacked(splits.search)[1].sum(1), torch.ones(8, dtype=torch.int64))
    assert warnings == ()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (TARGETS.float(), r"expected class ids.*\.long\(\)"),
        (torch.rand(40, 4), "neither class ids nor one-hot rows.*name: regression.*data.targets: dense"),
        (torch.eye(4).flip(0)[TARGETS] + torch.eye(4)[TARGETS], "neither class ids.*name: multilabel"),
        (torch.nn.functional.one_hot(TARGETS, 4).float() * 2, "neither class ids nor one-hot rows"),
        (
            torch.ones(40, 4, dtype=torch.int64),
            r"shape \(4,\) a sample.* expected class ids of shape \(\).*name: multilabel",
        ),
        (TARGETS[:, None].expand(40, 4), r"expected class ids of shape \(\).*name: regression"),
        (torch.full((40,), -100), "every one is -100"),
        (TARGETS + 1, r"targets from 1 to 4, expected 0 to 3 \(first in sample 3\).*name the task"),
        (torch.ones(40, 4, 2, dtype=torch.bool), "name: multilabel"),
        (TARGETS[:, None, None].expand(40, 2, 2), "name: segmentation"),
        (torch.rand(40, 3), "vectors of 3 numbers"),
    ],
)
def test_targets_that_no_loss_fits_are_refused(targets, words):
    splits = cut(TensorDataset(INPUTS, targets))
    with pytest.raises(BadInputError, match=words) as error:
        check(fixed_splits(splits, 0)[0], cut=splits)
    assert "\n" not in str(error.value)


def test_targets_that_nobody_reads_may_be_anything():
    for targets in (torch.full((40,), -100), torch.rand(40, 4)):
        check(fixed(TensorDataset(INPUTS, targets))[0], targets="dense", labelled=())


def test_some_ignored_targets_are_right():
    targets = torch.where(torch.arange(40) % 2 == 0, -100, TARGETS)
    assert check(fixed(TensorDataset(INPUTS, targets))[0])[1] == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("as_items", [False, True])
def test_inputs_that_are_not_finite_name_the_sample_as_the_user_numbers_it(value, as_items):
    inputs = INPUTS.double().clone()
    inputs[27, 1] = value
    splits = cut(list(zip(inputs, TARGETS, strict=True)) if as_items else TensorDataset(inputs, TARGETS))
    with pytest.raises(BadInputError, match=r"holds NaN or infinity \(first in sample 27\)"):
        check(fixed_splits(splits, 0)[0], cut=splits)


class Odd(Dataset):
    """Sample 17 is ``item``."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.item if i == 17 else (INPUTS[i], int(TARGETS[i]))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "sample 17 of the .* split is a NoneType, expected a pair"),
        (INPUTS[0], "sample 17 of the .* split is a Tensor, expected a pair"),
        ((INPUTS[0], 0, 1), "sample 17 of the .* split is a tuple of 3"),
        ((INPUTS[0, :2], 0), r"input of sample 17 of the .* split has the shape \(2,\), that of sample \d+ \(3,\)"),
        ((INPUTS[0], "cat"), "target of sample 17 of the .* split is a str"),
        ((INPUTS[0], [1, 2]), "target of sample 17 of the .* split is a list"),
        ((INPUTS[0], None), "target of sample 17 of the .* split is a NoneType"),
    ],
)
@pytest.mark.parametrize("size", [1, 10])
def test_the_one_sample_that_is_wrong_is_named(item, words, size):
    def prepare():
        splits = make_splits({"train": Odd(item)}, {"search": size, "test": size, "calibration": size}, 0)
        check(fixed_splits(splits, 0)[0], cut=splits)

    with pytest.raises(BadInputError, match=words):
        prepare()


class Failing(Odd):
    """Reading sample 17 raises ``item``."""

    def __getitem__(self, i):
        if i == 17:
            raise self.item
        return super().__getitem__(i)


@pytest.mark.parametrize("raised", [OSError("disk gone"), SystemExit(0), StopIteration(), IndexError("17")])
def test_a_sample_that_cannot_be_read_is_named(raised):
    splits = cut(Failing(raised))
    words = rf"sample 17 of the \w+ split raised {type(raised).__name__}.*test_prep"
    with pytest.raises(BadInputError, match=words):
        check(fixed_splits(splits, 0)[0], cut=splits)


def test_a_length_that_raises_is_named():
    class Endless(Odd):
        def __len__(self):
            raise RuntimeError("no length today")

    with pytest.raises(BadInputError, match="length of the train split raised RuntimeError: no length today"):
        cut(Endless(None))


def test_the_first_samples_of_a_sorted_data_set_do_not_say_that_there_is_one_class():
    splits = DataSplits(*(OnDisk(torch.arange(40) // 10) for _ in range(4)))
    some, _ = fixed_splits(splits, 0, limit=4)
    assert not [text for text in check(some, cut=splits)[1] if "one class" in text]
    splits = DataSplits(*(OnDisk(torch.zeros(40, dtype=torch.long)) for _ in range(4)))
    every, _ = fixed_splits(splits, 0)
    assert [text for text in check(every, cut=splits)[1] if "one class" in text]


def test_samples_in_two_splits_are_counted_by_their_content():
    _, warnings = check(parts(range(20), range(8), range(15, 25), range(24, 40)))
    assert len(warnings) == 2
    assert "5 of 10 samples of the search split (50.0%) are also in train;" in warnings[0]
    assert "1 of 16 samples of the test split (6.2%) are also in search" in warnings[1]


def test_calibration_belongs_to_train_and_is_kept_from_the_others():
    assert check(parts(range(20), range(20), range(20, 30), range(30, 40)))[1] == ()
    _, (warning,) = check(parts(range(20), range(18, 24), range(20, 30), range(30, 40)))
    assert "4 of 10 samples of the search split (40.0%) are also in calibration" in warning


def test_inputs_or_targets_that_are_all_the_same_are_said():
    ranges = (range(20), range(20), range(20, 30), range(30, 40))
    _, (warning,) = check(parts(*ranges, inputs=torch.ones(40, 3)))
    assert warning == "data: all inputs of train, calibration, search, test are the same"
    _, (warning,) = check(parts(*ranges, targets=torch.where(torch.arange(40) < 20, TARGETS, 2)))
    assert warning == "data: all targets of search, test are of one class"
    rows = torch.nn.functional.one_hot(torch.full((40,), 2), 4).float()
    assert (
        "data: all targets of train, calibration, search, test are of one class"
        in check(parts(*ranges, targets=rows))[1]
    )


def test_one_sample_a_split_is_enough():
    assert check(parts([0], [0], [1], [2]))[1] == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_numpy_arrays_are_data_as_tensors_are(dtype):
    arrays = INPUTS.numpy().astype(dtype), TARGETS.numpy().astype(np.int16)
    for data in (arrays, list(arrays), {"train": arrays}, (INPUTS, arrays[1])):
        splits, _ = check(fixed_splits(make_splits(as_datasets(data), {}, 0), 0)[0])
        expected = check(fixed(TensorDataset(INPUTS, TARGETS))[0])[0]
        for one, other in zip(stacked(splits.search), stacked(expected.search), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((INPUTS.numpy(), TARGETS.numpy()[:39]), "40 inputs and 39 targets"),
        ((np.array(["a"] * 40), TARGETS.numpy()), "numpy array of <U1, expected numbers"),
        (np.float32(3.0), "the train split is a float32, expected a dataset"),
        (np.zeros(()), r"the train split has tensors of \[0\] samples"),
    ],
)
def test_arrays_that_are_no_samples_are_named(data, words):
    with pytest.raises(BadInputError, match=words):
        as_datasets(data)


@pytest.mark.parametrize("data", [INPUTS, INPUTS.numpy(), {"train": INPUTS}])
def test_inputs_alone_are_samples_without_targets(data):
    (name,) = as_datasets(data)
    assert name == "train"
    (first,) = as_datasets(data)["train"][0]
    assert torch.equal(first, INPUTS[0])


def test_class_shares_are_kept_by_an_attribute_of_targets_where_it_fits(caplog):
    class Torchvision(Noisy):
        targets = TARGETS.tolist()

    class Paths(Noisy):
        targets = ("a", "b")

    class Labelled(Noisy):
        labels = TARGETS.numpy()

    for kind in (Torchvision, Labelled):
        assert stacked(cut(kind(lambda: 0.0)).search)[1].bincount().tolist() == [2, 2, 2, 2]
    assert "at random, without regard to classes: Paths has no attribute targets" not in caplog.text
    caplog.set_level("INFO")
    assert len(stacked(cut(Paths(lambda: 0.0)).search)[1]) == 8
    assert "at random, without regard to classes: Paths has no attribute targets" in caplog.text
