import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.costs.latency.entry import Provenance
from amcsearch.measure.kit.kit_results import Line, check_one_device
from amcsearch.runtime.on_device import session as device_session
from amcsearch.runtime.on_device.done import check_same_run
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.provenance import COMPARED
from amcsearch.runtime.on_device.session import bound_call, open_session, optimised_model
from amcsearch.runtime.session import (
    PROVIDER,
    _one_conv,
    detect_nchwc_block,
    differences,
    make_session,
    provenance,
)


def test_a_session_is_sequential_optimised_and_uses_the_threads_asked_for():
    options = make_session(_one_conv(4, 4), threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_spinning_is_off_where_there_is_one_thread():
    options = make_session(_one_conv(4, 4)).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(BadInputError, match="threads = 0, must be at least 1"):
        make_session(_one_conv(4, 4), threads=0)
    with pytest.raises(BadInputError, match=r"cannot open .*missing\.onnx"):
        make_session(tmp_path / "missing.onnx")
    with pytest.raises(BadInputError, match="cannot open the model"):
        make_session(b"not a model")


def _port(name, kind, *shape):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def _endless():
    """A model that doubles its input for ever."""
    number, truth = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    nodes = [onnx.helper.make_node("Add", ["z", "z"], ["y"]), onnx.helper.make_node("Identity", ["go"], ["on"])]
    inputs = [_port("i", onnx.TensorProto.INT64), _port("go", truth), _port("z", number, 1, 1)]
    body = onnx.helper.make_graph(nodes, "body", inputs, [_port("on", truth), _port("y", number, 1, 1)])
    loop = onnx.helper.make_node("Loop", ["", "true", "x"], ["out"], body=body)
    true = onnx.numpy_helper.from_array(np.array(True), "true")
    ports = [_port("x", number, 1, 1)], [_port("out", number, 1, 1)]
    graph = onnx.helper.make_graph([loop], "endless", *ports, [true])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_a_model_that_does_not_end_is_broken_off(monkeypatch):
    monkeypatch.setattr(device_session, "MOST_CALL_S", 0.05)
    session = open_session(_endless())
    with pytest.raises(DeviceError, match="the model takes more than 0 s a call"):
        bound_call(session, np.zeros((1, 1), dtype=np.float32))


def test_the_optimised_graph_is_a_graph_that_runs_the_convolution():
    assert "Conv" in [node.op_type for node in onnx.load_from_string(optimised_model(_one_conv(16, 16))).graph.node]


def test_the_block_explains_the_layout_of_the_runtime_itself():
    block = detect_nchwc_block()
    assert block in {0, 4, 8, 16, 32}
    graph = onnx.load_from_string(optimised_model(_one_conv(64, 64))).graph
    conv = next(n for n in graph.node if n.op_type == "Conv")
    assert (conv.domain == "com.microsoft.nchwc") == (block > 0)


def test_provenance_names_all_that_a_table_must_be_compared_by():
    record = provenance(threads=3, batch=5).as_mapping()
    assert {"cpu", "cores", "ort_version", "provider", "threads", "batch", "dtype", "timestamp"} <= set(record)
    assert set(COMPARED) <= set(record)
    assert (record["threads"], record["batch"], record["provider"]) == (3, 5, PROVIDER)
    assert record["ort_version"] == ort.__version__
    assert json.loads(json.dumps(record)) == record


MEASURED = Provenance(cpu="Toy CPU", ort_version="1.0", threads=1, batch=1, nchwc_block=16)


def test_differences_are_sentences_and_what_is_not_known_is_none():
    here = Provenance.from_mapping({"cpu": "Toy CPU", "ort_version": "2.0", "threads": 4, "batch": 1, "kernel": "6.1"})
    assert differences(MEASURED, here) == [
        "ONNX Runtime: the table was measured with '1.0', this run has '2.0'",
        "threads: the table was measured with 1, this run has 4",
    ]
    assert differences(MEASURED, MEASURED) == []


def test_two_devices_are_told_apart_by_the_same_names_everywhere():
    """One table of names: for documents, for a run that goes on, and for results that are brought together."""
    same = dict.fromkeys(COMPARED, 1)
    first = {"kit_version": 1, "plan_hash": "x", "provenance": {**same, "load": [1.0]}}
    check_same_run(first, {**first, "provenance": {**same, "load": [2.0]}})
    assert differences(Provenance.from_mapping(same), Provenance.from_mapping({**same, "load": [2.0]})) == []
    for name, words in COMPARED.items():
        other = {**same, name: 2}
        (difference,) = differences(Provenance.from_mapping(same), Provenance.from_mapping(other))
        assert difference.startswith(f"{words}: ")
        with pytest.raises(DeviceError, match=name):
            check_same_run(first, {**first, "provenance": other})
        lines = [Line({"provenance": values}, "a file") for values in (same, other)]
        with pytest.raises(BadInputError, match=f"results of two devices: {name} is 1"):
            check_one_device(lines)


def test_the_probe_is_a_valid_model():
    onnx.checker.check_model(onnx.load_from_string(_one_conv(3, 8)))


def test_a_session_leaves_the_processor_as_it_was():
    make_session(_one_conv(4, 4))
    assert np.float64(5e-324) * 1.0 > 0.0
