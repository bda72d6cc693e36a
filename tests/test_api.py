"""The public API: objects in, typed results out, and the smaller network back in any process."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config import load
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.jobs import make_request
from amcsearch.search import Study
from amcsearch.training import stacked

SETTINGS = {
    "data.splits": {"calibration": 64, "search": 96, "test": 96},
    "device.rounds": 10,
    "recovery.finetune.epochs": 1,
    "search.baseline": None,
    "search.finalists": 1,
}
SPARSE = {"data.splits": SETTINGS["data.splits"], "sparsify.training.epochs": 1, "recovery.finetune.epochs": 0}


PUBLIC = [
    "__version__",
    "AGENTS",
    "Agent",
    "BadInputError",
    "Budget",
    "CRITERIA",
    "ChannelGroup",
    "Comparison",
    "Config",
    "Cost",
    "CostGrid",
    "CostModel",
    "Criterion",
    "DeviceProfile",
    "EnergyModel",
    "EnergyReport",
    "Evaluation",
    "Evaluator",
    "FeasibleSet",
    "FrontResult",
    "GATES",
    "InfeasibleBudgetError",
    "LatencyTable",
    "LayerKind",
    "LayerSpec",
    "LayerwiseEnv",
    "Macs",
    "Need",
    "NetworkSpec",
    "Observer",
    "Params",
    "PolicySpace",
    "ProcessExecutor",
    "PruningPolicy",
    "REDUCTIONS",
    "RunResult",
    "SCHEDULES",
    "SELECTORS",
    "SearchResult",
    "Selector",
    "Sensitivity",
    "SerialExecutor",
    "SparsifyResult",
    "SparsifySummary",
    "Statistics",
    "Study",
    "Summary",
    "Trace",
    "TrainingRequest",
    "Trial",
    "compare",
    "connect",
    "energy",
    "fold_weights",
    "front",
    "load",
    "make_env",
    "masked",
    "measure_latency_table",
    "prune",
    "read_device",
    "read_latency_table",
    "remove",
    "search",
    "sensitivity",
    "sparsify",
    "trace",
    "verify",
    "write_latency_table",
]


class Silent:
    """An observer that keeps the phases, the warnings and the number of trials it was told of."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.warnings: list[str] = []
        self.trials = 0

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def epoch(self, epoch: int, loss: float) -> None: ...

    def trial(self, trial: object, best: object, done: int, total: int) -> None:
        self.trials = done

    def progress(self, share: float, text: str) -> None: ...


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """``tiny_job.py``."""
    path = Path(__file__).parent / "tiny_job.py"
    spec = importlib.util.spec_from_file_location("tiny_job", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tiny: ModuleType) -> nn.Module:
    """The tiny network after two epochs."""
    torch.manual_seed(0)
    model = tiny.network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for x, y in DataLoader(tiny.quadrants()["train"], 32, shuffle=True, generator=generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.train()


@pytest.fixture(scope="module")
def data(tiny: ModuleType) -> TensorDataset:
    return tiny.quadrants()["train"]


@pytest.fixture(scope="module")
def images(data: TensorDataset) -> Tensor:
    """(17, 1, 8, 8): another batch size than any the network was exported with."""
    return stacked(data, 17)[0]


@pytest.fixture(scope="module")
def result(trained: nn.Module, data: TensorDataset) -> amcsearch.SearchResult:
    """What a search over the network and data in memory returns."""
    return amcsearch.search(
        trained, data, budget={"macs": "0.5x"}, trials=6, agent="random", settings=SETTINGS, observer=Silent()
    )


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_a_search_on_objects_returns_a_smaller_network_and_all_that_was_tried(
    trained: nn.Module, result: amcsearch.SearchResult
) -> None:
    def parameters(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert type(result.model) is type(trained)
    assert parameters(result.model) < parameters(trained)
    assert isinstance(result.policy, PruningPolicy)
    assert len(result.trials) == 6
    assert set(result.front["number"]) <= set(result.trials["number"])
    assert (result.trials["macs"] <= result.summary.budget["macs"].limit).all()
    assert isinstance(result.summary, amcsearch.Summary)
    assert result.summary.evaluations == 6
    assert result._repr_html_().startswith("<iframe")


def test_a_result_shows_its_figures(result: amcsearch.SearchResult, tmp_path: Path) -> None:
    dense, tuned = result.summary.dense.cost["macs"], result.summary.finetuned.cost["macs"]
    assert f", macs {tuned / dense:.2f}x, " in repr(result)
    assert repr(result).endswith(f", {result.verdict.state})")
    folder = result.save(tmp_path / "damaged")
    damaged = amcsearch.load(folder)
    (folder / "summary.json").write_text("{")
    assert repr(damaged) == f"SearchResult({str(folder)!r})"


def test_the_callers_network_is_left_as_it_was(trained: nn.Module, data: TensorDataset) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    amcsearch.prune(trained, data, target={"macs": "0.6x"}, settings=SETTINGS, observer=Silent())
    assert trained.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_switched_off_are_recorded(
    trained: nn.Module, data: TensorDataset, switch: Callable[[], AbstractContextManager[None]]
) -> None:
    random = torch.get_rng_state()
    with switch():
        result = amcsearch.prune(trained, data, target={"macs": "0.6x"}, settings=SETTINGS, observer=Silent())
        assert not torch.is_grad_enabled()
    assert result.summary.finetuned is not None
    assert torch.equal(torch.get_rng_state(), random)


def test_calls_in_two_threads_come_one_after_the_other(trained: nn.Module, data: TensorDataset) -> None:
    def pruned(seed: int) -> amcsearch.SearchResult:
        return amcsearch.prune(trained, data, target={"macs": "0.6x"}, seed=seed, settings=SETTINGS, observer=Silent())

    with ThreadPoolExecutor(2) as pool:
        several = list(pool.map(pruned, [0, 0]))
    assert several[0].policy == several[1].policy == pruned(0).policy


def test_the_smaller_network_comes_back_to_the_last_bit(
    tiny: ModuleType, result: amcsearch.SearchResult, images: Tensor, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "kept")
    wanted = outputs(result.model, images)
    untrained = tiny.network()
    for loaded in (amcsearch.load(folder, untrained), amcsearch.load(folder, source="program"), amcsearch.load(folder)):
        assert torch.equal(outputs(loaded.model, images), wanted)
    assert amcsearch.load(folder).policy == result.policy
    with pytest.raises(BadInputError, match=r"model\.factory is null"):
        _ = amcsearch.load(folder, source="factory").model


def test_the_program_needs_neither_the_factory_nor_this_package(
    result: amcsearch.SearchResult, images: Tensor, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "kept")
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['amcsearch'] = sys.modules['tiny_job'] = None\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r})\n"
        f"model = torch.export.load({str(folder / 'pruned.pt2')!r}).module()\n"
        f"torch.save(model(images), {str(tmp_path / 'outputs.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), outputs(result.model, images))


