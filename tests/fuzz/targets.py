"""What reads files: each with valid documents to mutate, and the promise that every reader keeps.

Reading anything gives a value, or raises ``BadInputError`` or ``InfeasibleBudgetError`` whose message is one line. At
the command line the exit code is 0, 2 or 3, and nothing is printed of a traceback.
"""

import contextlib
import dataclasses
import io
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import optuna
import torch
from hypothesis import strategies as st
from torch import nn

from amcsearch.cli import main
from amcsearch.config import config_hash, from_mapping, load, read_device, read_latency_table
from amcsearch.core import (
    BadInputError,
    ChannelGroup,
    Cost,
    Coupling,
    Evaluation,
    InfeasibleBudgetError,
    LayerKind,
    LayerSpec,
    NetworkSpec,
    PolicySpace,
    PruningPolicy,
    Side,
    Trial,
    TrialState,
)
from amcsearch.costs import COLUMNS, EnergyModel, fingerprint, row_key
from amcsearch.graph import trace
from amcsearch.measure import (
    MeasuredSubject,
    measure_here,
    measurement_plan,
    read_results,
    table_from_results,
    write_kit,
)
from amcsearch.reporting import render
from amcsearch.runs import RunFolder, Summary, read_densities, read_trials
from amcsearch.runs.goals import Goal, TargetGoal
from amcsearch.runs.rows import TRIAL_COLUMNS
from amcsearch.runs.sparsify_summary import SparsifySummary
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import read_plan
from amcsearch.runtime.on_device.records import parsed_lines
from amcsearch.search.study_store import TrialStore
from amcsearch.training import load_checkpoint, load_tensors

LONGEST = 2000  # characters of an error
MOST_GROWTH_BYTES = 2**30  # of this process's memory while one input is read
EXIT_CODES = (0, 2, 3)
REFUSED = "refused at the command line"


@dataclass(frozen=True)
class Target:
    """A reader: ``make`` gives valid documents by file name, ``read`` reads a folder that holds them.

    ``inputs`` are those of a normal test run, ``share`` is its part of a long one.
    """

    name: str
    make: Callable[[], dict[str, Any]]
    read: Callable[[Path], object]
    inputs: int
    share: float


def outcome(read: Callable[[], object]) -> str:
    """Return whether something was read or refused as promised.

    Raises:
        AssertionError: the error is no line that can be read.
        MemoryError: reading takes too much memory.
    """
    try:
        with _bounded_memory():
            value = read()
        result = "refused" if isinstance(value, str) and value == REFUSED else "read"  # the command line says it itself
    except (BadInputError, InfeasibleBudgetError, DeviceError) as error:
        _check_line(str(error))
        result = "refused"
    return result


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process have ``MOST_GROWTH_BYTES`` more than now; what asks for more raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_GROWTH_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _check_line(line: str) -> None:
    assert line.strip(), "an empty message"
    assert len(line.splitlines()) == 1, f"more than one line: {line!r}"
    assert len(line) <= LONGEST, f"{len(line)} characters: {line[:200]!r}"


