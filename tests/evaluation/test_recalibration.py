"""Whether new statistics of batch norms do good, by a network whose calibration data are like the others or are not."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.config import Config
from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.evaluation.paired import Recalibration, judge_recalibration
from amcsearch.graph import HeldBatches, trace
from amcsearch.jobs.finetuning import recalibrate
from amcsearch.jobs.workload import InMemory, load_workload
from amcsearch.training import CLASS_IDS, Embedding

LEVELS = torch.linspace(-1.0, 1.0, 60)  # brightness; above 0 is class 1
SETTINGS = {
    "recovery.finetune": None,
    "device.channel_multiple": 1,
    "device.rounds": 3,
    "search.baseline": None,
    "search.finalists": 1,
    "selection.criterion": "magnitude",
}


class Bright(nn.Module):
    """Tells dark from bright pictures without a mistake: statistics of its batch norm are those of ``LEVELS``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)
        sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
        with torch.no_grad():
            self.conv.weight.copy_(sign[:, None, None, None] * torch.tensor([2.0, 2.0, 1.0, 1.0])[:, None, None, None])
            self.head.weight.copy_(torch.stack([-sign, sign]))
            self.head.bias.zero_()
        self.norm.running_var.copy_(LEVELS.var() * torch.tensor([4.0, 4.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def pictures(levels: Tensor) -> tuple[Tensor, Tensor]:
    return levels[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), (levels > 0).long()


LIKE, UNLIKE = pictures(LEVELS), pictures(LEVELS + 3.0)
HALF = PruningPolicy({"conv": 2})


def evaluator(model: nn.Module, calibration: Tensor, search: tuple[Tensor, Tensor], task=CLASS_IDS) -> Evaluator:
    traced = trace(model, calibration[:1])
    ranking = {"conv": np.arange(4)}
    held = HeldBatches.of(calibration, None, 20)
    return Evaluator(model, traced, ranking, held, HeldBatches.of(*search, 20), task=task)


def test_data_like_those_of_training_do_no_harm() -> None:
    judged = judge_recalibration(evaluator(Bright().eval(), LIKE[0], LIKE), HALF)
    assert judged == Recalibration((1.0, 1.0), None, 60, is_harmful=False)


def test_data_unlike_those_of_training_do_harm() -> None:
    """Bright pictures alone: everything in the search split is then dark, and half of it is."""
    judged = judge_recalibration(evaluator(Bright().eval(), UNLIKE[0], LIKE), HALF)
    assert judged == Recalibration((1.0, 0.5), (1.0, 0.5), 60, is_harmful=True)


def test_harm_is_in_the_direction_of_the_metric() -> None:
    """A squared error rises with harm."""
    model = Bright().eval()
    with torch.no_grad():
        search = LIKE[0], model(LIKE[0])
    assert not judge_recalibration(evaluator(model, LIKE[0], search, Embedding()), HALF).is_harmful
    judged = judge_recalibration(evaluator(model, UNLIKE[0], search, Embedding()), HALF)
    assert judged.is_harmful
    assert judged.dense[0] > judged.dense[1]


class Canned(Evaluator):
    """An evaluator whose networks are given: dense, and pruned without and with recalibration."""

    networks: Sequence[nn.Module] = ()

    def pruned(self, policy: PruningPolicy) -> nn.Module:
        if policy == self.trace.network.dense:
            return self.networks[0]
        return self.networks[1 if self.calibration is None else 2]


class Says(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Right for the lowest share of ``LEVELS``."""
        right = x[:, 0, 0, 0] <= LEVELS[round(self.share * 60) - 1]
        label = (x[:, 0, 0, 0] > 0) == right
        return torch.stack([~label, label], 1).float()


@pytest.mark.parametrize(
    ("dense", "kept", "anew", "is_harmful"),
    [(0.8, 0.5, 0.4, True), (0.8, 0.3, 0.6, False), (0.8, 0.5, 0.5, False), (1.0, 0.5, 0.4, False)],
)
def test_what_is_lost_of_the_dense_network_may_be_less_than_what_is_regained(
    dense: float, kept: float, anew: float, is_harmful: bool
) -> None:
    canned = evaluator(Bright().eval(), LIKE[0], LIKE)
    canned.__class__ = Canned
    canned.networks = [Says(dense), Says(kept), Says(anew)]
    judged = judge_recalibration(canned, HALF)
    assert judged.is_harmful is is_harmful
    assert (judged.pruned is None) is (dense == 1.0)
    assert judged.pruned is None or judged.pruned == pytest.approx((kept, anew))


def test_nothing_is_judged_where_nothing_is_recalibrated() -> None:
    model = Bright().eval()
    assert judge_recalibration(evaluator(model, UNLIKE[0], LIKE).without_recalibration(), HALF) is None
    assert judge_recalibration(evaluator(model, UNLIKE[0], (LIKE[0][:1], LIKE[1][:1])), HALF) is None
    model.norm = nn.Identity()
    assert judge_recalibration(evaluator(model, UNLIKE[0], LIKE), HALF) is None


class Warned:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def phase(self, text: str) -> None: ...
    def epoch(self, epoch: int, loss: float) -> None: ...
    def trial(self, trial: object, best: object, done: int, total: int) -> None: ...
    def progress(self, share: float, text: str) -> None: ...

    @property
    def harm(self) -> list[str]:
        return [text for text in self.warnings if "statistics" in text]


@pytest.mark.parametrize("asked", ["auto", True, False])
def test_a_search_keeps_the_statistics_where_new_ones_do_harm(asked: bool | str) -> None:
    observer = Warned()
    data = {"train": LIKE, "calibration": UNLIKE, "search": LIKE, "test": LIKE}
    settings = {**SETTINGS, "recovery.bn_recalibration": asked}
    options = {"budget": {"macs": "0.8x"}, "agent": "uniform", "trials": 1, "settings": settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = amcsearch.search(Bright().eval(), data, **options, observer=observer)
    assert result.trials["accuracy"][0] == (0.5 if asked is True else 1.0)
    assert result.summary.recalibrated is (asked is True)
    changes = "the dense network's accuracy goes from 100.00 % to 50.00 %, a pruned one's from 100.00 % to 50.00 %"
    if asked is False:
        assert observer.harm == []
    else:
        (told,) = observer.harm
        assert changes in told
        assert "give calibration data like those that the network was trained on" in told
        assert told.startswith(
            "batch norms keep their statistics" if asked == "auto" else "recovery.bn_recalibration = true does harm"
        )
        assert told in result.summary.warnings


def test_a_search_recalibrates_where_that_does_no_harm() -> None:
    observer = Warned()
    data = {"train": LIKE, "calibration": LIKE, "search": LIKE, "test": LIKE}
    options = {"budget": {"macs": "0.8x"}, "agent": "uniform", "trials": 1, "settings": SETTINGS}
    result = amcsearch.search(Bright().eval(), data, **options, observer=observer)
    assert result.summary.recalibrated is True
    assert observer.harm == []


def test_the_curves_of_sensitivity_are_judged_in_the_same_way() -> None:
    observer = Warned()
    data = {"train": LIKE, "calibration": UNLIKE, "search": LIKE, "test": LIKE}
    settings = {"selection.criterion": "magnitude", "device.channel_multiple": 1}
    amcsearch.sensitivity(Bright().eval(), data, points=2, joint=0, settings=settings, observer=observer)
    assert len(observer.harm) == 1


@pytest.mark.parametrize("asked", ["auto", True, False])
@pytest.mark.parametrize("calibration", [LIKE, UNLIKE])
def test_a_sparse_network_keeps_the_statistics_that_are_better(
    asked: bool | str, calibration: tuple[Tensor, Tensor]
) -> None:
    config = Config(model={"factory": "in:memory"}, data={"factory": "in:memory"}, recovery={"bn_recalibration": asked})
    data = {"train": LIKE, "calibration": calibration, "search": LIKE, "test": LIKE}
    workload = load_workload(config, InMemory(model=Bright().eval(), data=data))
    model = Bright().eval()
    before = model.norm.running_var.clone()
    recalibrate(config, workload, model)
    is_kept = torch.equal(model.norm.running_var, before)
    assert is_kept is (asked is False or (asked == "auto" and calibration is UNLIKE))
