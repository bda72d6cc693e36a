"""What several rooms' tests share: a job of seconds, small kits, a clock that tests turn, a simulated device."""

import os

# Workers share the cores: two torch processes of two threads each are ten times slower than of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib.util
import multiprocessing.process
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amcsearch.graph.tracing.trace import trace
from amcsearch.runtime.on_device.plan import InputSpec
from amcsearch.runtime.on_device.timing import Clock
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20

if TYPE_CHECKING:
    from dask_cluster import Cluster
    from postgresql import PostgreSQL

# Speed is not what property tests assert, and the cores are shared: no example has a deadline.
hypothesis.settings.register_profile("suite", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("suite")

TESTS = Path(__file__).parent
TINY_JOB = TESTS / "tiny_job.py"
# `pytest -m fast`: the tests of files that need no training, no process and no heavy library beside torch, but for
# NOT_FAST, which take over 0.2 s of processor time each
FAST = (
    *("core", "test_architecture.py", "test_config.py", "test_docs.py"),
    *("costs/test_compute.py", "costs/test_device.py", "costs/test_distinct.py", "costs/test_energy.py"),
    *("costs/test_energy_published.py", "costs/test_energy_steps.py", "costs/test_storage.py"),
    *("costs/test_structured_saving.py", "costs/latency/test_lanes.py", "costs/latency/test_lowering.py"),
    *("costs/latency/test_rows.py", "costs/latency/test_surface.py", "costs/latency/test_tiling.py"),
    *("methods/test_layer_densities.py", "methods/test_fisher_ratio.py"),
    *("methods/test_global_ranking.py", "methods/test_layer_inputs.py", "methods/test_least_squares.py"),
    *("methods/test_ranking.py", "methods/test_reduction.py"),
    *("methods/test_statistics.py", "methods/test_weight_choice.py"),
    *("search/test_dominance.py", "search/test_keep_accuracy.py", "search/test_min_sum.py"),
    *("search/test_observation.py", "search/test_pareto.py", "search/test_reward.py", "search/test_targeting.py"),
)
NOT_FAST = {
    "test_a_broken_promise_is_as_rare_as_the_level_says",
    "test_a_correction_stays_within_what_was_measured",
    "test_any_mapping_is_valid_or_refused_in_one_line",
    "test_any_rows_come_back",
    "test_anything_is_read_or_refused",
    "test_apportion_adds_up_within_bounds",
    "test_batched_widths_agree_with_single_networks",
    "test_consistent_densities_give_their_shares_back",
    "test_counts_at_many_widths_are_those_of_each",
    "test_equals_brute_force_where_buckets_lose_nothing",
    "test_erk_adds_up_and_never_exceeds_dense",
    "test_errors_of_all_lanes_are_those_of_each",
    "test_every_reward_prefers_accuracy_at_equal_cost",
    "test_exact_to_one_step_of_a_group",
    "test_exactly_k_are_kept_nested_and_never_worse_than_those_removed",
    "test_exactly_so_many_channels_go_also_with_ties",
    "test_freed_memory_is_used_again_inside_and_given_back_after",
    "test_indices_are_the_inverse_of_counts",
    "test_it_does_not_change_under_affine_maps_of_a_channel",
    "test_many_widths_at_once_are_each_alone",
    "test_many_widths_at_once_cost_as_one_after_another",
    "test_measured_widths_come_back_and_all_others_are_possible",
    "test_more_memory_never_costs_more",
    "test_no_estimate_falls_below_its_lower_bound",
    "test_no_normaliser_turns_an_order_round",
    "test_numbers_are_those_that_sorting_finds",
    "test_places_lead_back_to_the_numbers",
    "test_rounding_up_never_exceeds_the_budget_and_loses_at_most_a_bucket_a_group",
    "test_settings_of_the_users_c_library_stay",
    "test_shipped_searches_load_and_round_trip",
    "test_the_cost_is_that_of_the_really_smaller_module",
    "test_the_shipped_table_is_written_as_it_was_read",
    "test_yaml_written_is_yaml_read",
}
# what the process has imported from which the others are forked; an import takes 5 s of processor time
FORKED_WITH = ("amcsearch.api", "amcsearch.cli", "pandas", "matplotlib.figure", "torch._dynamo")
CONFIG = """
name: tiny
model: {factory: "FACTORY", pretrain: {epochs: 2, learning_rate: 0.05, batch_size: 32}}
data: {factory: "DATA", splits: {calibration: 64, search: 96, test: 96}}
device: {profile: configs/devices/x86_server.yaml, table: null, channel_multiple: 4, rounds: 10, patience_s: 0}
budget: {macs: 0.6x, params: 0.7x}
selection: {criterion: taylor}
recovery: {finetune: {epochs: 1, learning_rate: 0.02, batch_size: 32}}
search: {agent: ddpg, trials: 12, finalists: 2}
"""

WriteConfig = Callable[..., Path]


@cache
def _is_fast(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in FAST)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the crash loop and the generated requests be as many as wanted."""
    kills = "runs of each verb that the crash loop breaks (1), and kills of a device's agent and server (4 at least)"
    parser.addoption("--kills", type=int, default=1, help=kills)
    parser.addoption("--requests", type=int, default=8, help="generated requests to each route of the service (8)")
    parser.addoption("--crash-seed", type=int, default=0, help="of the moments and signals of the crash loop (0)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a list of fast tests that names what is gone."""
    lost = [name for name in FAST if not (TESTS / name).exists()]
    if lost:
        raise pytest.UsageError(f"FAST in tests/conftest.py names {', '.join(lost)}, which does not exist; correct it")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run ``-m fast`` in this process: every worker would import torch again, which takes longer than its tests.

    Else start one worker more than cores: each waits a quarter of its time, for child processes and for the disk.
    """
    return 0 if config.option.markexpr == "fast" else len(os.sched_getaffinity(0)) + 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no other file for ``-m fast``: imports take longer than the tests."""
    wanted = config.option.markexpr != "fast" or collection_path.is_dir() or _is_fast(collection_path)
    return None if wanted else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is fast."""
    for item in items:
        name = item.name.partition("[")[0]
        if _is_fast(item.path) and name not in NOT_FAST and item.get_closest_marker("slow") is None:
            item.add_marker("fast")


def _refuse_process(*args: object, **kwargs: object) -> None:
    raise AssertionError("a fast test starts a process; take its file out of FAST in tests/conftest.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Let no fast test start a process."""
    if item.get_closest_marker("fast") is None:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _refuse_process)
        patch.setattr(multiprocessing.process.BaseProcess, "start", _refuse_process)
        return (yield)


