"""The walk over coupled slices, on tensors small enough to work by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.graph import HeldBatches
from amcsearch.graph.slices import TensorSlice, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.methods.needs import Draw, Statistic
from amcsearch.methods.ranking import keep, rank, rank_units, score_draw, score_units
from amcsearch.methods.statistics import Statistics


def positions(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def traced(channels: int, unit: int, units: np.ndarray, slices: tuple[TensorSlice, ...]) -> Trace:
    layers = (LayerSpec("a", LayerKind.LINEAR, 1, channels), LayerSpec("b", LayerKind.LINEAR, channels, 1))
    group = ChannelGroup("g", channels, (Coupling("a", Side.OUT), Coupling("b", Side.IN)), unit)
    return Trace(NetworkSpec(layers, (group,)), {"g": slices}, {"g": units})


@dataclass(frozen=True)
class Given:
    """A criterion whose saliency is given."""

    tensors: Mapping[str, Tensor]
    reduction: str = "sum"
    needs: frozenset[Statistic] = field(default_factory=frozenset)

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        return self.tensors


TWO = traced(
    2,
    1,
    positions([0], [1]),
    (
        TensorSlice("a.weight", 0, positions([0], [1]), Side.OUT, "a"),
        TensorSlice("b.weight", 1, positions([0, 1], [2, 3]), Side.IN, "b"),  # a flatten: two columns a channel
    ),
)
WEIGHTS = {"a.weight": torch.tensor([[3.0], [-1.0]]), "b.weight": torch.tensor([[1.0, 2.0, -3.0, 1.0]])}


def test_magnitude_is_the_mean_over_members_of_each_slice() -> None:
    scores = score_draw(TWO, Magnitude(), Statistics(Draw.SET, 0, WEIGHTS))
    assert scores["g"].tolist() == [(9 + 5) / 2, (1 + 10) / 2]
    scores = score_draw(TWO, Magnitude(p=1.0, reduction="sum"), Statistics(Draw.SET, 0, WEIGHTS))
    assert scores["g"].tolist() == [6.0, 5.0]


def test_magnitude_leaves_biases_out_and_refuses_a_power_of_zero() -> None:
    statistics = Statistics(Draw.SET, 0, {"a.bias": torch.ones(2), "a.weight": torch.ones(2, 1)})
    assert set(Magnitude().saliency(statistics)) == {"a.weight"}
    with pytest.raises(BadInputError, match=r"p = 0\.0, must be above 0"):
        Magnitude(p=0.0)


@pytest.mark.parametrize(
    ("saliency", "words"),
    [
        ({"a.weight": torch.zeros(3, 1)}, "'a.weight' has shape (3, 1), must broadcast to (2, 1)"),
        ({"b.weight": torch.zeros(1, 1, 4)}, "'b.weight' has shape (1, 1, 4), must broadcast to (1, 4)"),
        ({"a.weight": np.zeros((2, 1))}, "'a.weight' is a ndarray; return a Tensor"),
        ({"c.weight": torch.zeros(2, 1)}, "the tensor 'c.weight', which is none of statistics.weights"),
        ([torch.zeros(2, 1)], "saliency returned a list; return a mapping"),
    ],
)
def test_saliency_that_is_not_one_of_the_weights_is_refused(saliency: object, words: str) -> None:
    with pytest.raises(BadInputError) as error:
        score_draw(TWO, Given(saliency), Statistics(Draw.SET, 0, WEIGHTS))
    assert str(error.value).startswith("Given: saliency ")
    assert words in str(error.value)


@pytest.mark.parametrize("write", [Tensor.zero_, lambda weight: weight[0].sub_(1)])
def test_a_criterion_that_writes_into_the_weights_is_refused(write: Callable[[Tensor], object]) -> None:
    class Writing(Given):
        def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
            write(statistics.weights["b.weight"])
            return {"a.weight": torch.ones(2, 1), "b.weight": torch.ones(1, 4)}

    parameters = {name: nn.Parameter(weight.clone()) for name, weight in WEIGHTS.items()}
    statistics = Statistics(Draw.SET, 0, {name: parameter.detach() for name, parameter in parameters.items()})
    with pytest.raises(BadInputError, match=r"Writing: saliency changed the network's own weight 'b.weight' in place"):
        score_draw(TWO, Writing({}), statistics)


def test_saliency_of_samples_has_an_axis_of_them() -> None:
    samples = Statistics(Draw.SAMPLE, 2, WEIGHTS)
    # a: 3 and 5, 1 and -1; b: one number for each sample, behind two columns a channel
    criterion = Given({"a.weight": torch.tensor([[[3.0], [1.0]], [[5.0], [-1.0]]]), "b.weight": torch.ones(2, 1, 1)})
    assert score_draw(TWO, criterion, samples)["g"].tolist() == [(3 + 5) / 2 + 2, (1 - 1) / 2 + 2]
    with pytest.raises(
        BadInputError, match=r"shape \(3, 2, 1\), must broadcast to \(2, 2, 1\), samples and the shape of the weight$"
    ):
        score_draw(TWO, Given({"a.weight": torch.zeros(3, 2, 1)}), samples)


@pytest.mark.parametrize("row", [[[1.0, 2.0]], [1.0, 2.0]])
def test_a_number_behind_several_weights_counts_for_each(row: list[object]) -> None:
    three = traced(2, 1, positions([0], [1]), (TensorSlice("c", 1, positions([0], [1]), Side.IN, "b"),))
    criterion, weights = Given({"c": torch.tensor(row)}), {"c": torch.zeros(3, 2)}
    assert score_draw(three, criterion, Statistics(Draw.SET, 0, weights))["g"].tolist() == [3.0, 6.0]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the first layer's weight, averaged over ``draws``."""

    draws: frozenset[Statistic]
    reduction: str = "first"

    @property
    def needs(self) -> frozenset[Statistic]:
        return self.draws

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        return {"0.weight": statistics.gradients["0.weight"]}