def run_main(arguments: list[str]) -> str:
    """Run the command line in this process; returns whether it did what was asked or refused it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse
            code = error.code
    assert code in EXIT_CODES, f"exit code {code}: {err.getvalue()}"
    lines = [line for line in err.getvalue().splitlines() if line.startswith("amcsearch: ")]
    assert code == 0 or len(lines) == 1 or "usage:" in err.getvalue(), err.getvalue()
    assert "Traceback" not in err.getvalue()
    return "read" if code == 0 else REFUSED


NETWORK = NetworkSpec(
    (
        LayerSpec("a", LayerKind.CONV, 1, 8, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8)),
        LayerSpec("b", LayerKind.CONV, 8, 4, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8)),
    ),
    (ChannelGroup("a", 8, (Coupling("a", Side.OUT), Coupling("b", Side.IN))),),
)


def _configuration() -> dict[str, Any]:
    tree = {
        "name": "fuzz",
        "seed": 1,
        "model": {"factory": "a.b:net", "kwargs": {"width": [1, 2.5, None]}, "input_shape": [1, 8, 8]},
        "data": {"factory": "a.b:data", "splits": {"search": 100}},
        "device": {"threads": 2, "costs": {"mine": {"model": "a.b:Cost", "params": {"x": 1}}}},
        "budget": {"macs": "0.5x", "latency_ms": 1.5},
        "selection": {"criterion": "magnitude", "params": {"p": 1.0}},
        "recovery": {"finetune": {"epochs": 1, "distillation": {"alpha": 0.5}}},
        "search": {"agent": "ddpg", "trials": 5, "reward": {"name": "accuracy"}, "objectives": ["accuracy", "macs"]},
        "sparsify": {"target": {"sparsity": 0.5}, "training": {"epochs": 1}},
        "prune": {"policy": {"a": 4}},
    }
    return {"search.yaml": tree}


def _read_configuration(folder: Path) -> object:
    config = load(folder / "search.yaml")
    return config_hash(config), config.limits, config.sparsify.limit, config.prune.limit


def _profile() -> dict[str, Any]:
    memory = {"name": "RF", "capacity_bytes": 512, "pj_per_byte": 0.5, "source": "made up", "map_share": 0.1}
    tree = {
        "name": "fuzz",
        "word_bits": 16,
        "weight_bits": 8,
        "mac_pj": {"16": 2.0, "8": 0.5},
        "memories": [
            memory,
            {**memory, "name": "SRAM", "capacity_bytes": 65536, "pj_per_byte": 3.0, "map_share": 0.3},
            {"name": "DRAM", "capacity_bytes": None, "pj_per_byte": 100.0, "source": "made up"},
        ],
        "static_power_mw": 0.0,
        "skips_zero_weights": True,
        "channel_multiple": 8,
        "sources": {"mac_pj": "made up"},
    }
    return {"device.yaml": tree}


def _read_profile(folder: Path) -> object:
    profile = read_device(folder / "device.yaml")
    PolicySpace.on_grid(NETWORK.groups, profile.channel_multiple or 1, 0.5)
    model = EnergyModel(profile, 1, None)
    return [model.estimate(layer).total_mj for layer in NETWORK.layers]


def _table() -> dict[str, Any]:
    rows = [list(COLUMNS)]
    for layer in NETWORK.layers:
        for width in (4, 8, 12):
            key = row_key(dataclasses.replace(layer, out_channels=width))
            rows.append(["net", *key, "Conv+Relu", 1.0, 0.01 * width, 0.001, 3, "profile"])
    entry = {
        "fingerprint": fingerprint(NETWORK),
        "weights_mib": 0.1,
        "constant_ms": 0.01,
        "smoothing": 0.1,
        "residency": {"0.5": 0.01},
        "sigma": {"floor": 0.03, "per_octave": 0.1},
        "calibration": {"factors": {"Conv+Relu": 1.1}, "variants": 12, "left_out_mape": 0.05},
        "channel_multiple": 8,
        "channel_grid": {"rule": "a rule", "tried": [{"multiple": 8, "macs_saved": 0.2, "time_saved": 0.1}]},
        "accuracy": {"mape": 0.02, "variants": 24, "spearman": None},
        "drift": {"disturbed_share": 0.1, "largest": 1.05},
        "notes": ["quiet"],
        "anchors": {"count": 3, "factors": {"Conv+Relu": 1.0}},
    }
    provenance = {"cpu": "made up", "cores": 4, "ort_version": "1.2", "threads": 1, "batch": 1, "dtype": "float32"}
    return {
        "table/rows.csv": rows,
        "table/device.yaml": {"provenance": {**provenance, "nchwc_block": 16}, "networks": {"net": entry}},
    }


def _read_table(folder: Path) -> object:
    model = read_latency_table(folder / "table").bind(NETWORK)
    return model.predict(NETWORK.layers)


def _read_policy(folder: Path) -> object:
    policy = PruningPolicy.read(folder / "policy.json")
    return NETWORK.with_channels(policy), PolicySpace.on_grid(NETWORK.groups).indices(NETWORK.kept_array(policy))


SAFE = "net.safetensors"


def _checkpoint(name: str) -> dict[str, Any]:
    tensors = {"0.weight": torch.ones(3, 4), "0.bias": torch.zeros(3)}
    return {name: {"state_dict": tensors, "epoch": 3} if name.endswith(".pt") else tensors}


def _read_checkpoint(path: Path) -> object:
    model = nn.Sequential(nn.Linear(4, 3))
    load_checkpoint(model, path)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    return load_tensors(path) if path.suffix == ".safetensors" else None


def _densities() -> dict[str, Any]:
    return {"densities.csv": [["name", "kept", "total", "density"], ["a.weight", 36, 144, 0.25], ["NA", 0, 3, 0.0]]}


@cache
def _measured() -> tuple[bytes, bytes]:
    """A small kit, and what it measured here."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.Flatten())
    example = torch.zeros(1, 1, 4, 4)
    traced = trace(model.eval(), example)
    plan = measurement_plan([MeasuredSubject("net", model, traced, example)], variants=12, held_out=3)
    quick = dataclasses.replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        write_kit(quick, Path(folder) / "kit.pyz")
        measure_here(quick, Path(folder) / "result.jsonl")
        return (Path(folder) / "kit.pyz").read_bytes(), (Path(folder) / "result.jsonl").read_bytes()


