"""What several rooms' tests share: a job of seconds, small kits, a clock that tests turn, a simulated device."""

import os

# Workers share the cores: two torch processes of two threads each are ten times slower than of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.kit.kit import KitModel, KitPlan
from amcsearch.runtime.on_device.plan import InputSpec
from amcsearch.runtime.on_device.timing import Clock
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20

TINY_JOB = Path(__file__).parent / "tiny_job.py"
CONFIG = """
name: tiny
model: {factory: "FACTORY", pretrain: {epochs: 2, learning_rate: 0.05, batch_size: 32}}
data: {factory: "DATA", splits: {calibration: 64, search: 96, test: 96}}
device: {profile: configs/devices/x86_server.yaml, channel_multiple: 4, rounds: 10}
budget: {macs: 0.6x, params: 0.7x}
recovery: {finetune: {epochs: 1, learning_rate: 0.02, batch_size: 32}}
search: {agent: ddpg, trials: 12, finalists: 2}
"""

WriteConfig = Callable[..., Path]


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

    def make(widths=(16, 32), **settings):
        models = [KitModel("w64", _conv_model(64), "net", "reference")]
        models += [KitModel(f"w{w}", _conv_model(w), "net", "train", {"hidden": w}) for w in widths]
        chosen = {"passes": 2, "rounds": 2, "sample_ms": 0.05, "profile_rounds": 2} | settings
        return KitPlan(tuple(models), 1, "float32", {"net": InputSpec((1, 16, 8, 8))}, **chosen)

    return make


@pytest.fixture(scope="session")
def simulated() -> ModuleType:
    """``simulated_device.py``."""
    path = Path(__file__).parent / "simulated_device.py"
    spec = importlib.util.spec_from_file_location("simulated_device", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def resnet20_network():
    """Dense shapes of ResNet-20."""
    return trace(resnet20(), torch.zeros(1, 1, 32, 32), verify=False).network


@pytest.fixture(scope="session")
def mobilenetv2_network():
    """Dense shapes of the MobileNetV2-style network."""
    return trace(mobilenetv2(), torch.zeros(1, 1, 32, 32), verify=False).network
