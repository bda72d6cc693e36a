"""Batches: how samples reach a network, and trees of tensors."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, HeldBatches, map_tensors, tensors_of_tree

Pair = namedtuple("Pair", ["left", "right"])


@dataclass(frozen=True)
class Scene:
    picture: Tensor
    name: str


def tree() -> dict[str, object]:
    t = torch.ones(2)
    return {"a": t, "b": [t, (t, None)], "c": Pair(t, 3), "d": Scene(t, "x"), "e": UserDict({"k": t}), "f": "text"}


def test_every_tensor_of_a_tree_has_a_path() -> None:
    assert [name for name, _ in tensors_of_tree(tree())] == ["a", "b.0", "b.1.0", "c.left", "d.picture", "e.k"]
    assert [name for name, _ in tensors_of_tree(torch.ones(1), "output")] == ["output"]


def test_mapping_a_tree_keeps_its_types_and_leaves_the_original_alone() -> None:
    before = tree()
    after = map_tensors(before, lambda t: t + 1)
    assert all(float(t[0]) == 2.0 for _, t in tensors_of_tree(after))
    assert all(float(t[0]) == 1.0 for _, t in tensors_of_tree(before))
    assert [type(v) for v in after.values()] == [type(v) for v in before.values()]
    assert after["c"].right == 3
    assert after["d"].name == "x"


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, *, scale: dict[str, Tensor]) -> Tensor:
        return x * scale["by"]


def test_a_batch_calls_the_network_with_its_arguments() -> None:
    batch = Batch((torch.tensor([1.0, 2.0]),), {"scale": {"by": torch.tensor([3.0, 4.0])}}, size=2)
    assert batch.through(TwoInputs()).tolist() == [3.0, 8.0]
    assert list(batch.inputs) == ["0", "scale.by"]


def test_held_batches_cut_inputs_and_targets_alike() -> None:
    x, y = torch.arange(5.0), {"id": torch.arange(5)}
    held = HeldBatches.of(x, y, 2)
    assert [(b.size, b.args[0].tolist(), b.targets["id"].tolist()) for b in held] == [
        (2, [0.0, 1.0], [0, 1]),
        (2, [2.0, 3.0], [2, 3]),
        (1, [4.0], [4]),
    ]
    assert [b.size for b in held.batched(4)] == [4, 1]
    chosen = held.chosen([4, 0])
    assert (chosen.samples, next(iter(chosen)).args[0].tolist()) == (2, [4.0, 0.0])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Batch.of(torch.ones(0, 2)), "0 samples"),
        (lambda: HeldBatches.of(torch.ones(3), torch.ones(2), 1), "targets of shape (2,)"),
        (lambda: HeldBatches.of(torch.ones(3), None, 0), "batch size = 0"),
    ],
)
def test_what_is_no_batch_is_refused(make: object, named: str) -> None:
    with pytest.raises(BadInputError) as error:
        make()  # type: ignore[operator]
    assert named in str(error.value)
