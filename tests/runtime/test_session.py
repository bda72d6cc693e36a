import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.runtime.session import PROVIDER, _one_conv, detect_nchwc_block, make_session, optimised_graph, provenance


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


def test_the_optimised_graph_is_a_graph_that_runs_the_convolution():
    assert "Conv" in [node.op_type for node in optimised_graph(_one_conv(16, 16)).node]


def test_the_block_explains_the_layout_of_the_runtime_itself():
    block = detect_nchwc_block()
    assert block in {0, 4, 8, 16, 32}
    conv = next(n for n in optimised_graph(_one_conv(64, 64)).node if n.op_type == "Conv")
    assert (conv.domain == "com.microsoft.nchwc") == (block > 0)


def test_provenance_names_all_that_a_table_must_be_compared_by():
    record = provenance(threads=3, batch=5)
    assert {"cpu", "cores", "ort_version", "provider", "threads", "batch", "dtype", "timestamp"} <= set(record)
    assert (record["threads"], record["batch"], record["provider"]) == (3, 5, PROVIDER)
    assert record["ort_version"] == ort.__version__
    assert json.loads(json.dumps(record)) == record


def test_the_probe_is_a_valid_model():
    onnx.checker.check_model(onnx.load_from_string(_one_conv(3, 8)))


def test_a_session_leaves_the_processor_as_it_was():
    make_session(_one_conv(4, 4))
    assert np.float64(5e-324) * 1.0 > 0.0