@pytest.fixture(scope="session")
def openvino() -> None:
    """Skip what runs by OpenVINO on a processor that its plugin does not support; its package must be installed."""
    from amcsearch.runtime import DeviceError
    from amcsearch.runtime.on_device.providers import NO_DEVICE, provider_name

    try:
        provider_name("OpenVINO")
    except DeviceError as error:
        if NO_DEVICE not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _short_measurements(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure latencies no longer than a test asks for: on shared cores a verdict is in doubt as long as it may be.

    Timing collects garbage first, and all that a worker has imported is looked through each time, unless it is frozen.
    """
    if request.config.option.markexpr == "fast":
        yield
        return
    from amcsearch.measure.build import measured
    from amcsearch.runtime import paired_latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired_latency, "PATIENCE", 0.0)
        patch.setattr(measured, "SLOWED", float("inf"))
        gc.freeze()
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_from_imports() -> Iterator[None]:
    """Let the process from which ``multiprocessing`` forks others import what those of ``command_line.py`` need."""
    preload = multiprocessing.set_forkserver_preload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "set_forkserver_preload", lambda names: preload([*names, *FORKED_WITH]))
        multiprocessing.set_forkserver_preload([])
        yield


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Write the configuration, its factories those of ``tiny_job.py``; the cache is the test's own."""
    monkeypatch.setenv("AMCSEARCH_CACHE", str(tmp_path / "cache"))

    def write(factory: str = "network", data: str = "quadrants") -> Path:
        text = CONFIG.replace("FACTORY", f"{TINY_JOB}:{factory}").replace("DATA", f"{TINY_JOB}:{data}")
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return path

    return write


def _conv_model(width, seed=0):
    """(1, 16, 8, 8) → 3x3 convolution with ``width`` outputs → Relu → 3x3 convolution with 16 outputs."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (width, 16, 3, 3), "w2": (16, width, 3, 3), "b1": (width,), "b2": (16,)}
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="/first/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="/Relu"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["y"], name="/second/Conv", pads=[1] * 4),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 16, 8, 8]) for n in "xy"]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class _FakeClock(Clock):
    """Every call takes 100 ms times ``level``, which is asked with the time, s, it begins at; all else takes none."""

    def __init__(self, level=lambda now: 1.0):
        self.time, self.level = 0.0, level

    def now(self):
        return self.time

    def sample_ms(self, call, repeats):
        call()
        ms = 100.0 * self.level(self.time)
        self.time += repeats * ms / 1e3
        return ms


@pytest.fixture(scope="session")
def conv_model():
    return _conv_model


@pytest.fixture(scope="session")
def fake_clock():
    return _FakeClock


@pytest.fixture(scope="session")
def small_plan():
    """A function: the dense model "w64" and one a width, in two quick passes unless said otherwise."""
    from amcsearch.measure.kit.kit import KitModel, KitPlan  # scipy: a second that fast tests need not wait

    def make(widths=(16, 32), **settings):
        models = [KitModel("w64", _conv_model(64), "net", "reference")]
        models += [KitModel(f"w{w}", _conv_model(w), "net", "train", {"hidden": w}) for w in widths]
        chosen = {"passes": 2, "rounds": 2, "sample_ms": 0.5, "profile_rounds": 2} | settings
        return KitPlan(tuple(models), 1, "float32", {"net": InputSpec((1, 16, 8, 8))}, **chosen)

    return make


def _module(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def products_of_maps() -> ModuleType:
    """``products_of_maps.py``."""
    return _module("products_of_maps")


@pytest.fixture(scope="session")
def simulated() -> ModuleType:
    """``simulated_device.py``."""
    return _module("simulated_device")


@pytest.fixture(scope="session")
def postgresql() -> Iterator["PostgreSQL"]:
    """A PostgreSQL server, started once a session of each worker of pytest-xdist; see ``postgresql.py``."""
    with _module("postgresql").running() as server:
        yield server


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A Dask scheduler with two workers, which end with the tests of the file: they take processor time when idle."""
    cluster = _module("dask_cluster").Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def postgresql_url(postgresql: "PostgreSQL") -> str:
    """The address of an empty PostgreSQL database, with its password, for SQLAlchemy and ``--storage``."""
    return postgresql.new_database()


@pytest.fixture(scope="session")
def resnet20_network():
    """Dense shapes of ResNet-20."""
    return trace(resnet20(), torch.zeros(1, 1, 32, 32), verify=False).network


@pytest.fixture(scope="session")
def mobilenetv2_network():
    """Dense shapes of the MobileNetV2-style network."""
    return trace(mobilenetv2(), torch.zeros(1, 1, 32, 32), verify=False).network
