import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.protobuf import fields, graph_of, nchwc_block, tensor, weights_message, without_data
from amcsearch.runtime.on_device.weights import DATA_TYPES, WeightSpec, weight_bytes, with_weights

NUMPY_TYPES = sorted(set(DATA_TYPES) - {"bfloat16"})
DIMS = st.lists(st.integers(0, 300), min_size=0, max_size=4).filter(lambda d: np.prod(d, dtype=float) < 1e5)


def a_model(tensors=(), nodes=()):
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    return helper.make_model(helper.make_graph([*nodes, node], "g", ports[:1], ports[1:], list(tensors)))


def test_a_tensor_by_hand():
    # dims 1 and 300 (0x2c | 0x80, 0x02), type float, name "w", raw 2 bytes
    wanted = b"\x08\x01" + b"\x08\xac\x02" + b"\x10\x01" + b"\x42\x01w" + b"\x4a\x02\x00\xff"
    assert tensor("w", (1, 300), 1, b"\x00\xff") == wanted
    # model field 7 (0x3a) holds a graph, its field 5 (0x2a) the tensor
    assert weights_message([b"T"]) == b"\x3a\x03\x2a\x01T"


@given(DIMS, st.sampled_from(NUMPY_TYPES), st.text(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_onnx_reads_the_tensors_we_write(dims, dtype, name):
    array = (np.arange(np.prod(dims, dtype=int)) % 100).astype(dtype).reshape(dims)
    read = TensorProto.FromString(tensor(name, dims, DATA_TYPES[dtype], array.tobytes()))
    assert read.name == name
    np.testing.assert_array_equal(numpy_helper.to_array(read), array)


@given(st.lists(st.tuples(DIMS, st.sampled_from(sorted(DATA_TYPES))), max_size=4))
@settings(max_examples=40, deadline=None)
def test_weights_are_merged_into_the_model(kinds):
    specs = [WeightSpec(f"w{i}", tuple(dims), dtype, 0.1) for i, (dims, dtype) in enumerate(kinds)]
    before = a_model([numpy_helper.from_array(np.ones(3, np.float32), "kept")])
    merged = onnx.load_from_string(with_weights(before.SerializeToString(), specs))
    assert merged.graph.node == before.graph.node
    found = {t.name: t for t in merged.graph.initializer}
    assert list(found) == ["kept", *(spec.name for spec in specs)]
    for spec in specs:
        assert (tuple(found[spec.name].dims), found[spec.name].data_type) == (spec.dims, DATA_TYPES[spec.dtype])
        assert numpy_helper.to_array(found[spec.name]).nbytes == len(found[spec.name].raw_data) == weight_bytes([spec])


def numbers(spec, seed=0):
    return numpy_helper.to_array(onnx.load_from_string(with_weights(b"", [spec], seed)).graph.initializer[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_made_weights_have_the_scale_asked_for_and_are_normal_numbers(dtype):
    values = numbers(WeightSpec("w", (128, 64, 3, 3), dtype, 0.05)).astype(np.float64)
    assert abs(values.std() / 0.05 - 1) < 0.05
    assert abs(values.mean()) < 0.005
    assert np.abs(values).min() > np.finfo(np.float16 if dtype == "float16" else np.float32).smallest_subnormal


def test_made_weights_are_seeded_and_differ():
    spec = WeightSpec("w", (64, 64), "float32", 1.0)
    assert (numbers(spec) == numbers(spec)).all()
    assert (numbers(spec) != numbers(spec, seed=1)).any()
    both = onnx.load_from_string(with_weights(b"", [spec, spec._replace(name="v")])).graph.initializer
    assert both[0].raw_data != both[1].raw_data


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -64, 63), ("uint8", 64, 191), ("int32", -64, 63)])
def test_integer_weights_fill_half_their_range(dtype, low, high):
    values = numbers(WeightSpec("w", (128, 128), dtype, 1.0))
    assert (values.min(), values.max()) == (low, high)


def test_unknown_types_are_named():
    with pytest.raises(DeviceError, match="weight w has type complex64; known are float32"):
        with_weights(b"", [WeightSpec("w", (1,), "complex64", 1.0)])


@given(st.lists(st.tuples(DIMS, st.sampled_from(NUMPY_TYPES)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_graph_without_data_keeps_everything_else(kinds):
    tensors = [numpy_helper.from_array(np.ones(dims, dtype), f"t{i}") for i, (dims, dtype) in enumerate(kinds)]
    before = a_model(tensors)
    after = onnx.load_from_string(without_data(before.SerializeToString()))
    bare = [(t.name, list(t.dims), t.data_type) for t in tensors]
    assert [(t.name, list(t.dims), t.data_type) for t in after.graph.initializer] == bare
    assert not any(t.raw_data for t in after.graph.initializer)
    for graph in (before.graph, after.graph):
        del graph.initializer[:]
    assert after == before


def test_nodes_and_shapes_are_read():
    conv = helper.make_node("Conv", ["x", "w"], ["c"], domain="com.microsoft.nchwc")
    weight = numpy_helper.from_array(np.zeros((16, 64, 3, 3), np.float32), "w")
    model = a_model([weight], [conv]).SerializeToString()
    nodes, shapes = graph_of(model)
    assert [(n.op_type, n.domain, n.inputs) for n in nodes] == [
        ("Conv", "com.microsoft.nchwc", ("x", "w")),
        ("Relu", "", ("x",)),
    ]
    assert shapes == {"w": (16, 64, 3, 3)}
    assert nchwc_block(model) == 16
    assert nchwc_block(a_model().SerializeToString()) == 0


def test_packed_dims_are_read_too():
    packed = b"\x0a\x03\x02\xac\x02" + b"\x42\x01w"  # dims [2, 300] in one field, name "w"
    assert graph_of(weights_message([packed]))[1] == {"w": (2, 300)}


@pytest.mark.parametrize(
    ("message", "reason"),
    [(b"\x3a\x05abc", "ends 2 bytes too early"), (b"\x3b", "wire type 3"), (b"\x08\x80", "cut off")],
)
def test_what_is_no_message_is_refused(message, reason):
    with pytest.raises(DeviceError, match=reason):
        list(fields(message))