def _kit_result() -> dict[str, Any]:
    return {"result.jsonl": parsed_lines(_measured()[1], "result").records}


def _read_kit_result(folder: Path) -> object:
    (result,) = read_results([folder / "result.jsonl"])
    return table_from_results([result]).bind(next(iter(result.networks)))


def _kit() -> dict[str, Any]:
    return {"kit.pyz": _measured()[0]}


def _read_kit(folder: Path) -> object:
    plan = read_plan(folder / "kit.pyz")
    return plan.described(), [plan.model_bytes(entry) for entry in plan.entries]


def example_of(hint: Any) -> Any:
    """A valid value of the type that a field of a stored document is annotated with."""
    plain = {float: 0.5, int: 3, str: "text", bool: True, Cost: Cost({"macs": 5.0, "params": 7.0, "mine": 1.0})}
    if hint in plain:
        return plain[hint]
    if hint is PruningPolicy:
        return PruningPolicy({"a": 4})
    if hint is Goal:
        return example_of(TargetGoal)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return next(iter(hint))
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{item.name: example_of(hints[item.name]) for item in dataclasses.fields(hint)})
    kind, parts = getattr(hint, "__origin__", None), get_args(hint)
    if kind is tuple:
        return (example_of(parts[0]),)
    if kind is not None and issubclass(kind, Mapping):
        return {"load": example_of(parts[1])}
    return example_of(next((part for part in parts if part not in (NoneType, str)), str))


CONFIG = "# configuration abc\nname: fuzz\nseed: 0\n"


def _rows() -> list[list[Any]]:
    rng = np.random.default_rng(0)
    rows: list[list[Any]] = [list(TRIAL_COLUMNS)]
    for number in range(4):
        values = [round(float(value), 3) for value in rng.random(8)]
        rows.append([number, "ddpg", 0, "complete", *values, '{"a": 4}'])
    return rows


def _search_run() -> dict[str, Any]:
    summary = example_of(Summary).to_json()
    return {
        "run/summary.json": summary,
        "run/trials.csv": _rows(),
        "run/pareto.csv": _rows(),
        "run/config.yaml": CONFIG.encode(),
        "run/policy.json": {"a": 4},
    }


def _sparsify_run() -> dict[str, Any]:
    return {"run/summary.json": example_of(SparsifySummary).to_json(), "run/config.yaml": CONFIG.encode()}


def _read_run(folder: Path) -> object:
    with RunFolder.open(folder / "run") as run:
        results = [run.read_summary, lambda: PruningPolicy.read(run.policy_json), lambda: read_trials(run.trials_csv)]
        outcomes = [outcome(read) for read in results]
    with RunFolder.create(folder / "run", "name: fuzz\nseed: 0\n", "abc", resume=True):
        pass
    return outcomes


