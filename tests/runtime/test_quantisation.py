"""int8 models: numbers by hand, small weights in kits, integer kernels with their layers, and what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind
from amcsearch.costs.latency.entry import Provenance
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.build.attribution import kernel_runs, original_owners
from amcsearch.measure.build.maintenance import merged
from amcsearch.measure.build.measured import measured_variants
from amcsearch.measure.build.table_builder import table_from_results
from amcsearch.measure.kit.kit import KitModel, measure_here
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.runtime.export import exported
from amcsearch.runtime.on_device.session import optimised_model
from amcsearch.runtime.on_device.weights import weight_bytes
from amcsearch.runtime.quantisation.quantisation import CONVERTERS, converted, quantised
from amcsearch.runtime.quantisation.quantise_graph import Affine, weight_scales
from amcsearch.runtime.session import OnnxModule, differences
from amcsearch.training.models.transformer import language_model, vit


class Small(nn.Module):
    """Two convolutions around a residual add, and a linear head."""

    def __init__(self, hidden=32):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.up = nn.Conv2d(16, hidden, 3, padding=1)
        self.down = nn.Conv2d(hidden, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.down(torch.relu(self.up(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def subject():
    model, x = small(), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return MeasuredSubject("small", model, trace(model, x, verify=False), x)


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}


def test_weights_get_a_scale_for_each_output_channel_and_seven_bits():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[6.4, -3.2], [0.32, 0.64]]))  # (C_out, C_in); scales 0.1 and 0.01
        model.bias.copy_(torch.tensor([1.0, -1.0]))
    found = initializers(quantised(exported(model, torch.zeros(1, 2)), np.array([[-1.0, 1.55]], np.float32)))
    weight, bias = (next(v for n, v in found.items() if n.endswith(f"{k}_quantized")) for k in ("weight", "bias"))
    assert (weight.dtype, weight.tolist()) == (np.int8, [[64, -32], [32, 64]])
    assert (bias.dtype, bias.tolist()) == (np.int32, [1000, -10000])  # in 0.1 and 0.01 times the input's 0.01


def test_a_bias_beside_weights_of_next_to_nothing_still_fits():
    rows, bias = np.array([[1.0], [1e-12], [0.0]], np.float32), np.array([0.5, 3.0, 0.0], np.float32)
    scales = weight_scales(rows, bias, np.float32(0.01))
    np.testing.assert_allclose(scales, [1 / 64, 3.0 / (2**30 * 0.01), 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(-1.0, 1.55, 0.01, 100), (0.5, 2.55, 0.01, 0), (-2.55, -0.5, 0.01, 255), (0.0, 0.0, 1e-30, 0)],
)
def test_zero_is_exact_whatever_the_range(low, high, scale, zero):
    found = Affine.covering(low, high)
    assert (found.scale, found.zero) == (pytest.approx(scale), zero)
    assert found.quantised(np.float32([0.0])).tolist() == [zero]


def test_activations_get_the_range_of_the_calibration_inputs():
    content = quantised(exported(nn.Linear(1, 1), torch.zeros(1, 1)), np.array([[-1.0], [0.5], [1.55]], np.float32))
    graph = onnx.load_from_string(content).graph
    (first,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input"]
    scale, zero = (initializers(content)[name] for name in first.input[1:])
    assert scale == pytest.approx(2.55 / 255)
    assert (zero.dtype, int(zero)) == (np.uint8, 100)


def conv(c_in, c_out, groups=1):
    return nn.Conv2d(c_in, c_out, 3, padding=1, groups=groups)


class Branches(nn.Module):
    """Concatenation, a gate, a sum read before and after clipping, one module called twice, a convolution as output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.twice, self.out = conv(1, 8), conv(1, 8), conv(16, 16), conv(16, 4)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x) * torch.sigmoid(self.b(x))], 1)
        x = x + self.twice(torch.relu(x))
        return self.out(x + self.twice(torch.relu(x)) + 0.25)


def mobile():
    pooled = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(conv(1, 8), nn.ReLU6(), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.LeakyReLU(), *pooled)


def products():
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3), nn.Tanh())


@pytest.mark.parametrize("make", [Small, Branches, mobile, products])
def test_a_quantised_network_computes_nearly_the_same(make):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(32, 1, 8, 8)
    content = quantised(exported(model, x[:2]), x.numpy())
    onnx.checker.check_model(onnx.load_from_string(content))
    with torch.no_grad():
        expected = model(x)
    error = (OnnxModule(content)(x) - expected).abs().max() / expected.abs().max()
    assert 0.0 < error < 0.06


def test_an_onnx_module_takes_any_number_of_inputs():
    model, x = nn.Linear(3, 2), torch.arange(15.0).reshape(5, 3)
    found = OnnxModule(exported(model, x[:2]))(x)  # calls of two
    assert found.shape == (5, 2)
    torch.testing.assert_close(found, model(x))


