"""One policy's evaluation: a pure function of the policy, equal to doing each step by hand."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator, default_batch_size
from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.layer_inputs import gather_inputs
from amcsearch.methods.ranking import Ranking, keep, rank_units
from amcsearch.recovery.batch_norm import recalibrate_batch_norm
from amcsearch.training.loop import CLASS_IDS, evaluate
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model

Job = tuple[nn.Module, Trace, Ranking, HeldBatches, HeldBatches]


@pytest.fixture(scope="module")
def job() -> Job:
    torch.manual_seed(0)
    model = resnet20(width=4, depth=8)
    x, y = torch.randn(50, 1, 16, 16), torch.arange(50) % 10
    found = trace(model, x[:1])
    ranking = rank_units(model, found, CRITERIA["magnitude"](), HeldBatches.of(x, y, 25), CLASS_IDS)
    return model, found, ranking, HeldBatches.of(x[:30], None, 128), HeldBatches.of(x[30:], y[30:], 128)


def halved(found: Trace) -> PruningPolicy:
    space = PolicySpace.on_grid(found.network.groups)
    return found.network.policy(space.nearest([0.5] * len(space.groups)))


def test_the_dense_policy_without_recalibration_is_the_dense_network_exactly(job: Job) -> None:
    model, found, ranking, _, search = job
    evaluator = Evaluator(model, found, ranking, None, search)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = search.whole.args[0].contiguous(memory_format=torch.channels_last)
    loss, accuracy = evaluate(channels_last, HeldBatches.of(images, search.whole.targets, 128))
    found_there = evaluator.evaluate(found.network.dense)
    assert (found_there.loss, found_there.metric) == (loss, accuracy)
    assert found_there.loss == pytest.approx(evaluate(model, search)[0], rel=1e-5)


class Viewing(nn.Module):
    """Flattens a map of 4x4 with ``view``, which plain order alone allows."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).view(-1, 128))


def test_a_forward_that_flattens_with_view_runs_in_plain_order() -> None:
    torch.manual_seed(0)
    model, x, y = Viewing().eval(), torch.randn(12, 3, 8, 8), torch.arange(12) % 10
    found, samples = trace(model, x[:1]), HeldBatches.of(x, y, 5)
    ranking = rank_units(model, found, CRITERIA["magnitude"](), samples, CLASS_IDS)
    evaluator = Evaluator(model, found, ranking, samples, samples)
    assert evaluator.evaluate(found.network.dense).loss == pytest.approx(evaluate(model, samples)[0], rel=1e-5)
    by_hand = remove(model, found, keep(found, ranking, halved(found))).eval()
    sent = pickle.loads(pickle.dumps(evaluator)).evaluate(halved(found))
    assert sent.loss == pytest.approx(evaluate(by_hand, samples)[0], rel=1e-5)
    # the moments of what the head reads are those of the plain forward
    head = gather_inputs(model, found, samples)["head"]
    assert head.mean[0] == pytest.approx(model.features(x).detach().flatten(1).mean(0), abs=1e-5)


def test_the_samples_of_a_split_in_memory_are_not_copied() -> None:
    model, images = resnet20(width=4, depth=8, in_channels=3), torch.randn(6, 3, 8, 8)
    found, samples = trace(model, images[:1]), HeldBatches.of(images, torch.arange(6), 4)
    ranking = rank_units(model, found, CRITERIA["magnitude"](), samples, CLASS_IDS)
    evaluator = Evaluator(model, found, ranking, HeldBatches.of(images, None, 4), HeldBatches.of(images, None, 4))
    for batches in (evaluator.search, evaluator.calibration):
        assert batches.source.whole.args[0].data_ptr() == images.data_ptr()
        assert all(batch.args[0].is_contiguous(memory_format=torch.channels_last) for batch in batches)
        assert torch.equal(torch.cat([batch.args[0] for batch in batches]), images)


def test_an_evaluation_is_removal_recalibration_and_evaluation(job: Job) -> None:
    model, found, ranking, calibration, search = job
    policy = halved(found)
    evaluator = Evaluator(model, found, ranking, calibration.batched(16), search.batched(16))
    small = remove(model, found, keep(found, ranking, policy)).eval()
    recalibrate_batch_norm(small, calibration.batched(16))
    loss, accuracy = evaluate(small, search)
    result = evaluator.evaluate(policy)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.metric == accuracy
    assert result.seconds > 0
    pruned = evaluator.pruned(policy)
    assert not any(m.training for m in pruned.modules())
    assert sum(p.numel() for p in pruned.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_it_is_pure_in_any_order_after_pickling_and_leaves_the_model_alone(job: Job) -> None:
    model, found, ranking, calibration, search = job
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    evaluator = Evaluator(model, found, ranking, calibration.batched(16), search.batched(16))
    dense, half = found.network.dense, halved(found)
    first = [evaluator.evaluate(p).loss for p in (dense, half)]
    second = [evaluator.evaluate(p).loss for p in (half, dense)]
    elsewhere = pickle.loads(pickle.dumps(evaluator))
    assert first == second[::-1] == [elsewhere.evaluate(p).loss for p in (dense, half)]
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_is_returned(job: Job) -> None:
    model, found, ranking, calibration, search = job
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.bias[3] = float("nan")  # type: ignore[union-attr,index,operator]
    result = Evaluator(broken, found, ranking, calibration, search).evaluate(halved(found))
    assert math.isnan(result.loss)


def test_a_network_without_batch_norm_on_tokens() -> None:
    torch.manual_seed(0)
    model = language_model()
    x = torch.randint(0, 64, (6, 12))
    found = trace(model, x[:1])
    ranking = rank_units(model, found, CRITERIA["taylor"](), HeldBatches.of(x, x, 3), CLASS_IDS)
    result = Evaluator(model, found, ranking, None, HeldBatches.of(x, x, 128)).evaluate(halved(found))
    assert 0 < result.loss < 20
    assert 0 <= result.metric <= 1


def test_a_policy_of_another_network_is_refused(job: Job) -> None:
    model, found, ranking, calibration, search = job
    with pytest.raises(BadInputError, match="policy does not fit the network"):
        Evaluator(model, found, ranking, calibration, search).evaluate(PruningPolicy({"other": 3}))


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 3, 32, 32), 128), ((1, 3, 64, 64), 32), ((1, 3, 224, 224), 16), ((1, 64), 128)]
)
def test_batches_shrink_with_the_images(shape: tuple[int, ...], expected: int) -> None:
    assert default_batch_size(HeldBatches.of(torch.empty(shape), None, 1)) == expected