def test_minibatches_count_by_their_samples_and_one_pass_serves_several_criteria() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    inputs, targets = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 0])
    F.cross_entropy(model(inputs), targets).backward()
    expected = model[0].weight.grad.sum(1).tolist()
    network, batches = trace(model, inputs[:1]), Gradient(frozenset({Statistic.MINIBATCH_GRADIENT}))
    criteria = {"batches": batches, "set": Gradient(frozenset({Statistic.SET_GRADIENT})), "weights": Magnitude()}
    scores = score_units(model, network, criteria, HeldBatches.of(inputs, targets, 2), F.cross_entropy)
    assert list(scores) == ["batches", "set", "weights"]
    for name in ("batches", "set"):
        assert scores[name]["0"].tolist() == pytest.approx(expected)
    by_weight = (model[0].weight ** 2).sum(1) + (model[2].weight ** 2).sum(0)
    assert np.argmax(scores["weights"]["0"]) == int(by_weight.argmax())
    order = rank_units(model, network, batches, HeldBatches.of(inputs, targets, 2), F.cross_entropy)["0"]
    assert order.tolist() == sorted(range(3), key=lambda unit: -expected[unit])


def test_a_criterion_looks_at_draws_of_one_kind() -> None:
    both = Gradient(frozenset({Statistic.MINIBATCH_GRADIENT, Statistic.SET_GRADIENT}))
    with pytest.raises(ValueError, match=r"^criterion 'x' needs draws of several kinds: \[.*minibatch.*set.*\]$"):
        score_units(nn.Linear(1, 1), TWO, {"x": both}, HeldBatches.of(torch.zeros(1, 1), torch.zeros(1), 1), F.mse_loss)


def test_a_saliency_with_a_gradient_is_scored_without_it() -> None:
    saliency = {"a.weight": WEIGHTS["a.weight"].clone().requires_grad_()}
    assert score_draw(TWO, Given(saliency), Statistics(Draw.SET, 0, WEIGHTS))["g"].tolist() == [3.0, -1.0]


def test_a_saliency_broadcastable_to_the_weight_counts_every_weight() -> None:
    criterion = Given({"b.weight": torch.tensor([2.0])})
    assert score_draw(TWO, criterion, Statistics(Draw.SET, 0, WEIGHTS))["g"].tolist() == [4.0, 4.0]


def test_signs_live_until_the_sum_over_a_head() -> None:
    head = traced(
        4, 2, positions([0, 1], [2, 3]), (TensorSlice("b.weight", 1, positions([0], [1], [2], [3]), Side.IN, "b"),)
    )
    criterion = Given({"b.weight": torch.tensor([[5.0, -5.0, 1.0, 1.0]])}, reduction="consumers_squared")
    assert score_draw(head, criterion, Statistics(Draw.SET, 0, WEIGHTS))["g"].tolist() == [0.0, 4.0]


