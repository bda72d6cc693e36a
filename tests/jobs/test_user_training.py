"""A training of the user's own: what it is given, what is taken back, and what is refused with the policy kept."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amcsearch
from amcsearch import TrainingRequest
from amcsearch.cli.main import main
from amcsearch.config import Config, from_mapping, load
from amcsearch.core import ACCURACY, Metric, PruningPolicy
from amcsearch.core.errors import BadInputError
from amcsearch.jobs.finetuning import _worse, check_trainings
from amcsearch.jobs.user_training import train_by_user
from amcsearch.jobs.workload import CONFIGURED, Workload, load_workload

WriteConfig = Callable[..., Path]
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_training.py"
SHORT = ("--set", "device.rounds=5", "--set", "model.pretrain.epochs=1", "--set", "device.profile=null")


@pytest.fixture
def config(write_config: WriteConfig) -> Config:
    return load(write_config(), ["model.pretrain=null", "seed=5"])


@pytest.fixture
def workload(config: Config) -> Workload:
    return load_workload(config)


def test_a_policy_that_an_error_names_is_kept_where_no_folder_was_asked_for() -> None:
    images, labels = torch.randn(60, 1, 8, 8), torch.arange(60) % 4
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(BadInputError, match="the policy is kept") as refused:
        amcsearch.prune(
            network,
            (images, labels),
            target={"macs": "0.6x"},
            finetune=lambda _: None,
            settings={"device.rounds": 5, "data.splits": {"calibration": 12, "search": 12, "test": 12}},
        )
    named = Path(str(refused.value).split("policy='")[1].split("'")[0])
    assert PruningPolicy.read(named)
    shutil.rmtree(named.parent.parent)


def test_a_training_that_made_the_network_worse_is_told() -> None:
    error = Metric("error", "K", higher_is_better=False)
    assert _worse(ACCURACY, 0.8, 0.9) == _worse(error, 0.5, 0.5) == ()
    assert "what it returned is delivered: accuracy went from 90.00 % to 80.00 %" in _worse(ACCURACY, 0.9, 0.8)[0]
    assert "error went from 0.5 K to 0.6 K" in _worse(error, 0.5, 0.6)[0]


def constant(request: TrainingRequest) -> nn.Module:
    for parameter in request.model.parameters():
        nn.init.constant_(parameter, 0.25)
    return request.model


def test_it_is_given_copies_and_data_and_its_weights_come_back(
    config: Config, workload: Workload, tmp_path: Path
) -> None:
    seen: list[TrainingRequest] = []
    drawn: list[tuple[float, float]] = []

    def training(request: TrainingRequest) -> nn.Module:
        seen.append(request)
        drawn.append((float(torch.rand(())), float(np.random.rand())))  # noqa: NPY002
        return constant(request)

    model, before = copy.deepcopy(workload.model), copy.deepcopy(workload.model.state_dict())
    state = torch.get_rng_state()
    for folder in ("a", "b"):
        train_by_user(training, config, workload, model, tmp_path / folder)
    (request, _) = seen
    assert request.model is not model
    assert request.model.training
    assert not request.teacher.training
    assert (request.seed, request.torch_device, request.folder.is_dir()) == (5, "cpu", True)
    assert len(request.train) + 96 + 96 == 400
    assert len(request.search) == 96
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool((parameter == 0.25).all()) for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())


class Wrapper(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.module = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def other_function(request: TrainingRequest) -> nn.Module:
    request.model.register_forward_hook(lambda module, inputs, output: 2.0 * output)
    return request.model


def wider(request: TrainingRequest) -> nn.Module:
    request.model.head = nn.Linear(16, 5)
    return request.model


def with_nan(request: TrainingRequest) -> nn.Module:
    request.model.head.bias.data[1] = torch.nan
    return request.model


def broken(request: TrainingRequest) -> nn.Module:
    raise RuntimeError("the trainer has no devices")


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (lambda request: None, "returned a NoneType, must return the network; end it with return request.model"),
        (lambda request: Wrapper(request.model), "has no 'stem.0.weight'; return the network that was given"),
        (wider, "'head.weight' is of shape (5, 16), must be (4, 16)"),
        (with_nan, "weights that are not finite: 'head.bias'; lower its learning rate"),
        (other_function, "returned another network: its output"),
        (broken, "RuntimeError: the trainer has no devices"),
    ],
)
def test_what_is_not_the_pruned_network_with_other_weights_is_refused(
    config: Config, workload: Workload, tmp_path: Path, training: Callable[..., nn.Module], words: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        train_by_user(training, config, workload, copy.deepcopy(workload.model), tmp_path / "folder")
    assert words in str(caught.value)
    assert "recovery.finetune.factory" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("recovery.finetune.factory", f"{EXAMPLE}:none", "has no 'none'"),
        ("recovery.finetune.augmentation", f"{EXAMPLE}:none", "recovery.finetune: factory"),
        ("recovery.finetune.precision", "float16", "recovery.finetune: precision = 'float16' needs a CUDA device"),
        ("model.pretrain.precision", "float16", "model.pretrain: precision = 'float16' needs a CUDA device"),
        ("sparsify.training.accumulation", 2, "sparsify.training: accumulation = 2 is not possible under masks"),
        ("recovery.finetune.clip_norm", 1.0, "recovery.finetune: clip_norm = 1.0 is not possible under masks"),
    ],
)
def test_trainings_that_cannot_be_done_are_refused_before_anything_is_done(
    write_config: WriteConfig, key: str, value: object, words: str
) -> None:
    config = load(write_config(), keys={key: value})
    with pytest.raises(BadInputError) as caught:
        check_trainings(config, CONFIGURED, sparsifies=words.endswith("masks"))
    assert words in str(caught.value)


def test_an_average_of_weights_before_they_were_masked_is_refused(write_config: WriteConfig) -> None:
    with pytest.raises(BadInputError, match=r"training\.ema = 0\.9 would average weights"):
        load(write_config(), ["sparsify.training.ema=0.9"])


def test_a_search_refuses_it_before_training(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", str(write_config()), "--out", str(tmp_path / "run")]
    for options in ([], ["--dry-run"]):
        assert main([*arguments, *options, "--set", "recovery.finetune.factory=nowhere.py:train"]) == 2
        assert "nowhere.py" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_example_trains_a_pruned_network_of_a_configuration(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    factory = ["--set", f"recovery.finetune.factory={EXAMPLE}:follow"]
    assert main(["prune", str(write_config()), "--target", "macs=0.7x", *SHORT, *factory, "--out", str(folder)]) == 0
    (kept,) = (folder / ".user_training").iterdir()
    assert kept.name.endswith("my_training.py_follow")
    assert sorted(path.name for path in kept.iterdir()) == ["epoch_1.pt", "epoch_2.pt"]
    trained = torch.load(kept / "epoch_2.pt", weights_only=True)
    delivered = amcsearch.load(folder).model.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in delivered.items())
    assert json.loads((folder / "summary.json").read_text())["finetuned"]["accuracy"] > 0.0


def test_a_function_in_memory_trains_and_its_failure_keeps_the_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    data = TensorDataset(torch.randn(120, 1, 8, 8), torch.arange(120) % 4)
    settings = {"data.splits": {"calibration": 30, "search": 30, "test": 30}, "device.rounds": 5}
    arguments = {"target": {"macs": "0.7x"}, "settings": settings}
    result = amcsearch.prune(model, data, finetune=constant, folder=tmp_path / "kept", **arguments)
    assert all(bool((parameter == 0.25).all()) for parameter in result.model.parameters())
    cure = r"go on with it: amcsearch\.prune\(model, data, policy='.*failed/policy\.json', finetune=None\)"
    with pytest.raises(BadInputError, match=rf"returned a NoneType.*the policy is kept, {cure}"):
        amcsearch.prune(model, data, finetune=lambda request: None, folder=tmp_path / "failed", **arguments)
    policy = json.loads((tmp_path / "failed" / "policy.json").read_text())
    assert policy == dict(result.policy)
    with pytest.raises(BadInputError, match="finetune is a int, expected a function"):
        amcsearch.prune(model, data, finetune=3, **arguments)


def test_a_factory_and_an_augmentation_are_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(request): return request.model\ndef change(batch): return batch\n")
    (tmp_path / "c.yaml").write_text(
        "model: {factory: 'mine.py:train'}\ndata: {factory: 'mine.py:train'}\n"
        "recovery: {finetune: {factory: 'mine.py:train', augmentation: 'mine.py:change'}}\n"
    )
    finetune = load(tmp_path / "c.yaml").recovery.finetune
    assert finetune is not None
    assert finetune.factory == f"{tmp_path}/mine.py:train"
    assert finetune.augmentation == f"{tmp_path}/mine.py:change"
    assert from_mapping({"model": {"factory": "a:b"}, "data": {"factory": "a:b"}}).recovery.finetune.keep == "best"
