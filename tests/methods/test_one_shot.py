"""One-shot masks: exact counts in rows, tensors and networks, n of m, and which targets they agree with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.methods.mask_schedule import Granularity, Moment, Plan
from amcsearch.methods.schedules.one_shot import OneShot, Pattern, one_shot_masks
from amcsearch.methods.weight_choice import keep_n_of_m, keep_rows

SCORES = {"a": torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 8.0, 8.0, 8.0]]), "b": torch.tensor([[0.1, 0.2]])}


def test_rows_tensors_and_network_by_hand() -> None:
    assert one_shot_masks(SCORES, 0.5, "row")["a"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert one_shot_masks(SCORES, 0.5, "layer")["a"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    whole = one_shot_masks(SCORES, 0.5)  # 5 of 10; every tensor keeps its best
    assert whole["a"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert whole["b"].int().tolist() == [[0, 1]]


def test_lamp_spares_a_small_layer() -> None:
    plain, lamp = (one_shot_masks(SCORES, 0.4, "network", name)["b"].sum() for name in ("none", "lamp"))
    assert (int(plain), int(lamp)) == (1, 2)  # 1/3 and 1 of its own layer beat 1/42 … of the other


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.0, 0.99), st.integers(0, 3))
def test_every_row_loses_exactly_its_share_also_with_ties(rows: int, columns: int, sparsity: float, kinds: int) -> None:
    scores = torch.randint(0, kinds + 1, (rows, columns), generator=torch.Generator().manual_seed(rows)).float()
    mask = keep_rows(scores, sparsity)
    assert ((~mask).sum(1) == round(sparsity * columns)).all()
    for row, kept in zip(scores, mask, strict=True):
        assert not kept.any() or kept.all() or row[kept].min() >= row[~kept].max()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (4, 4)])
def test_n_of_m_holds_in_every_run(n: int, m: int) -> None:
    scores = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0))  # rows of 16 columns
    mask = keep_n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    runs, values = mask.reshape(-1, m), scores.reshape(-1, m)
    assert (runs.sum(1) == n).all()
    for kept, value in zip(runs, values, strict=True):
        assert n == m or value[kept].min() >= value[~kept].max()


def test_columns_left_over_stay_and_n_is_what_is_kept() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]])
    assert keep_n_of_m(scores, 1, 4).int().tolist() == [[0, 0, 0, 1, 1, 1]]
    with pytest.raises(BadInputError, match="n:m = 5:4: n weights are KEPT"):
        keep_n_of_m(scores, 5, 4)


def test_a_bad_sparsity_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"sparsity = 1\.0"):
        one_shot_masks(SCORES, 1.0)


def begun(schedule: OneShot, sparsity: float) -> dict[str, list[list[int]]]:
    """The masks before the first step, as numbers."""
    ones = {name: torch.ones_like(value, dtype=torch.bool) for name, value in SCORES.items()}
    moment = Moment(0, Plan(1, 10, sparsity), SCORES, ones, {}, lambda: SCORES, {})
    return {name: mask.int().tolist() for name, mask in schedule.begin(moment).items()}


def test_the_schedule_by_hand() -> None:
    assert begun(OneShot(within="row"), 0.5) == {"a": [[1, 0, 1, 0], [1, 1, 0, 0]], "b": [[0, 1]]}
    assert begun(OneShot(within="layer"), 0.5) == {"a": [[0, 0, 0, 0], [1, 1, 1, 1]], "b": [[0, 1]]}
    assert begun(OneShot(normaliser="lamp"), 0.4)["b"] == [[1, 1]]
    half = {"a": [[1, 0, 1, 0], [1, 1, 0, 0]], "b": [[1, 1]]}  # two columns are no run of four
    assert begun(OneShot(pattern=Pattern(2, 4)), 0.5) == half


def test_layers_add_up_to_the_target() -> None:
    scores = {name: torch.rand(3, 3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
    masks = one_shot_masks(scores, 0.5, "layer")
    assert sum(int(mask.sum()) for mask in masks.values()) == 27 - round(0.5 * 27)
    assert all(int(mask.sum()) in (4, 5) for mask in masks.values())


@pytest.mark.parametrize(
    ("schedule", "sparsity", "granularity", "words"),
    [
        (OneShot(pattern=Pattern(2, 4)), 0.6, "weights", r"give sparsify\.target {sparsity: 0\.5}"),
        (OneShot(pattern=Pattern(1, 4)), 0.25, "weights", r"1 of 4 weights kept are a sparsity of 0\.75"),
        (OneShot(pattern=Pattern(2, 4)), 0.5, "channels", "pattern chooses weights within rows"),
        (OneShot(within="row"), 0.5, "channels", "give sparsify.granularity weights"),
        (OneShot(within="row"), None, "channels", "within: row"),
    ],
)
def test_a_target_that_does_not_agree_is_refused(
    schedule: OneShot, sparsity: float | None, granularity: Granularity, words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        schedule.check_target(sparsity, granularity)


def test_targets_that_agree_pass() -> None:
    OneShot(pattern=Pattern(1, 3)).check_target(0.667, "weights")
    OneShot(within="row").check_target(0.3, "weights")
    OneShot(within="layer").check_target(0.3, "channels")


def test_choices_that_contradict_are_refused() -> None:
    with pytest.raises(BadInputError, match="normaliser = 'l3' is unknown; known: none, mean"):
        OneShot(normaliser="l3")
    with pytest.raises(BadInputError, match="leave out the normaliser, or choose within: network"):
        OneShot(within="row", normaliser="lamp")
    with pytest.raises(BadInputError, match="leave out within, normaliser"):
        OneShot(within="layer", pattern=Pattern(2, 4))
    with pytest.raises(BadInputError, match="n:m = 5:4"):
        Pattern(5, 4)
