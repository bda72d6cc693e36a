import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.training.cuts import make_splits
from amcsearch.training.data import DATASETS, digits, text
from amcsearch.training.splits import stacked
from amcsearch.training.surveys import check_splits


def test_digits_are_standardised_images():
    data = digits()
    x, y = stacked(data["train"])
    assert x.shape == (1438, 1, 32, 32)
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert x.std().item() == pytest.approx(1.0, abs=1e-5)
    assert y.unique().tolist() == list(range(10))
    assert len(data["test"]) == 359


def test_digits_test_split_keeps_class_shares_and_shares_no_image():
    data = digits(size=8)
    (train_x, train_y), (test_x, test_y) = stacked(data["train"]), stacked(data["test"])
    everything = torch.cat([train_y, test_y]).bincount() * 0.2
    assert (test_y.bincount() - everything).abs().max() <= 1
    assert torch.cdist(test_x.flatten(1), train_x.flatten(1)).min() > 0


def test_nearest_repeats_pixels():
    x, _ = stacked(digits(size=16, interpolation="nearest")["test"], 5)
    assert torch.equal(x[..., ::2, ::2], x[..., 1::2, 1::2])


@pytest.mark.parametrize("kwargs", [{"size": 7}, {"interpolation": "cubic"}, {"test_share": 0.0}, {"test_share": 1.0}])
def test_bad_digits_are_refused(kwargs):
    with pytest.raises(BadInputError, match=next(iter(kwargs))):
        digits(**kwargs)


def test_text_targets_are_the_next_bytes():
    x, y = stacked(text(context=48)["search"])
    assert x.shape == y.shape
    assert x.shape[1] == 48
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x[1:, 0], y[:-1, -1])  # windows follow each other without overlap


def test_text_splits_share_no_paragraph():
    paragraphs = {}
    for name, dataset in text().items():
        data = bytes(stacked(dataset)[0].flatten().tolist())
        paragraphs[name] = {part for part in data.split(b"\n\n")[1:-1] if len(part) > 40}
        assert len(paragraphs[name]) > 50
    assert not paragraphs["train"] & paragraphs["search"]
    assert not paragraphs["train"] & paragraphs["test"]
    assert not paragraphs["search"] & paragraphs["test"]


@pytest.mark.parametrize(
    "kwargs", [{"context": 0}, {"context": 10**7}, {"test_share": 0.0}, {"search_share": 0.5, "test_share": 0.5}]
)
def test_bad_text_is_refused(kwargs):
    with pytest.raises(BadInputError, match=next(iter(kwargs))):
        text(**kwargs)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_splits_and_passes_its_checks(name):
    splits = make_splits(DATASETS[name](), {"calibration": 64, "search": 64}, 0)
    shape = tuple(splits.train[0][0].shape)
    classes = 1 + max(int(stacked(split)[1].max()) for split in (splits.train, splits.search, splits.test))
    check_splits(splits, input_shape=shape, num_classes=classes, limit=10**6)
    with pytest.raises(BadInputError, match=f"expected 0 to {classes - 2}"):
        check_splits(splits, input_shape=shape, num_classes=classes - 1, limit=10**6)
    with pytest.raises(BadInputError, match="the train split gives inputs of shape"):
        check_splits(splits, input_shape=(*shape, 1), num_classes=classes)