def test_a_configured_run_comes_back_by_its_own_factory(write_config, images: Tensor, tmp_path: Path) -> None:
    result = amcsearch.search(
        config=write_config(), trials=3, agent="uniform", settings=SETTINGS, folder=tmp_path / "run", observer=Silent()
    )
    again = amcsearch.load(tmp_path / "run", source="factory")
    assert type(again.model).__name__ == "Tiny"
    assert torch.equal(outputs(again.model, images), outputs(result.model, images))


class Other(nn.Module):
    """Another last activation than the network's, with the same weights."""

    def __init__(self, tiny: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = tiny.stem, tiny.body, tiny.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.tanh(x + self.body(x)).mean((2, 3)))


def test_a_network_that_computes_something_else_is_not_loaded(
    tiny: ModuleType, result: amcsearch.SearchResult, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "kept")
    with pytest.raises(BadInputError, match="has changed; restore"):
        _ = amcsearch.load(folder, Other(tiny.network())).model
    weights = load_file(folder / "pruned.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1.0}, folder / "pruned.safetensors")
    with pytest.raises(BadInputError, match="has changed; restore"):
        _ = amcsearch.load(folder, tiny.network()).model
    assert amcsearch.load(folder).model is not None  # by its program: the network was handed over in Python


def test_a_program_in_place_of_a_changed_factory_is_said(write_config, tmp_path: Path) -> None:
    settings = {"search.trials": 2, "search.baseline": None, "model.pretrain": None, "recovery.finetune": None}
    result = amcsearch.search(config=write_config(), settings=settings, folder=tmp_path / "run", observer=Silent())
    path = result.folder / "pruned.safetensors"
    weights = load_file(path)
    save_file({**weights, "head.bias": weights["head.bias"] + 1.0}, path)
    with pytest.warns(UserWarning, match="was loaded in place of the run's factory"):
        _ = amcsearch.load(result.folder).model
    with pytest.raises(BadInputError, match="has changed; restore"):
        _ = amcsearch.load(result.folder, source="factory").model


@pytest.mark.parametrize("kind", [PruningPolicy, dict])
def test_a_policy_in_memory_is_applied_as_it_is(
    trained: nn.Module, data: TensorDataset, result: amcsearch.SearchResult, tmp_path: Path, kind: type
) -> None:
    asked = {"policy": kind(result.policy), "settings": SETTINGS, "folder": tmp_path / "run", "observer": Silent()}
    amcsearch.prune(trained, data, **asked)
    pruned = amcsearch.prune(trained, data, **asked, resume=True)
    assert pruned.policy == result.policy
    assert [p.shape for p in pruned.model.parameters()] == [p.shape for p in result.model.parameters()]


@pytest.mark.parametrize("granularity", ["weights", "channels"])
def test_a_sparse_network_comes_back_to_the_last_bit(
    tiny: ModuleType, trained: nn.Module, data: TensorDataset, images: Tensor, tmp_path: Path, granularity: str
) -> None:
    settings = {**SPARSE, "sparsify.granularity": granularity}
    result = amcsearch.sparsify(
        trained, data, target={"sparsity": 0.5}, settings=settings, folder=tmp_path / "run", observer=Silent()
    )
    assert result.densities["kept"].sum() / result.densities["total"].sum() == pytest.approx(0.5, abs=0.05)
    assert set(result.masks) == set(result.densities["name"])
    loaded = amcsearch.load(tmp_path / "run", tiny.network())
    assert isinstance(loaded, amcsearch.SparsifyResult)
    assert loaded.summary == result.summary
    assert loaded.summary.granularity == granularity
    assert loaded.summary.kept == result.densities["kept"].sum()
    assert torch.equal(outputs(loaded.model, images), outputs(result.model, images))


def test_every_verb_takes_a_task(trained: nn.Module, data: TensorDataset) -> None:
    for verb in (amcsearch.search, amcsearch.prune, amcsearch.sparsify, amcsearch.make_env):
        with pytest.raises(BadInputError, match=r"task.name = 'regresion'.*regression"):
            verb(trained, data, task="regresion")


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("front", {"devices": "edge_cpu"}, r"devices = 'edge_cpu', expected a list, such as \['edge_cpu'\]"),
        ("front", {"devices": 3}, "devices = 3, expected a list"),
        ("compare", {"agents": "random"}, r"agents = 'random', expected a list, such as \['ddpg', 'random'\]"),
        ("compare", {"agents": ["random"], "seeds": 3}, r"seeds = 3, expected a list, such as \[0, 1, 2\]"),
        ("search", {"settings": ["seed"]}, r"settings = \['seed'\], expected keys with values"),
        ("search", {"workers": "2"}, "workers = '2', must be at least 1"),
        ("search", {"folder": 3}, "path 3 is a int, expected text or a Path"),
        (
            "search",
            {"budget": {"latency_ms": "0.5x"}, "table": 3},
            "table = 3 is a int, expected its path or name",
        ),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(
    trained: nn.Module, data: TensorDataset, verb: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        getattr(amcsearch, verb)(trained, data, **{"settings": SETTINGS, **arguments})
    with pytest.raises(BadInputError, match="path None is a NoneType"):
        amcsearch.load(None)


class Branching(nn.Module):
    """The network inside a branch on its own input, which ``torch.export`` cannot follow."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) if bool(x.sum() < 1e9) else self.network(-x)


@pytest.mark.parametrize(("verb", "target"), [("prune", {"macs": "0.6x"}), ("sparsify", {"sparsity": 0.5})])
def test_a_network_without_a_program_is_warned_of(
    tiny: ModuleType, data: TensorDataset, tmp_path: Path, verb: str, target: dict[str, object]
) -> None:
    observer, settings = Silent(), {"prune": SETTINGS, "sparsify": SPARSE}[verb]
    function = getattr(amcsearch, verb)
    result = function(
        Branching(tiny.network()), data, target=target, settings=settings, folder=tmp_path / "run", observer=observer
    )
    assert not (result.folder / "pruned.pt2").exists()
    assert sum("pruned.pt2 is not written" in text for text in observer.warnings) == 1


def test_loaders_tensors_and_mappings_are_data_too(trained: nn.Module, data: TensorDataset) -> None:
    inputs, targets = stacked(data)
    split = {"train": (inputs[:300], targets[:300]), "test": DataLoader(TensorDataset(inputs[300:], targets[300:]))}
    settings = {**SETTINGS, "data.splits": {"calibration": 64, "search": 64}, "recovery.finetune": None}
    del settings["recovery.finetune.epochs"]
    for given in (DataLoader(data, batch_size=7, shuffle=True), (inputs, targets), split):
        found = amcsearch.prune(trained, given, target={"macs": "0.6x"}, settings=settings, observer=Silent())
        assert found.summary.finetuned.cost["macs"] <= 0.6 * found.summary.dense.cost["macs"]


class Brittle(nn.Module):
    """Gives NaN once the sum of its channels falls below what it was, less a little."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        self.register_buffer("least", torch.zeros(()))

    def channels(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        channels = self.channels(x)
        return self.head(channels) + torch.sqrt(channels.sum(1, keepdim=True) - self.least)


def test_a_pruned_network_that_gives_nan_is_refused_before_it_is_trained(data: TensorDataset) -> None:
    torch.manual_seed(0)
    model = Brittle()
    with torch.no_grad():
        model.least.copy_(0.999 * model.channels(torch.cat([image[None] for image, _ in data])).sum(1).min())
    observer = Silent()
    with pytest.raises(BadInputError, match="loss on the search split is nan: it gives NaN or infinity without"):
        amcsearch.prune(model, data, target={"macs": "0.4x"}, settings=SETTINGS, observer=observer)
    (warning,) = (text for text in observer.warnings if "a pruned copy" in text)  # of the rehearsal
    assert "Brittle gives NaN or infinity for 32 of 32 samples of the search split" in warning
    assert "these inputs are finite, so it begins in the operations between the layers of Brittle" in warning
    assert "targets" not in warning


class Narrowest:
    """An agent that tries the narrowest policies alone."""

    def run(self, study: Study, seed: int) -> None:
        del seed
        floor, last = study.space.floor, study.space.choices[-1]
        policies = [np.array([*floor[:-1], width]) for width in last[: study.remaining]]
        study.evaluate([study.network.policy(counts) for counts in policies])


def test_the_baseline_delivers_where_the_agent_found_nothing(data: TensorDataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, observer = Brittle(), Silent()
    with torch.no_grad():  # the sum of channels falls with each that goes, and the narrowest policies have too little
        model.two.weight.abs_()
        model.least.copy_(0.4 * model.channels(torch.cat([image[None] for image, _ in data])).sum(1).min())
    result = amcsearch.search(
        model,
        data,
        budget={"macs": "0.9x"},
        trials=4,
        agent=Narrowest(),
        criterion="random",
        settings={**SETTINGS, "search.baseline": "random", "search.start": None},
        folder=tmp_path / "run",
        observer=observer,
    )
    assert {*result.trials[result.trials["agent"] != "random"]["state"]} == {"failed"}
    assert "complete" in set(result.trials[result.trials["agent"] == "random"]["state"])
    assert (result.summary.agent, result.summary.evaluations) == ("random", 4)
    assert result.summary.baseline.endswith("Narrowest")
    (note,) = (text for text in observer.warnings if "found no policy with a finite loss in 4 evaluations" in text)
    assert "the best policy of the baseline, random, is delivered" in note
    assert note in result.summary.warnings
    assert set(result.front["agent"]) == {"random"}


def test_an_agent_and_a_criterion_may_be_objects(trained: nn.Module, data: TensorDataset) -> None:
    observer = Silent()
    result = amcsearch.search(
        trained,
        data,
        budget={"macs": "0.5x"},
        trials=3,
        agent=amcsearch.AGENTS["uniform"](heavier=1),
        criterion=amcsearch.CRITERIA["magnitude"](),
        settings=SETTINGS,
        observer=observer,
    )
    assert observer.trials == 3
    assert set(result.trials["agent"]) == {"amcsearch.search.baselines:UniformSearch"}


def test_a_broken_search_in_a_temporary_folder_is_kept_and_goes_on(trained: nn.Module, data: TensorDataset) -> None:
    class Stops(Silent):
        def trial(self, trial: object, best: object, done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

    asked = {"budget": {"macs": "0.5x"}, "trials": 4, "agent": "random", "settings": SETTINGS}
    with pytest.raises(KeyboardInterrupt) as stopped:
        amcsearch.search(trained, data, **asked, observer=Stops())
    (note,) = stopped.value.__notes__
    folder = note.partition("folder='")[2].partition("'")[0]
    whole = amcsearch.search(trained, data, **asked, observer=Silent())
    resumed = amcsearch.search(trained, data, **asked, folder=folder, resume=True, observer=Silent())
    assert list(resumed.trials["policy"]) == list(whole.trials["policy"])


def test_a_run_of_other_weights_is_not_resumed(
    tiny: ModuleType, trained: nn.Module, data: TensorDataset, tmp_path: Path
) -> None:
    asked = {"target": {"macs": "0.6x"}, "settings": SETTINGS, "folder": tmp_path / "run", "observer": Silent()}
    amcsearch.prune(trained, data, **asked)
    with pytest.raises(BadInputError, match="belongs to another"):
        amcsearch.prune(tiny.network(), data, **asked, resume=True)


def test_the_search_is_an_environment_for_any_library(trained: nn.Module, data: TensorDataset) -> None:
    env = amcsearch.make_env(trained, data, budget={"macs": "0.5x"}, settings=SETTINGS, observer=Silent())
    rewards = []
    for _ in range(2):
        env.reset(seed=0)
        done = False
        while not done:
            _, reward, done, _, info = env.step(env.action_space.low + 0.25)
        rewards.append(reward)
    pruned = amcsearch.prune(trained, data, policy=info["policy"], settings=SETTINGS, observer=Silent())
    assert rewards == [pruned.trials["accuracy"][0] - 1.0] * 2  # AMC's reward: minus the error
    assert pruned.trials["macs"][0] <= 0.5 * pruned.summary.dense.cost["macs"]


def test_a_space_that_runs_out_is_said(trained: nn.Module, data: TensorDataset) -> None:
    class Warned(Silent):
        def warn(self, text: str) -> None:
            warnings.append(text)

    warnings: list[str] = []
    settings = {**SETTINGS, "device.channel_multiple": 1024}
    asked = {"budget": {"macs": "1x"}, "trials": 5, "agent": "random", "settings": settings}
    result = amcsearch.search(trained, data, **asked, observer=Warned())
    assert len(result.trials) == 1
    assert any("ended after 1 evaluation, 4 fewer than search.trials" in text for text in warnings)


class Idle:
    """An agent that evaluates nothing."""

    def run(self, study: object, seed: int) -> None: ...


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"agent": Idle()}, "Idle' evaluated no policy; call study.evaluate"),
        ({"model": None}, "no network: hand over model"),
        ({"data": None}, "no data: hand over data"),
        ({"data": [1, 2, 3]}, "pair"),
        ({"data": 3}, "the train split is a int, expected a dataset"),
        ({"data": (torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.int64))}, "3 inputs and 2 targets"),
        ({"budget": {"macs": "2x"}}, "0.5x"),
        ({"agent": "ddgp"}, "did you mean 'ddpg'"),
        ({"settings": {"search.trails": 3}}, "unknown key search.trails; did you mean 'trials'"),
        ({"model": nn.Linear}, "model is the class Linear, expected an object of torch.nn.Module"),
        ({"model": {"weight": 3}}, "model is a dict, expected an object of torch.nn.Module"),
        ({"agent": object()}, "agent: object has no method 'run'"),
        ({"criterion": object()}, "criterion: object has no attribute 'needs'"),
    ],
)
def test_bad_input_is_one_line(trained: nn.Module, data: TensorDataset, given: dict[str, object], words: str) -> None:
    asked = {"model": trained, "data": data, "budget": {"macs": "0.5x"}, "settings": SETTINGS} | given
    with pytest.raises(BadInputError) as error:
        amcsearch.search(**asked, observer=Silent())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_summary_is_one_error(result: amcsearch.SearchResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "kept")
    (folder / "summary.json").write_text("{")
    with pytest.raises(BadInputError, match=r"summary\.json is damaged"):
        _ = amcsearch.load(folder).summary
    page = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 2
    assert (folder / "report.html").read_bytes() == page
    (folder / "summary.json").write_text((result.folder / "summary.json").read_text())
    (folder / "densities.csv").write_text("name,kept,total,density\n")
    with pytest.raises(BadInputError, match=r"holds a Summary, .* SparsifySummary"):
        _ = amcsearch.load(folder).summary


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pruned.safetensors", b"torn", r"pruned\.safetensors is damaged"),
        ("policy.json", b"{}}", r"policy\.json: policy is not JSON"),
        ("policy.json", b'{"other": 4}', r"no channel groups \['other'\]"),
        ("policy.json", b'{"body.0": 1000000}', r"n_keep of 'body\.0' is 1000000, must be a multiple of 1 up to 24"),
        ("example.safetensors", safetensors.torch.save({"x": torch.zeros(1)}), r"holds \['x'\], expected input"),
        (
            "example.safetensors",
            safetensors.torch.save({"input": torch.zeros(1, 3)}),
            r"does not run on an example of shape \(1, 3\)",
        ),
        ("pruned.pt2", b"torn", r"pruned\.pt2 is damaged"),
        ("pruned.pt2", b"PK\x03\x04torn", r"pruned\.pt2 is damaged"),
    ],
)
def test_a_damaged_file_of_a_network_is_one_error(
    tiny: ModuleType, result: amcsearch.SearchResult, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = result.save(tmp_path / "kept")
    (folder / name).write_bytes(content)
    given = {"source": "program"} if name == "pruned.pt2" else {"model": tiny.network()}
    with pytest.raises(BadInputError, match=words) as error:
        _ = amcsearch.load(folder, **given).model
    assert len(str(error.value).splitlines()) == 1


def test_energy_of_a_network_in_memory(
    trained: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = amcsearch.read_device("eyeriss_65nm")
    policy = PruningPolicy({"stem.0": 8, "body.0": 12})
    report = amcsearch.energy(trained, images[:1], profile=profile, policy=policy, observer=Silent())
    layers = report.layers.set_index(["network", "layer"])
    # 3x3 filters over 8x8 maps
    assert layers.loc[("dense", "stem.0"), "macs"] == 16 * 9 * 64
    assert layers.loc[("pruned", "stem.0"), "macs"] == 8 * 9 * 64
    assert layers.loc[("pruned", "body.0"), "macs"] == 8 * 12 * 9 * 64
    assert list(layers.loc[("pruned", "body.0"), ["in_channels", "out_channels"]]) == [8, 12]
    network = amcsearch.trace(trained.eval(), images[:1]).network
    model = amcsearch.EnergyModel(profile)
    for name, chosen in (("dense", network.dense), ("pruned", policy)):
        wanted = {layer.name: model.layer_cost(layer) for layer in network.with_channels(chosen).layers}
        assert dict(layers.loc[name]["energy_mj"]) == pytest.approx({k: v for k, v in wanted.items() if v})
        assert layers.loc[name]["energy_mj"].sum() == pytest.approx(report.networks[name].energy_mj)
    parts = [column for column in layers.columns if column.endswith("_mj") and column != "energy_mj"]
    assert "dram_weights_mj" in parts
    assert list(layers[parts].sum(axis=1)) == pytest.approx(list(layers["energy_mj"]))
    assert json.loads(json.dumps(report.to_json()))["networks"]["pruned"]["layers"][0]["name"] == "stem.0"
    assert report.files == {}
    assert list(tmp_path.iterdir()) == []


def test_energy_is_written_to_a_folder_that_is_named(trained: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(PruningPolicy({"stem.0": 8, "body.0": 12}).to_json())
    report = amcsearch.energy(
        trained, images[:1], profile="eyeriss_65nm", policy=path, folder=tmp_path / "energy", observer=Silent()
    )
    assert list(report.networks) == ["dense", "pruned"]
    assert {Path(file).name for file in report.files.values()} == {"energy.csv", "energy.svg"}
    assert {file.name for file in (tmp_path / "energy").iterdir()} == {"energy.csv", "energy.svg"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "device.profile is null"),
        ({"profile": "eyeriss_65mm"}, "did you mean 'eyeriss_65nm'"),
        ({"profile": "eyeriss_65nm", "storage": "zip"}, "storage = 'zip' is unknown; known: bitmap, csr"),
        ({"profile": "eyeriss_65nm", "policy": "none.json"}, "none.json"),
        ({"profile": "eyeriss_65nm", "densities": "none.csv"}, "cannot read densities none.csv"),
    ],
)
def test_bad_input_of_energy_is_one_line(
    trained: nn.Module, images: Tensor, given: dict[str, object], words: str
) -> None:
    with pytest.raises(BadInputError) as error:
        amcsearch.energy(trained, images[:1], **given, observer=Silent())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_sensitivity_of_a_network_in_memory(
    trained: nn.Module, data: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"points": 3, "joint": 4, "settings": {"data.splits": SETTINGS["data.splits"]}}
    result = amcsearch.sensitivity(
        trained, data, criterion=amcsearch.CRITERIA["magnitude"](), **asked, observer=Silent()
    )
    assert list(result.curves.columns) == ["group", "kept", "loss", "accuracy", "recovery"]
    channels = {"stem.0": 16, "body.0": 24}
    assert list(result.curves.groupby(["group", "recovery"]).size()) == [3] * 4
    assert dict(result.curves.groupby("group")["kept"].max()) == channels
    dense = result.curves[result.curves["kept"] == result.curves["group"].map(channels)]
    assert list(dense.groupby("recovery")["loss"].nunique()) == [1, 1]  # the dense network is every group's last point
    assert result.joint == 4
    assert result.files == {}
    assert list(tmp_path.iterdir()) == []
    named = amcsearch.sensitivity(
        trained, data, criterion="magnitude", folder=tmp_path / "curves", **asked, observer=Silent()
    )
    assert named.curves.equals(result.curves)
    assert {Path(file).name for file in named.files.values()} == {
        *("sensitivity.csv", "sensitivity.svg", "additivity.csv", "additivity.svg")
    }
    assert pd.read_csv(named.files["csv"]).shape == named.curves.shape


@pytest.mark.parametrize(
    ("given", "words"),
    [({"points": 1}, "sensitivity points = 1, must be at least 2"), ({"joint": -1}, "sensitivity joint = -1")],
)
def test_bad_input_of_sensitivity_is_one_line(
    trained: nn.Module, data: TensorDataset, given: dict[str, int], words: str
) -> None:
    settings = {"data.splits": SETTINGS["data.splits"]}
    with pytest.raises(BadInputError, match=words):
        amcsearch.sensitivity(trained, data, settings=settings, **given, observer=Silent())


def test_a_result_is_not_saved_over_files(result: amcsearch.SearchResult, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(BadInputError, match="new or an empty folder"):
        result.save(tmp_path)


def test_the_public_names_are_these() -> None:
    assert amcsearch.__all__ == PUBLIC
    for name in amcsearch.__all__:
        assert getattr(amcsearch, name) is not None
        assert name in dir(amcsearch)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = amcsearch.serach


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, amcsearch; print([m for m in ('torch', 'numpy', 'pandas', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_verb_search_survives_the_import_of_its_room() -> None:
    from amcsearch.search.study import Study

    assert amcsearch.search.__module__ == "amcsearch.api.searches"
    assert Study is amcsearch.Study


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        ({"trials": 0}, "search.trials = 0;"),
        ({"seed": -1}, "seed = -1;"),
        ({"budget": {"macs": "2x"}}, "budget.macs = '2x';"),
        ({"budget": {}}, "budget is empty;"),
        ({"settings": {"search.trails": 3}}, "unknown key search.trails;"),
        ({"settings": {"search.start": "nowhere.json"}}, "search.start"),
        ({"settings": {"seed": object}}, "seed = 'builtins:type';"),
    ],
)
def test_errors_name_the_key_that_python_code_wrote(
    write_config, tiny: ModuleType, arguments: dict[str, object], beginning: str, *, is_file: bool
) -> None:
    path = write_config()
    path.write_text(f"{path.read_text()}seed: 0\n")
    source = {"config": path} if is_file else {"model": tiny.network(), "data": tiny.quadrants()}
    with pytest.raises(BadInputError) as caught:
        amcsearch.search(**source, **arguments)
    message = str(caught.value)
    assert not message.startswith(("amcsearch:", "--set"))
    assert beginning in message
    assert is_file or message.startswith(beginning)


def test_without_a_budget_it_is_half_of_the_macs_at_every_door(
    write_config, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config()
    path.write_text("".join(line for line in path.open() if not line.startswith("budget")))
    assert load(path).budget == {"macs": "0.5x"}
    request, _ = make_request(None, None, {"budget": None}, tiny.network(), tiny.quadrants())
    assert request.budget == {"macs": "0.5x"}
    assert main(["search", str(path), "--set", "budget={}"]) == 2
    assert "leave it out for half of the macs" in capsys.readouterr().err