def test_an_input_position_shared_by_a_unit_counts_once() -> None:
    grouped = traced(
        4, 2, positions([0, 2], [1, 3]), (TensorSlice("c", 1, positions([0], [1], [0], [1]), Side.IN, "b"),)
    )
    weights = {"c": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert score_draw(grouped, Given(weights), Statistics(Draw.SET, 0, weights))["g"].tolist() == [4.0, 6.0]


def test_a_number_behind_a_column_of_a_kernel_counts_for_its_rows() -> None:
    conv = traced(2, 1, positions([0], [1]), (TensorSlice("c", 0, positions([0], [1]), Side.OUT, "a"),))
    criterion = Given({"c": torch.tensor([1.0, 2.0, 3.0]).expand(2, 1, 1, 3)})
    weights = {"c": torch.zeros(2, 1, 3, 3)}
    assert score_draw(conv, criterion, Statistics(Draw.SET, 0, weights))["g"].tolist() == [18.0, 18.0]


def test_members_know_who_reads() -> None:
    criterion = Given(WEIGHTS, reduction="consumers_sum")
    assert score_draw(TWO, criterion, Statistics(Draw.SET, 0, WEIGHTS))["g"].tolist() == [3.0, -2.0]


def test_sums_are_taken_in_double_precision() -> None:
    long = traced(1, 1, positions([0]), (TensorSlice("c", 0, positions([0]), Side.OUT, "a"),))
    weights = {"c": torch.tensor([[2.0**24, 1.0, -(2.0**24)]])}  # 0 in single precision
    assert score_draw(long, Given(weights), Statistics(Draw.SET, 0, weights))["g"].tolist() == [1.0]


def test_members_know_their_place_among_the_layers() -> None:
    layers = (LayerSpec("a", LayerKind.LINEAR, 1, 2), LayerSpec("n", LayerKind.BATCH_NORM, 2, 2))
    group = ChannelGroup("g", 2, (Coupling("a", Side.OUT), Coupling("n", Side.OUT)))
    rows = positions([0], [1])
    slices = (TensorSlice("n.weight", 0, rows, Side.OUT, "n"), TensorSlice("a.weight", 0, rows, Side.OUT, "a"))
    normed = Trace(NetworkSpec(layers, (group,)), {"g": slices}, {"g": rows})
    weights = {"a.weight": torch.tensor([[5.0], [7.0]]), "n.weight": torch.tensor([2.0, 3.0])}
    criterion = Given(weights, reduction="last_stages_squared")  # the norm is the last to write
    assert score_draw(normed, criterion, Statistics(Draw.SET, 0, weights))["g"].tolist() == [4.0, 9.0]


def test_a_group_without_a_scored_tensor_is_named() -> None:
    with pytest.raises(BadInputError, match="Given scores no tensor of group 'g'"):
        score_draw(TWO, Given({}), Statistics(Draw.SET, 0, WEIGHTS))


def test_rank_is_descending_with_stable_ties() -> None:
    assert rank({"g": np.array([1.0, 3.0, 1.0, 3.0, 2.0])})["g"].tolist() == [1, 3, 4, 0, 2]
    assert rank({"g": np.tile([0.0, 1.0], 50)})["g"].tolist() == [*range(1, 100, 2), *range(0, 100, 2)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(
        BadInputError,
        match=r"^importance of group 'g' is not finite: .* are NaN or infinite; retrain the model or repair",
    ):
        rank({"g": np.array([1.0, bad])})


def test_keep_turns_units_into_sorted_channels() -> None:
    heads = traced(6, 2, positions([0, 1], [2, 3], [4, 5]), TWO.slices["g"])
    kept = keep(heads, {"g": np.array([2, 0, 1])}, PruningPolicy({"g": 4}))
    assert kept["g"].tolist() == [0, 1, 4, 5]


def test_keep_refuses_a_policy_of_another_network() -> None:
    with pytest.raises(BadInputError, match="n_keep = 3"):
        keep(TWO, {"g": np.array([0, 1])}, PruningPolicy({"g": 3}))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5]), min_size=2, max_size=30), st.data())
def test_exactly_k_are_kept_nested_and_never_worse_than_those_removed(values: list[float], data: st.DataObject) -> None:
    n = len(values)
    one = traced(n, 1, np.arange(n)[:, None], ())
    ranking = rank({"g": np.array(values)})
    few, more = sorted(data.draw(st.tuples(st.integers(1, n), st.integers(1, n))))
    small, large = (keep(one, ranking, PruningPolicy({"g": k}))["g"] for k in (few, more))
    assert len(small) == few
    assert set(small) <= set(large)
    removed = set(range(n)) - set(small)
    assert all(values[r] <= values[k] for r in removed for k in small)


def test_random_order_depends_on_the_seed_alone() -> None:
    weights = {"a.weight": torch.zeros(2, 1), "b.weight": torch.zeros(1, 4)}
    statistics = Statistics(Draw.SET, 0, weights)
    first, again = (score_draw(TWO, RandomOrder(7), statistics)["g"] for _ in range(2))
    assert first.tolist() == again.tolist()
    wins = sum(np.argmax(score_draw(TWO, RandomOrder(seed), statistics)["g"]) for seed in range(400))
    assert 150 < wins < 250  # fair to five standard deviations
