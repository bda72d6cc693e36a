"""Fine-tuning by the configuration: the best epoch on the search split, its end, and its augmentation."""

import copy
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import amcsearch
from amcsearch.config import Config, load
from amcsearch.core.metric import ACCURACY, METRICS
from amcsearch.core.trial import Trial
from amcsearch.jobs.finetuning import Finetuned, _kept, _no_better, fine_tune
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.recovery import Reconstruction
from amcsearch.training import Watch, batches_of, evaluate, fit
from amcsearch.training.resume import StateFile

WriteConfig = Callable[..., Path]


class Told:
    """An observer that keeps the losses of epochs and the warnings."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.warnings: list[str] = []
        self.result = Finetuned()

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def epoch(self, epoch: int, loss: float) -> None:
        assert epoch == len(self.losses) + 1
        self.losses.append(loss)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None: ...

    def progress(self, share: float, text: str) -> None: ...


class Silent(Told):
    def epoch(self, epoch: int, loss: float) -> None: ...


@pytest.fixture
def workload(write_config: WriteConfig) -> Workload:
    """The network after two epochs."""
    return load_workload(load(write_config()))


def tuned(
    write_config: WriteConfig, workload: Workload, store: StateFile | None = None, **keys: object
) -> tuple[nn.Module, Told]:
    config: Config = load(write_config(), keys={f"recovery.finetune.{key}": value for key, value in keys.items()})
    observer, model = Told(), copy.deepcopy(workload.model)
    observer.result = fine_tune(config, config.recovery.finetune, workload, model, observer, store=store)
    return model, observer


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# steps that lead away from what the network has learnt, and never so far that the training diverges
AWAY = {"learning_rate": 1.0, "epochs": 2, "schedule": "constant", "batch_size": 208, "distillation": None}


def test_epochs_that_make_the_network_worse_are_not_kept(write_config: WriteConfig, workload: Workload) -> None:
    split = batches_of(workload.splits.search, name="search")
    _, before = evaluate(workload.model, split)
    last, told = tuned(write_config, workload, keep="last", **AWAY)
    assert evaluate(last, split)[1] < before
    assert told.warnings == []
    assert told.result == Finetuned((), "2 epochs, the last is kept")
    best, told = tuned(write_config, workload, **AWAY)
    assert same(best, workload.model)
    (warning,) = told.warnings
    assert "no epoch did better than the pruned network before it (accuracy" in warning
    assert "lower recovery.finetune.learning_rate" in warning
    assert told.result.training == (
        "2 epochs, none is kept: the network before them is the best on the search split "
        f"(accuracy {100 * before:.2f} %)"
    )
    assert len(told.losses) == 2
    _, told = tuned(write_config, workload, patience=1, **AWAY)
    assert len(told.losses) == 1


def test_the_best_epoch_is_that_of_the_training_itself(write_config: WriteConfig, workload: Workload) -> None:
    settings = {"learning_rate": 0.05, "epochs": 4, "schedule": "constant"}
    best, told = tuned(write_config, workload, **settings)
    split = batches_of(workload.splits.search, name="search")
    candidates = [workload.model]
    for epochs in range(1, 5):  # the rates are constant, so shorter trainings are beginnings of longer ones
        candidates.append(tuned(write_config, workload, keep="last", **{**settings, "epochs": epochs})[0])
    loss, accuracy = evaluate(best, split)
    judged = [evaluate(candidate, split) for candidate in candidates]
    assert (-accuracy, loss) == min((-accuracy, loss) for loss, accuracy in judged)
    assert len(told.losses) == 4
    values = {epoch: (-accuracy, loss) for epoch, (loss, accuracy) in enumerate(judged)}
    assert told.result.training == _kept(watched(values), 4, ACCURACY)


def watched(values: dict[int, tuple[float, ...]], *, keep_best: bool = True) -> Watch:
    watch = Watch(lambda _: (0.0,), keep_best=keep_best)
    watch.values = values
    return watch


def test_the_epoch_that_is_kept_is_told_in_the_unit_and_direction_of_the_metric() -> None:
    shares = watched({0: (-0.5, 1.0), 1: (-0.9921875, 0.3), 2: (-0.9921875, 0.2), 3: (-0.99, 0.1)})
    assert _kept(shares, 3, ACCURACY) == (
        "3 epochs, epoch 2 is kept, the best on the search split (accuracy 99.22 %, before the first 50.00 %)"
    )
    errors = watched({0: (4.0, 1.0), 1: (2.5, 2.0)})
    assert _kept(errors, 1, METRICS["mse"]) == (
        "1 epoch, epoch 1 is kept, the best on the search split (MSE 2.5, before the first 4)"
    )
    assert _kept(watched({0: (1.0, 1.0), 1: (0.5, 1.0)}, keep_best=False), 1, ACCURACY) == "1 epoch, the last is kept"


@pytest.mark.parametrize(("share", "can"), [(1.0, False), (0.99, True)])
def test_a_network_that_cannot_be_better_is_not_told_to_train_for_longer(share: float, can: bool) -> None:
    text = _no_better(watched({0: (-share, 0.1), 1: (-share + 0.1, 0.2)}), ACCURACY, 400)
    assert text is not None
    assert f"accuracy {100 * share:.2f} % on the search split" in text
    assert ("train for longer" in text) is can
    assert ("cannot be better" in text) is not can


@pytest.mark.parametrize(("after", "warns"), [(0.96, False), (0.945, False), (0.935, True), (math.nan, True)])
def test_epochs_that_are_worse_by_a_standard_error_alone_are_not_warned_of(after: float, warns: bool) -> None:
    # of 384 samples: sqrt(0.955 · 0.045 / 384) = 0.0106, beside the better of two epochs
    value = math.inf if math.isnan(after) else -after
    text = _no_better(watched({0: (-0.955, 0.1), 1: (math.inf, 0.3), 2: (value, 0.2)}), ACCURACY, 384)
    assert (text is not None) is warns


def test_a_finished_training_is_not_repeated(write_config: WriteConfig, workload: Workload, tmp_path: Path) -> None:
    store = StateFile(tmp_path / "state.pt")
    first, told = tuned(write_config, workload, store, epochs=2)
    assert len(told.losses) == 2
    again, told = tuned(write_config, workload, store, epochs=2)
    assert told.losses == []
    assert same(first, again)


def test_an_augmentation_from_a_file_changes_the_training(
    write_config: WriteConfig, workload: Workload, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def mirror(batch):\n    return batch.map(lambda images: images.flip(-1))\n")
    plain, _ = tuned(write_config, workload, keep="last")
    mirrored, _ = tuned(write_config, workload, keep="last", augmentation=f"{tmp_path}/mine.py:mirror")
    assert not same(plain, mirrored)
    again, _ = tuned(write_config, workload, keep="last", augmentation=f"{tmp_path}/mine.py:mirror")
    assert same(mirrored, again)


@pytest.mark.parametrize(
    ("keys", "keeps"),
    [
        ({}, False),
        ({"finetune.batch_size": 8}, True),
        ({"finetune.batch_size": 8, "finetune.batch_norm": "train"}, False),
        ({"finetune.batch_norm": "freeze"}, True),
        ({"bn_recalibration": False}, True),
    ],
)
def test_batch_norms_keep_their_statistics_where_batches_say_too_little(
    write_config: WriteConfig, workload: Workload, keys: dict[str, object], keeps: bool
) -> None:
    settings = {"finetune.epochs": 1, "finetune.distillation": None, "finetune.keep": "last", **keys}
    config = load(write_config(), keys={f"recovery.{key}": value for key, value in settings.items()})
    model = copy.deepcopy(workload.model)
    fine_tune(config, config.recovery.finetune, workload, model, Told())
    pairs = zip(workload.model.named_buffers(), model.named_buffers(), strict=True)
    assert all(torch.equal(before, after) for (_, before), (_, after) in pairs) is keeps
    assert not same(workload.model, model)


@pytest.mark.parametrize("verb", ["search", "prune"])
def test_statistics_of_the_refit_are_gone_when_a_training_begins(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    made: list[weakref.ref[Reconstruction]] = []
    alive: list[int] = []
    begin = Reconstruction.__init__

    def noted(self: Reconstruction, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)
        made.append(weakref.ref(self))

    def trained(*args: object, **kwargs: object) -> list[float]:
        if made:  # the network itself and the rehearsal are trained before channels are ranked
            alive.append(sum(each() is not None for each in made))
        return fit(*args, **kwargs)

    monkeypatch.setattr(Reconstruction, "__init__", noted)
    monkeypatch.setattr("amcsearch.jobs.finetuning.fit", trained)
    settings = {"recovery.finetune": {"epochs": 1, "batch_size": 64}, "device.rounds": 2, "search.baseline": None}
    goal = {"budget": {"macs": "0.7x"}, "trials": 3} if verb == "search" else {"target": {"macs": "0.7x"}}
    getattr(amcsearch, verb)(config=write_config(), selector="obc", **goal, settings=settings, observer=Silent())
    assert len(made) == 1
    assert alive == [0] * (3 if verb == "search" else 1)  # two finalists, and the network that is delivered
