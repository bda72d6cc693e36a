"""Every form that items come in × the networks that take it: what the network is called with, or why it is not."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import PerSample
from amcsearch.training.forms import PAIR, Form, choose_form
from amcsearch.training.splits import Items, read

IMAGES = torch.arange(24.0).reshape(4, 1, 2, 3)
EXTRA = 100 + torch.arange(8.0).reshape(4, 2)
LABELS = torch.tensor([2, 0, 1, 2])


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float().sum(1, keepdim=True)


class Optional(nn.Module):
    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        y = x.flatten(1).sum(1, keepdim=True)
        return y if extra is None else y + extra.float().reshape(len(x), 2).sum(1, keepdim=True)


class Two(nn.Module):
    def forward(self, image: Tensor, extra: Tensor) -> Tensor:
        return image.flatten(1).sum(1, keepdim=True) + extra.reshape(len(image), 2).sum(1, keepdim=True)


class Named(nn.Module):
    def forward(self, image: Tensor, *, extra: Tensor) -> Tensor:
        return image.flatten(1).sum(1, keepdim=True) + extra.sum(1, keepdim=True)


class OnlyNamed(nn.Module):
    def forward(self, *, pixels: Tensor, extra: Tensor | None = None) -> Tensor:
        y = pixels.flatten(1).sum(1, keepdim=True)
        return y if extra is None else y + extra.sum(1, keepdim=True)


class OfMapping(nn.Module):
    def forward(self, batch: dict[str, Tensor], flag: bool = False) -> Tensor:
        return batch["image"].flatten(1).sum(1, keepdim=True) + batch["extra"].sum(1, keepdim=True)


class OfTuple(nn.Module):
    def forward(self, batch: tuple[Tensor, Tensor], flag: Tensor | None = None) -> Tensor:
        image, extra = batch
        if not isinstance(batch, tuple):
            raise TypeError("not a tuple")
        return image.flatten(1).sum(1, keepdim=True) + extra.sum(1, keepdim=True)


class Never(nn.Module):
    def forward(self, batch: object, flag: Tensor | None = None) -> Tensor:
        raise ValueError("never")


class Encoder(nn.Module):
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert labels is None
        assert input_ids is not None
        return input_ids.float().sum(1, keepdim=True)


@dataclass
class Sample:
    image: Tensor
    label: int


Row = namedtuple("Row", ["label", "image"])

ACCEPTED = {
    "pair": (lambda x, e, y: (x, y), One, ["0"], "1"),
    "list": (lambda x, e, y: [x, y], One, ["0"], "1"),
    "numpy and python": (lambda x, e, y: (x.numpy(), int(y)), One, ["0"], "1"),
    "numpy numbers": (lambda x, e, y: (x.numpy(), np.int16(y)), One, ["0"], "1"),
    "bytes": (lambda x, e, y: (x.byte(), y), One, ["0"], "1"),
    "meta after": (lambda x, e, y: (x, y, {"path": "a.png", "size": (2, 3)}), One, ["0"], "1"),
    "meta after, optional argument": (lambda x, e, y: (x, y, {"path": "a.png"}), Optional, ["0"], "1"),
    "number after": (lambda x, e, y: (x, y, 7), One, ["0"], "1"),
    "two": (lambda x, e, y: (x, e, y), Two, ["0", "1"], "2"),
    "mapping": (lambda x, e, y: {"image": x, "label": y}, One, ["0"], "label"),
    "mapping with text": (lambda x, e, y: {"image": x, "label": y, "path": "a.png"}, One, ["0"], "label"),
    "mapping by name": (lambda x, e, y: {"image": x, "extra": e, "label": y}, Two, ["image", "extra"], "label"),
    "mapping, only by name": (lambda x, e, y: {"image": x, "extra": e, "y": y}, Named, ["image", "extra"], "y"),
    "pair, only by name": (lambda x, e, y: (x, y), OnlyNamed, ["pixels"], "1"),
    "mapping of another name": (lambda x, e, y: {"image": x, "label": y}, OnlyNamed, ["pixels"], "label"),
    "data class": (lambda x, e, y: Sample(x, int(y)), One, ["0"], "label"),
    "named tuple": (lambda x, e, y: Row(int(y), x), One, ["0"], "label"),
    "mapping whole": (lambda x, e, y: ({"image": x, "extra": e}, y), OfMapping, ["0.image", "0.extra"], "1"),
    "mapping and target": (lambda x, e, y: ({"image": x, "extra": e}, y), Two, ["image", "extra"], "1"),
    "tuple whole": (lambda x, e, y: ((x, e), y), OfTuple, ["0.0", "0.1"], "1"),
    "tuple in parts": (lambda x, e, y: ((x, e), y), Two, ["0", "1"], "1"),
    "transformers": (
        lambda x, e, y: {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0], "labels": int(y)},
        Encoder,
        ["input_ids", "attention_mask"],
        "labels",
    ),
    "transformers, unknown key": (
        lambda x, e, y: {"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 0], "labels": int(y)},
        Encoder,
        ["input_ids"],
        "labels",
    ),
}


def items(form):
    return [form(x, e, y) for x, e, y in zip(IMAGES, EXTRA, LABELS, strict=True)]


def batch(samples, model, **asked):
    form = choose_form(model, samples[0], **asked)
    return read(Items(samples, form, asked.get("collate")), range(len(samples)))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_forms_reach_the_network(name):
    form, kind, inputs, _ = ACCEPTED[name]
    model = kind()
    made = batch(items(form), model)
    assert list(made.inputs) == inputs
    assert made.size == 4
    assert torch.equal(made.targets, LABELS)
    assert made.targets.dtype == torch.int64
    expected = IMAGES.flatten(1).sum(1, keepdim=True) + (0 if len(inputs) == 1 else EXTRA.sum(1, keepdim=True))
    if kind is not Encoder:
        assert torch.equal(made.through(model), expected)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_was_chosen_can_be_said_in_the_configuration(name):
    form, kind, inputs, target = ACCEPTED[name]
    samples = items(form)
    chosen = choose_form(kind(), samples[0])
    assert chosen.keys.endswith(f"data.target: {target}")
    paths = [".".join(map(str, path)) for path in chosen.args]
    named = {key: ".".join(map(str, path)) for key, path in chosen.kwargs}
    said = batch(samples, kind(), inputs=named or (paths if len(paths) > 1 else paths[0]), target=target)
    assert list(said.inputs) == inputs
    assert torch.equal(said.targets, LABELS)


REFUSED = {
    "lone tensor": (lambda x, e, y: x, One, "expected a pair.*data.target"),
    "no target among names": (lambda x, e, y: {"image": x, "class": y}, One, "image, class.*data.target"),
    "two targets": (lambda x, e, y: {"image": x, "label": y, "target": y}, One, "label, target, any of.*data.target"),
    "two inputs": (lambda x, e, y: {"left": x, "right": x, "label": y}, One, "left, right beside.*data.inputs"),
    "either": (
        lambda x, e, y: (x, e, y),
        Optional,
        r"Optional\(0\) and as Optional\(0, 1\).*data.inputs: 0, data.target: 1",
    ),
    "text": (lambda x, e, y: ("a cat", y), One, "input of sample 0 .* is a str"),
    "no network takes it": (lambda x, e, y: ((x, e, e), y), Two, "forward of Two takes extra, image.*data.inputs"),
    "none runs": (lambda x, e, y: ((x, e), y), Never, r"Never, called as \(0.0, 0.1\), raised ValueError: never"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_with_the_cure(name):
    form, kind, words = REFUSED[name]
    with pytest.raises(BadInputError, match=words) as error:
        batch(items(form), kind())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"inputs": "pixels"}, "no part 'pixels', only image, label"),
        ({"target": "kind"}, "no part 'kind', only image, label"),
        ({"inputs": ["image", "depth"]}, "no part 'depth'"),
    ],
)
def test_parts_that_are_not_there_are_named(asked, words):
    with pytest.raises(BadInputError, match=words):
        batch(items(lambda x, e, y: {"image": x, "label": y}), One(), **asked)


def test_either_is_settled_by_keys():
    samples = items(lambda x, e, y: (x, e, y))
    both = batch(samples, Optional(), inputs=[0, 1], target=2)
    assert list(both.inputs) == ["0", "1"]
    one = batch(samples, Optional(), inputs=0, target=1)
    assert list(one.inputs) == ["0"]
    assert torch.equal(one.targets, EXTRA)


def test_samples_of_various_size_need_collate():
    samples = [(torch.ones(n), n) for n in (2, 3, 1)]
    with pytest.raises(BadInputError, match=r"input of sample 1 .* \(3,\), that of sample 0 \(2,\); .*data.collate"):
        batch(samples, One())

    def padded(drawn):
        return nn.utils.rnn.pad_sequence([x for x, _ in drawn], batch_first=True), [n for _, n in drawn]

    made = batch(samples, One(), collate=padded)
    assert made.args[0].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert made.targets == [2, 3, 1]


def test_what_collate_raises_is_the_users_error():
    def broken(drawn):
        raise ValueError("no batch today")

    with pytest.raises(BadInputError, match=r"data.collate.*ValueError: no batch today \(.*test_forms"):
        batch([(torch.ones(2), 0)], One(), collate=broken)


def test_ragged_targets_are_kept_in_a_list():
    samples = [(torch.ones(2), {"boxes": torch.rand(n, 4), "ids": [1] * n}) for n in (2, 0, 3)]
    made = batch(samples, One(), is_ragged=True)
    assert isinstance(made.targets, PerSample)
    assert [tuple(target["boxes"].shape) for target in made.targets] == [(2, 4), (0, 4), (3, 4)]
    assert [tuple(t["boxes"].shape) for t in made.chosen([2, 0]).targets] == [(3, 4), (2, 4)]


def test_targets_may_be_missing_where_nobody_reads_them():
    assert batch([torch.ones(2), torch.ones(2)], One(), is_judged=False).targets is None
    assert batch([{"image": torch.ones(2)}], One(), is_judged=False).targets is None
    assert batch([(torch.ones(2),)], One(), is_judged=False).targets is None


def test_floating_point_becomes_float32_and_gradients_are_cut():
    made = batch([(torch.ones(2, dtype=torch.float64, requires_grad=True), 0.5)], One())
    assert made.args[0].dtype == made.targets.dtype == torch.float32
    assert not made.args[0].requires_grad


def test_sparse_tensors_become_dense_and_those_without_values_are_named():
    made = batch([(torch.eye(2).to_sparse(), 0), (torch.ones(2, 2), 1)], One())
    assert made.args[0].tolist() == [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]
    with pytest.raises(
        BadInputError, match=r"input of sample 1 of the .* split is on the device meta, expected values"
    ):
        batch([(torch.ones(2), 0), (torch.ones(2, device="meta"), 1)], One())


def test_tensors_in_memory_are_sliced_as_items_are_read():
    form = choose_form(Two(), (IMAGES[0], EXTRA[0], LABELS[0]))
    assert form == Form(((0,), (1,)), (), (2,), 3)
    fast = read(Items(TensorDataset(IMAGES, EXTRA, LABELS), form), [3, 1])
    slow = read(Items(items(lambda x, e, y: (x, e, y)), form), [3, 1])
    for left, right in ((fast.args[0], slow.args[0]), (fast.args[1], slow.args[1]), (fast.targets, slow.targets)):
        assert torch.equal(left, right)


def test_an_item_of_another_form_is_named():
    samples = [(IMAGES[0], 0), (IMAGES[1], 0, 1)]
    with pytest.raises(BadInputError, match="sample 1 of the given split is a tuple of 3, expected a pair"):
        read(Items(samples, PAIR), [0, 1])
    mapped = [{"image": IMAGES[0], "label": 0}, {"image": IMAGES[0]}]
    with pytest.raises(BadInputError, match="sample 1 of the given split has no part 'label', only image"):
        batch(mapped, One())
