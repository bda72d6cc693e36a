"""Execution providers by name, and OpenVINO as the plugin and the black box among them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.measure.kit.kit import device_plan
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.runtime import exported
from amcsearch.runtime.on_device import providers
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.providers import Elsewhere, elsewhere, full_provider_name, provider_name
from amcsearch.runtime.on_device.session import bound_call, open_session
from amcsearch.runtime.onnx_runtime import OnnxRuntime
from amcsearch.runtime.paired_latency import measure_many
from amcsearch.runtime.session import OnnxModule, _one_conv, make_session, provenance

OPENVINO = "OpenVINOExecutionProvider"
X = np.ones((1, 16, 8, 8), np.float32)


def test_a_name_counts_with_and_without_its_ending_in_any_case():
    for asked in ("OpenVINO", "openvino", OPENVINO, OPENVINO.lower()):
        assert full_provider_name(asked) == OPENVINO
    assert full_provider_name("tensorrt") == "TensorrtExecutionProvider"
    assert provider_name("cpu") == "CPUExecutionProvider"
    assert full_provider_name("Mine") == "Mine"


@pytest.mark.usefixtures("openvino")
def test_a_plugin_is_found_by_each_of_its_names():
    for asked in ("OpenVINO", "openvino", OPENVINO, OPENVINO.lower()):
        assert provider_name(asked) == OPENVINO


def test_a_plugin_without_a_device_here_is_refused_as_such(monkeypatch):
    """OpenVINO's lists none on an AMD processor."""
    registered = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *pair: registered.append(pair))
    monkeypatch.setattr(providers, "_registered", set())
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"onnxruntime-ep-openvino is installed, but finds no device here that"):
            provider_name("OpenVINO")
    assert len(registered) == 1


@pytest.mark.parametrize("asked", ["CUDA", "TensorRT"])
def test_a_provider_that_is_not_here_is_refused_in_one_line_with_its_package(asked):
    message = f"provider '{asked}' is not available; this onnxruntime has: .*CPUExecutionProvider.*onnxruntime-gpu$"
    with pytest.raises(DeviceError, match=message):
        provider_name(asked)
    with pytest.raises(BadInputError, match=message):
        make_session(_one_conv(4, 4), provider=asked)
    with pytest.raises(BadInputError, match=message):
        provenance(1, 1, provider=asked)


def test_a_plugin_whose_package_is_missing_is_refused_with_its_package(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(DeviceError, match="install it: pip install onnxruntime-ep-openvino"):
        provider_name("OpenVINO")


def test_a_plugin_that_cannot_be_loaded_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    broken = SimpleNamespace(get_library_path=lambda: str(tmp_path / "missing.so"))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", broken)
    monkeypatch.setattr(providers, "_registered", set())
    with pytest.raises(DeviceError, match="cannot be loaded by onnxruntime") as error:
        provider_name("OpenVINO")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("openvino")
def test_openvino_computes_in_float32_with_the_threads_asked_for():
    """In bfloat16, its own choice where the CPU can, outputs differ by 1e-3 of their scale."""
    provider_name("OpenVINO")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    x = torch.randn(1, 16, 8, 8)
    content = exported(model, x)
    session = open_session(content, threads=2, provider=OPENVINO)
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach().numpy()
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()
    config = json.loads(session.get_provider_options()[OPENVINO]["load_config"])
    assert config == {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"}}
    assert elsewhere(session, OPENVINO).nodes == 0


def partly_foreign():
    """Two nodes of which OpenVINO cannot run one: the determinant."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    ports[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"])]
    graph = helper.make_graph(nodes, "part", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.usefixtures("openvino")
def test_nodes_that_a_provider_leaves_to_others_are_counted():
    session = open_session(partly_foreign(), provider=provider_name("OpenVINO"))
    assert elsewhere(session, OPENVINO) == Elsewhere(1, 2, ("Det",))
    said = OnnxModule(partly_foreign(), provider="OpenVINO").elsewhere
    assert said.startswith("the network: 1 of 2 nodes (50%: Det) run on the CPU provider, not on OpenVINO")
    assert OnnxModule(partly_foreign()).elsewhere is None


@pytest.mark.usefixtures("openvino")
def test_a_model_of_which_a_provider_runs_nothing_is_refused():
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    ports.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "foreign", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BadInputError, match=r"runs none of the 1 nodes of the model; use another provider"):
        make_session(bytes(model.SerializeToString()), provider="OpenVINO")


def test_a_runtime_that_cannot_say_is_not_taken_to_run_all():
    assert elsewhere(SimpleNamespace(), OPENVINO) is None


@pytest.mark.usefixtures("openvino")
def test_a_plugin_has_a_version_of_its_own():
    assert provenance(1, 1, provider="OpenVINO").provider_version.startswith("1.")
    assert provenance(1, 1, provider="OpenVINO").nchwc_block == 0
    assert provenance(1, 1).provider_version is None


@pytest.mark.usefixtures("openvino")
def test_a_kit_runs_a_black_box_without_graphs_and_profiles(tmp_path, small_plan, fake_clock):
    plan, path = device_plan(small_plan()), tmp_path / "r.jsonl"
    end = run(plan, path, Settings(provider="openvino"), clock=fake_clock())
    assert end["complete"]
    (result,) = read_results([path])
    assert (result.provenance.provider, result.provenance.nchwc_block) == (OPENVINO, 0)
    assert all(model.passes and not model.nodes and model.packed_graph is None for model in result.models)
    assert run(plan, path, Settings(provider="openvino"), clock=fake_clock())["complete"]
    with pytest.raises(DeviceError, match="begun with provider = OpenVINOExecutionProvider, this run has CPU"):
        run(plan, path, Settings(), clock=fake_clock())


@pytest.mark.usefixtures("openvino")
def test_finalists_are_measured_by_the_provider_asked_for():
    content = _one_conv(16, 16)
    (latency,) = measure_many(content, [content], X, runtime=OnnxRuntime(provider="openvino"), rounds=3, min_ms=0.1)
    assert latency.rounds > 0
    bound_call(make_session(content, provider="openvino"), X)()