def test_float32_is_left_as_it_is():
    assert list(CONVERTERS) == ["float32", "int8"]
    model = exported(nn.Linear(2, 1), torch.zeros(1, 2))
    assert converted(model, "float32", np.zeros((1, 2), np.float32)) is model


def test_weights_of_an_int8_model_travel_as_one_byte_each():
    model = exported(small(), torch.zeros(1, 1, 8, 8))
    wide = KitModel("a", model, "n", "reference")
    narrow = KitModel("b", quantised(model, np.ones((1, 1, 8, 8), np.float32)), "n", "reference")
    assert {one.dtype for one in narrow.weights} == {"int8"}
    assert weight_bytes(narrow.weights) == 2 * 16 * 32 * 9  # the stem's and the head's are too small to leave out
    assert weight_bytes(wide.weights) == 4 * weight_bytes(narrow.weights)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, subject):
    """A small int8 kit, run by the device's program in this process."""
    out = tmp_path_factory.mktemp("int8") / "r.jsonl"
    plan = measurement_plan([subject], variants=12, held_out=3, dtype="int8")
    measure_here(replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1), out)
    return read_results([out])[0]


def test_an_int8_kit_becomes_an_int8_table(measured, subject):
    assert measured.provenance.dtype == "int8"
    assert measured.coverage.failed == {}
    table = table_from_results([measured])
    assert differences(table.provenance, Provenance(dtype="float32")) == [
        "data type: the table was measured with 'int8', this run has 'float32'"
    ]
    assert table.bind(subject.trace.network).predict(subject.trace.network.layers) > 0.0
    weights = 16 * 9 + 2 * 16 * 32 * 9 + 16 * 4
    assert table.networks["small"].weights_mib == pytest.approx(weights / 2**20)


def test_integer_kernels_are_families_of_their_own_and_belong_to_their_layers(measured):
    _, building, held_out = measured_variants(measured, "small")
    assert len(held_out) == 3
    for variant in building:
        kernels = variant.kernels_by_layer
        assert set(kernels) == {"stem", "up", "down", "head"}
        for layer in ("stem", "up", "down"):
            assert sum(len(at) for kernel, at in kernels[layer].items() if "QLinearConv" in kernel) == 1
        assert not any(
            kernel.startswith(("nchwc.Conv", "Conv", "ms.FusedConv")) for own in kernels.values() for kernel in own
        )
        assert any("QLinearAdd" in kernel for kernel in kernels["down"])
        assert any("QGemm" in kernel for kernel in kernels["head"])


@pytest.mark.parametrize(
    ("make", "x"), [(vit, torch.ones(1, 1, 32, 32)), (language_model, torch.ones(1, 16, dtype=torch.int64))]
)
def test_of_a_transformer_linear_layers_alone_compute_in_integers(make, x):
    torch.manual_seed(0)
    model = make().eval()
    kinds = {layer.name: layer.kind for layer in trace(model, x, verify=False).network.layers}
    content = exported(model, x)
    owners = original_owners(onnx.load_from_string(content).graph, kinds)
    executed = onnx.load_from_string(optimised_model(quantised(content, x.numpy()))).graph
    runs = kernel_runs(executed, owners)
    integer = [run.layer for run in runs if run.kernel in ("ms.QGemm", "ms.MatMulIntegerToFloat", "ms.QLinearConv")]
    assert sorted(integer) == sorted(n for n, kind in kinds.items() if kind in (LayerKind.LINEAR, LayerKind.CONV))
    assert any(run.kernel == "LayerNormalization" for run in runs)
    adds = [run.kernel for run in runs if "Add" in run.kernel]
    assert adds
    assert "ms.QLinearAdd" not in adds  # the residual stream stays as it is


def test_tables_of_two_data_types_are_two_settings(measured):
    table = table_from_results([measured])
    other = replace(table, provenance=replace(table.provenance, dtype="float32"))
    with pytest.raises(BadInputError, match="data type: the table was measured with 'int8', this run has 'float32'"):
        merged([table, other])


@pytest.mark.parametrize(
    ("model", "dtype", "words"),
    [
        (nn.Linear(2, 1), "int4", "dtype 'int4' is unknown; known are float32, int8"),
        (
            nn.Sequential(nn.ReLU(), nn.Tanh()),
            "int8",
            r"no operator of the model \(Relu, Tanh\) multiplies float32 inputs",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(model, dtype, words):
    with pytest.raises(BadInputError, match=words):
        converted(exported(model, torch.zeros(1, 2)), dtype, np.zeros((1, 2), np.float32))


def test_weights_that_are_not_finite_are_refused():
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(BadInputError, match="reaches from nan to nan, must be finite"):
        quantised(exported(model, torch.zeros(1, 2)), np.zeros((1, 2), np.float32))