def _render_run(folder: Path) -> object:
    with RunFolder.open(folder / "run") as run:
        return render(run)


@cache
def _study_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        store = _store(path)
        for n_keep in (2, 4):
            evaluation, cost = Evaluation(0.5, 1.0, 0.1, None), Cost(macs=1.0)
            store.append(
                Trial(0, "a", 0, TrialState.COMPLETE, PruningPolicy({"a": n_keep}), evaluation, cost, 0.5),
                {"a": 8},
                [0.5],
            )
        return path.read_bytes()


def _store(path: Path) -> TrialStore:
    return TrialStore(path, "fuzz", "ddpg", 0, "abc", None)


def _read_study(folder: Path) -> object:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = _store(folder / "study.db")
    return store.load(), store.siblings()


def _report_at_the_door(folder: Path) -> object:
    return run_main(["report", str(folder / "run")])


def _table_at_the_door(folder: Path) -> object:
    return run_main(["table", "show", str(folder / "table")])


def _plan_at_the_door(folder: Path) -> object:
    return run_main(["search", str(folder / "search.yaml"), "--dry-run"])


def _tiny_search() -> dict[str, Any]:
    job = Path(__file__).parents[1] / "tiny_job.py"
    tree = {
        "name": "fuzz",
        "model": {"factory": f"{job}:network"},
        "data": {"factory": f"{job}:quadrants", "splits": {"calibration": 32, "search": 32}},
        "budget": {"macs": "0.5x"},
        "search": {"trials": 4, "agent": "random"},
    }
    return {"search.yaml": tree}


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("configuration", _configuration, _read_configuration, 400, 0.08),
        Target("device profile", _profile, _read_profile, 250, 0.08),
        Target("latency table", _table, _read_table, 120, 0.04),
        Target("policy", lambda: {"policy.json": {"a": 4}}, _read_policy, 250, 0.25),
        Target("checkpoint .pt", lambda: _checkpoint("net.pt"), lambda f: _read_checkpoint(f / "net.pt"), 150, 0.15),
        Target("checkpoint .safetensors", lambda: _checkpoint(SAFE), lambda f: _read_checkpoint(f / SAFE), 150, 0.2),
        Target("densities", _densities, lambda folder: read_densities(folder / "densities.csv"), 150, 0.1),
        Target("kit", _kit, _read_kit, 60, 0.03),
        Target("kit result", _kit_result, _read_kit_result, 100, 0.02),
        Target("run folder", _search_run, _read_run, 150, 0.03),
        Target("sparsify run folder", _sparsify_run, _read_run, 80, 0.05),
        Target("page of a run", _search_run, _render_run, 10, 0.0005),
        Target("study database", lambda: {"study.db": _study_bytes()}, _read_study, 40, 0.002),
        Target("amcsearch report", _search_run, _report_at_the_door, 5, 0.0005),
        Target("amcsearch table show", _table, _table_at_the_door, 15, 0.002),
        Target("amcsearch search --dry-run", _tiny_search, _plan_at_the_door, 6, 0.0005),
    )
}

_KEYS = (
    "search",
    "trials",
    "device",
    "costs",
    "mine",
    "[key]",
    "",
    " ",
    "a" * 300,
    "\0",
    "budget",
    "macs",
    "model",
    "é",
)
OVERRIDES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(_KEYS), max_size=6), st.booleans(), st.sampled_from(["=", "", "=="]), st.text()
    ).map(lambda parts: ".".join(parts[0]) + "." * 5000 * parts[1] + parts[2] + parts[3]),
    min_size=1,
    max_size=3,
)


def read_overrides(folder: Path, overrides: list[str]) -> object:
    """Read the valid configuration with overrides, and as settings of the Python API."""
    return load(folder / "search.yaml", overrides)


def read_settings(settings: dict[str, Any]) -> object:
    """Read the valid configuration with keys replaced."""
    return from_mapping(_configuration()["search.yaml"], "amcsearch", settings)
