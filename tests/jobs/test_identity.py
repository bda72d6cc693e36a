"""A run goes on with the network and the data that it began with, or not at all; and no cache gives other weights."""

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config.identity import config_hash
from amcsearch.config.loading import dump
from amcsearch.core.errors import BadInputError
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.jobs.identity import _digest, begin_workload, end_workload
from amcsearch.jobs.request import make_request
from amcsearch.runs.folder import RunFolder
from amcsearch.training.identity import fingerprint

IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 4
SETTINGS = {"data.splits": {"calibration": 12, "search": 12, "test": 12}}


class Silent:
    """Hears everything, says nothing."""

    def phase(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def epoch(self, epoch: int, loss: float) -> None: ...
    def trial(self, trial: object, best: object, done: int, total: int) -> None: ...
    def progress(self, share: float, text: str) -> None: ...


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()


def begin(folder: Path, model: nn.Module, data: object = (IMAGES, LABELS), **objects: object) -> str:
    """Begin or resume a run; return its fingerprint."""
    config, given = make_request(None, SETTINGS, objects, model, data)
    with RunFolder.create(folder, dump(config), config_hash(config), resume=True) as run:
        return fingerprint(begin_workload(config, given, run, Silent())[1])


def refusal(folder: Path, *given: object, **objects: object) -> str:
    with pytest.raises(BadInputError) as error:
        begin(folder, *given, **objects)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    first = begin(tmp_path / "run", network())
    stored = (tmp_path / "run" / "identity.json").read_text()
    assert begin(tmp_path / "run", network(), (IMAGES.numpy(), LABELS.numpy().astype(np.int32))) == first
    assert (tmp_path / "run" / "identity.json").read_text() == stored


def test_other_last_bits_do_not_make_another_run(tmp_path: Path) -> None:
    first = begin(tmp_path / "run", network())
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.0 + 1e-7
    assert begin(tmp_path / "run", model, (IMAGES * (1.0 + 1e-7), LABELS)) == first


def test_what_changed_is_named(tmp_path: Path) -> None:
    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    begin(tmp_path / "run", network())
    labels = LABELS.clone()
    labels[:] = (LABELS + 1) % 4
    structure, weights = refusal(tmp_path / "run", network(width=12)), refusal(tmp_path / "run", network(1))
    computed, data = (
        refusal(tmp_path / "run", Other(*network())),
        refusal(tmp_path / "run", network(), (IMAGES, labels)),
    )
    assert "the structure of the network has changed (0.weight: (8, 1, 3, 3), now (12, 1, 3, 3)" in structure
    assert "the initial weights of the network have changed" in weights
    assert "what the network computes has changed" in computed
    assert "of the train, calibration, search, test splits have changed" in data
    assert "network have" not in data
    assert all("--out" in text for text in (structure, weights, computed, data))
    begin(tmp_path / "run", network())  # a refusal leaves the run as it is


def test_what_is_handed_over_counts_by_its_content(tmp_path: Path) -> None:
    class Mine:
        def __init__(self, strength: float) -> None:
            self.strength = strength

        def run(self, study: object, seed: int) -> None: ...

    begin(tmp_path / "run", network(), **{"search.agent": Mine(0.5)})
    begin(tmp_path / "run", network(), **{"search.agent": Mine(0.5)})
    assert "what search.agent names has changed" in refusal(tmp_path / "run", network(), **{"search.agent": Mine(0.6)})


def test_every_row_of_a_table_counts() -> None:
    table = amcsearch.read_latency_table("x86_epyc_avx512")
    rows = table.rows.copy()
    middle = len(rows) // 2
    column = next(i for i, name in enumerate(rows.columns) if name.endswith("_ms"))
    rows.iloc[middle, column] = float(rows.iloc[middle, column]) * 1.5
    other = LatencyTable(rows, table.provenance, table.networks, table.extra)
    same = LatencyTable(table.rows.copy(), table.provenance, table.networks, table.extra)
    assert _digest(table) == _digest(same) != _digest(other)
    assert isinstance(rows, pd.DataFrame)


def test_a_folder_without_its_identity_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "run", network())
    (tmp_path / "run" / "identity.json").unlink()
    begin(tmp_path / "run", network())  # nothing was evaluated yet
    (tmp_path / "run" / "identity.json").unlink()
    (tmp_path / "run" / "study.db").touch()
    assert "holds study.db but no identity.json" in refusal(tmp_path / "run", network())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": 3}', "null"])
def test_a_damaged_identity_is_one_line(tmp_path: Path, text: str) -> None:
    begin(tmp_path / "run", network())
    (tmp_path / "run" / "identity.json").write_text(text)
    assert "identity.json is damaged" in refusal(tmp_path / "run", network())


def test_results_of_two_networks_never_stand_in_one_table(tmp_path: Path) -> None:
    asked = {"budget": {"macs": "0.7x"}, "agent": "random", "trials": 2, "folder": tmp_path / "run"}
    settings = {**SETTINGS, "search.baseline": None, "recovery.finetune": None, "device.rounds": 10}
    first = amcsearch.search(network(), (IMAGES, LABELS), **asked, settings=settings, observer=Silent())
    with pytest.raises(BadInputError, match="initial weights of the network have changed"):
        amcsearch.search(network(1), (IMAGES, LABELS), **asked, settings=settings, resume=True, observer=Silent())
    again = amcsearch.search(network(), (IMAGES, LABELS), **asked, settings=settings, resume=True, observer=Silent())
    assert list(again.trials["reward"]) == list(first.trials["reward"])


