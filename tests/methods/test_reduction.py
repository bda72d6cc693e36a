"""Scores of coupled members, worked by hand."""

import pytest
import torch

from amcsearch.core.group import Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.methods.reduction import REDUCTIONS, Member

CONV = LayerSpec("conv", LayerKind.CONV, 3, 2)
NORM = LayerSpec("norm", LayerKind.BATCH_NORM, 2, 2)
DEPTHWISE = LayerSpec("depthwise", LayerKind.CONV, 2, 2, conv_groups=2)
STREAM_NORM = LayerSpec("stream_norm", LayerKind.LAYER_NORM, 2, 2)
READER = LayerSpec("reader", LayerKind.CONV, 2, 4)


def member(layer: LayerSpec, index: int, side: Side, *scores: float) -> Member:
    return Member(layer, index, side, torch.tensor(scores, dtype=torch.float64))


PLAIN = [
    member(CONV, 0, Side.OUT, 1.0, 8.0),
    member(NORM, 1, Side.OUT, 2.0, 1.0),
    member(READER, 2, Side.IN, 3.0, -6.0),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [2.0, 1.0]),
        ("sum", [6.0, 3.0]),
        ("max", [3.0, 8.0]),
        ("first", [1.0, 8.0]),
        ("consumers_sum", [3.0, -6.0]),
        ("consumers_absolute", [3.0, 6.0]),
        ("consumers_squared", [9.0, 36.0]),
        ("consumers_half_squared", [4.5, 18.0]),
        ("consumers_mean", [3.0, -6.0]),
        ("consumers_root", [3.0**0.5, 0.0]),  # rounding errors below 0 are 0
        ("norms_mean", [2.0, 1.0]),
        ("norms_sum", [2.0, 1.0]),
        ("last_stages_squared", [4.0, 1.0]),  # the norm supersedes the convolution before it
    ],
)
def test_every_reduction_by_hand(name: str, expected: list[float]) -> None:
    assert REDUCTIONS[name](PLAIN).tolist() == expected


def test_the_table_above_is_complete() -> None:
    assert len(REDUCTIONS) == 13


def test_opposite_contributions_cancel_before_the_square() -> None:
    two_readers = [member(READER, 2, Side.IN, 5.0, 1.0), member(READER, 3, Side.IN, -5.0, 1.0)]
    assert REDUCTIONS["consumers_squared"](two_readers).tolist() == [0.0, 4.0]


def test_gamma_and_beta_of_one_norm_are_one_stage() -> None:
    both = [*PLAIN[:2], member(NORM, 1, Side.OUT, 10.0, -1.0)]
    assert REDUCTIONS["last_stages_squared"](both).tolist() == [144.0, 0.0]


def test_a_depthwise_convolution_supersedes_the_norm_before_it() -> None:
    inverted = [
        *PLAIN[:2],
        member(DEPTHWISE, 2, Side.OUT, 7.0, 7.0),
        member(NORM, 3, Side.OUT, 3.0, 4.0),
        member(READER, 4, Side.IN, 0.0, 0.0),
    ]
    assert REDUCTIONS["last_stages_squared"](inverted).tolist() == [9.0, 16.0]


def test_every_producer_of_a_residual_stream_counts_once() -> None:
    stream = [*PLAIN[:2], member(CONV, 5, Side.OUT, 9.0, 9.0), member(NORM, 6, Side.OUT, 1.0, 2.0)]
    assert REDUCTIONS["last_stages_squared"](stream).tolist() == [9.0, 9.0]


def test_a_norm_over_the_stream_is_neither_producer_nor_consumer() -> None:
    stream = [
        member(CONV, 0, Side.OUT, 1.0, 2.0),
        member(STREAM_NORM, 1, Side.OUT, 50.0, 50.0),
        member(READER, 2, Side.IN, 3.0, 4.0),
    ]
    assert REDUCTIONS["last_stages_squared"](stream).tolist() == [1.0, 4.0]
    assert REDUCTIONS["consumers_sum"](stream).tolist() == [3.0, 4.0]


def test_readers_are_averaged_and_norms_stand_for_those_who_write() -> None:
    two = [*PLAIN, member(READER, 3, Side.IN, 5.0, 0.0), member(NORM, 6, Side.OUT, 4.0, 2.0)]
    assert REDUCTIONS["consumers_mean"](two).tolist() == [4.0, -3.0]
    assert REDUCTIONS["norms_mean"](two).tolist() == [3.0, 1.5]
    assert REDUCTIONS["norms_sum"](two).tolist() == [6.0, 3.0]
    assert REDUCTIONS["norms_mean"]([PLAIN[0], PLAIN[2]]).tolist() == [1.0, 8.0]  # no norm: who writes


def test_single_samples_keep_their_axis() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)
    one = [Member(READER, 2, Side.IN, scores), Member(READER, 3, Side.IN, -scores)]
    assert REDUCTIONS["consumers_squared"](one[:1]).tolist() == [[1.0, 4.0], [9.0, 16.0]]
    assert REDUCTIONS["consumers_half_squared"](one).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_without_a_reader_the_last_stages_stand_in() -> None:
    assert REDUCTIONS["consumers_squared"](PLAIN[:2]).tolist() == [4.0, 1.0]