JOB = """
import torch
from torch.utils.data import TensorDataset
from parts_of_job import Net, LABELS

def network():
    return Net()

def data():
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"train": TensorDataset(images, LABELS)}
"""
PARTS = """
import torch
from torch import nn

LABELS = torch.arange(60) % 4

class Net(nn.Sequential):
    def __init__(self):
        first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

    def forward(self, x):
        return super().forward(x)
"""
CONFIG = """
name: job
model: {factory: "factories_of_job.py:network", pretrain: {epochs: 1, learning_rate: 0.05, batch_size: 16}}
data: {factory: "factories_of_job.py:data", splits: {calibration: 12, search: 12, test: 12}}
device: {rounds: 10}
recovery: {finetune: null}
search: {agent: random, baseline: null, trials: 2, finalists: 1}
sparsify: {training: {epochs: 1, batch_size: 16}}
"""


class Job:
    """A configuration whose factories import a module."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "job.yaml"
        self.config.write_text(CONFIG)
        self.edit(JOB, "factories_of_job.py")
        self.edit(PARTS)

    def edit(self, text: str, name: str = "parts_of_job.py") -> None:
        """Write a module as if in another process."""
        (self.folder / name).write_text(text)
        for module in ("factories_of_job", "parts_of_job"):
            sys.modules.pop(module, None)
        for cached in self.folder.rglob("*.pyc"):
            cached.unlink()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setenv("AMCSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Job(tmp_path)
    for module in ("factories_of_job", "parts_of_job"):
        sys.modules.pop(module, None)


VERBS = {
    "search": ["search"],
    "prune": ["prune", "--target", "macs=0.7x"],
    "rounds": ["prune", "--target", "macs=0.7x", "--set", "recovery.finetune={epochs: 2}", "--rounds", "2"],
    "sparsify": ["sparsify"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_edit_of_an_imported_module_is_refused_by_name(
    job: Job, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = VERBS[verb]
    command = [name, str(job.config), *options, "-o", str(tmp_path / "run")]
    assert main(command) == 0
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("summary.json", "config.yaml", "identity.json")}
    for old, new, words in (
        ("return super().forward(x)", "return -super().forward(x)", "what the network computes has changed"),
        ("nn.Conv2d(8, 8, 3)", "nn.Conv2d(8, 8, 3, bias=False)", "the structure of the network has changed (2.bias"),
        (
            "        first, second",
            "        torch.rand(())\n        first, second",
            "the initial weights of the network have changed",
        ),
        (
            "LABELS = torch.arange(60) % 4",
            "LABELS = torch.arange(60) % 3",
            "of the train, calibration, search, test splits have changed",
        ),
    ):
        assert old in PARTS
        job.edit(PARTS.replace(old, new))
        capsys.readouterr()
        assert main([*command, "--resume"]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in line
        assert bool(re.search("of the network ha|network computes", line)) != ("splits have" in line)
        assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}
    job.edit("# a remark\n" + PARTS)
    job.edit("# a remark\n" + JOB, "factories_of_job.py")  # what factories give counts, not their text
    assert main([*command, "--resume"]) == 0


def test_an_edit_of_a_named_file_is_refused_by_its_key(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"0": 6, "2": 6}')
    command = ["prune", str(job.config), "--policy", str(policy), "-o", str(tmp_path / "run")]
    assert main(command) == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    policy.write_text('{"0": 4, "2": 6}')
    assert main([*command, "--resume"]) == 2
    assert "what prune.policy names has changed" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_a_cache_never_gives_weights_of_another_network(job: Job) -> None:
    def trained() -> dict[str, Tensor]:
        config, given = make_request(job.config, None, {}, None)
        workload, identity = begin_workload(config, given, None, Silent())
        workload, _ = end_workload(config, workload, identity, None, Silent())
        return copy.deepcopy(workload.model.state_dict())

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    first = trained()
    assert same(first, trained())
    job.edit(PARTS.replace("return super().forward(x)", "return -super().forward(x)"))
    other = trained()
    assert not same(first, other)
    assert same(other, trained())
    job.edit(PARTS)
    assert same(first, trained())


def test_a_resumed_run_keeps_the_weights_that_it_trained(job: Job, tmp_path: Path) -> None:
    config, given = make_request(job.config, None, {}, None)

    def weights(cache: str) -> Tensor:
        with (
            pytest.MonkeyPatch.context() as patch,
            RunFolder.create(tmp_path / "run", dump(config), config_hash(config), resume=True) as run,
        ):
            patch.setenv("AMCSEARCH_CACHE", str(tmp_path / cache))
            workload, identity = begin_workload(config, given, run, Silent())
            return end_workload(config, workload, identity, run, Silent())[0].model[0].weight.detach().clone()

    first = weights("one")
    assert torch.equal(first, weights("two"))
    assert not (tmp_path / "two").exists()  # they came from the run's own folder
    kept = tmp_path / "run" / ".trained.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x55")
    assert torch.equal(first, weights("three"))  # trained again
    assert torch.equal(first, weights("four"))
    assert not (tmp_path / "four").exists()
    stored = json.loads((tmp_path / "run" / "identity.json").read_text())
    stored["trained"]["tensors"]["0.weight"].update(digest="other", norm=100.0)
    (tmp_path / "run" / "identity.json").write_text(json.dumps(stored))
    with pytest.raises(BadInputError, match=r"the trained weights of the network have changed \(0\.weight\)"):
        weights("five")
