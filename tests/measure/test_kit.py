import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amcsearch.core.errors import BadInputError
from amcsearch.measure.kit.kit import KitModel, KitPlan, device_plan, measure_here, write_kit
from amcsearch.measure.kit.kit_results import Coverage, read_results
from amcsearch.runtime.export import exported
from amcsearch.runtime.on_device import __main__ as command
from amcsearch.runtime.on_device.plan import InputSpec, read_plan
from amcsearch.runtime.on_device.session import optimised_model
from amcsearch.runtime.session import detect_nchwc_block, provenance
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet18, resnet20
from amcsearch.training.models.transformer import language_model, vit

KIT = ["kit.pyz", "-o", "result.jsonl"]


def run_kit(folder, *arguments):
    command = [sys.executable, *(arguments or KIT)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def optimised_nodes(model):
    return [(n.name, n.op_type, n.domain) for n in onnx.load_from_string(optimised_model(model)).graph.node]


def test_a_kit_measures_on_a_device_what_its_plan_says(tmp_path, small_plan):
    plan = small_plan()
    write_kit(plan, tmp_path / "kit.pyz")
    done = run_kit(tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = read_results([tmp_path / "result.jsonl"], device_plan(plan).hash)
    assert [m.id for m in result.models] == ["w64", "w16", "w32"]
    assert [len(m.passes) for m in result.models] == [2, 2, 2]
    assert all(2 <= len(p.samples_ms) == len(p.reference_ms) <= 4 for m in result.models for p in m.passes)
    assert result.coverage == Coverage(models=3, graphs=3, timed=(3, 3), profiled=3, failed={}, left_out=())
    assert result.models[1].policy == {"hidden": 16}
    assert 0 < result.overhead_ms < result.models[0].latency_ms
    assert result.notes == ()
    # again: nothing is left to do
    before = (tmp_path / "result.jsonl").read_bytes()
    assert run_kit(tmp_path).returncode == 0
    assert (tmp_path / "result.jsonl").read_bytes() == before


def test_measuring_here_is_the_same_program(tmp_path, small_plan):
    plan, told = small_plan(), []
    end = measure_here(plan, tmp_path / "r.jsonl", progress=lambda share, text: told.append((share, text)))
    assert end.complete
    assert end.notes == ()
    assert told[-1][0] == 1.0
    assert all(0 <= share <= 1 for share, _ in told)
    (result,) = read_results([tmp_path / "r.jsonl"])
    ours, theirs = provenance(1, 1).as_mapping(), result.provenance.as_mapping()
    assert set(ours) == set(theirs)
    same = set(ours) - {"timestamp", "load", "frequency_mhz", "temperatures_c"}
    assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
    assert result.provenance.nchwc_block == detect_nchwc_block()


def test_the_profile_is_of_the_recorded_graph_and_knows_shapes(tmp_path, small_plan):
    measure_here(small_plan(), tmp_path / "r.jsonl")
    model = read_results([tmp_path / "r.jsonl"])[0].models[0]
    assert [(n.name, n.op_type) for n in model.nodes] == [(n.name, n.op_type) for n in model.graph.node]
    convs = [node for node in model.nodes if node.op_type == "Conv"]
    assert [node.input_shapes[0] for node in convs] == [[1, 16, 8, 8], [1, 64, 8, 8]]
    assert convs[0].output_shapes == [[1, 64, 8, 8]]
    assert all(node.us >= 0 for node in model.nodes)
    initializers = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert (64, 16, 3, 3) in initializers.values()
    assert not any(t.raw_data for t in model.graph.initializer)


@pytest.mark.parametrize(
    ("network", "shape", "high"),
    [
        (resnet20, (1, 1, 32, 32), None),
        (mobilenetv2, (1, 1, 32, 32), None),
        (vit, (1, 1, 32, 32), None),
        (language_model, None, 0),
    ],
)
def test_made_up_weights_leave_the_optimised_graph_as_it_is(network, shape, high):
    torch.manual_seed(0)
    net = network()
    example = torch.zeros(shape) if high is None else torch.zeros((1, 16), dtype=torch.long)
    model = exported(net, example)
    kit_model = KitModel("m", model, "n", "reference")
    inputs = InputSpec(tuple(example.shape), str(example.numpy().dtype), None if high is None else 8)
    plan = device_plan(KitPlan((kit_model,), 1, "float32", {"n": inputs}))
    merged = plan.model(plan.entries[0])
    assert kit_model.weights
    assert len(kit_model.skeleton) < len(model) / 2
    assert optimised_nodes(merged) == optimised_nodes(model)
    onnx.checker.check_model(onnx.load_from_string(merged))


def test_small_and_one_dimensional_tensors_and_indices_travel_as_they_are():
    large = {
        "weight": np.ones((32, 32), np.float32),
        "half": np.ones((64, 32), np.float16),
        "quantised": np.ones((64, 32), np.int8),
        "unsigned": np.ones((64, 32), np.uint8),
    }
    kept = {
        "bias": np.arange(2048, dtype=np.float32),
        "small": np.arange(256, dtype=np.float32).reshape(16, 16),
        "shape": np.arange(4096, dtype=np.int64).reshape(64, 64),
        "index": np.arange(4096, dtype=np.int32).reshape(64, 64),
    }
    tensors = [numpy_helper.from_array(a, n) for n, a in (large | kept).items()]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32]) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], tensors)
    model = KitModel("m", helper.make_model(graph).SerializeToString(), "n", "reference")
    assert {w.name: (w.dims, w.dtype) for w in model.weights} == {n: (a.shape, str(a.dtype)) for n, a in large.items()}
    assert next(w.scale for w in model.weights if w.name == "weight") == (2 / 32) ** 0.5
    left = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(model.skeleton).graph.initializer}
    assert left.keys() == kept.keys()
    assert all((left[n] == kept[n]).all() for n in kept)


def test_a_kit_is_the_same_each_time_and_small(tmp_path, small_plan):
    torch.manual_seed(0)
    bytes_of_model = exported(resnet18(), torch.zeros(1, 1, 32, 32))
    models = (KitModel("m", bytes_of_model, "n", "reference"),)
    plan = KitPlan(models, 1, "float32", {"n": InputSpec((1, 1, 32, 32))})
    for name in "ab":
        write_kit(plan, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as kit:
        size = kit.getinfo("models/0000.onnx").compress_size
    assert size < 32 * 1024 < len(bytes_of_model) / 1000
    assert read_plan(tmp_path / "a").hash == device_plan(plan).hash != device_plan(small_plan()).hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("w64", "w64")}, "'w64' occurs 2 times"),
        ({"models": ("w16",)}, "has 0 timed references, must have 1"),
        ({"inputs": {}}, "'net' has no input"),
        ({"passes": 0}, "passes = 0, must be at least 1"),
        ({"models": ()}, "models = 0, must be at least 1"),
        ({"sample_ms": 0.0}, "sample_ms = 0.0, must be more than 0"),
    ],
)
def test_a_plan_is_valid_or_says_why_not(small_plan, change, message):
    plan = small_plan()
    by_id = {model.id: model for model in plan.models}
    arguments = {"models": plan.models, "inputs": plan.inputs, "batch": 1, "dtype": "float32"} | change
    if "models" in change:
        arguments["models"] = tuple(by_id[name] for name in change["models"])
    with pytest.raises(BadInputError, match=message):
        KitPlan(**arguments)


def test_models_that_cannot_travel_are_refused(tmp_path, conv_model, small_plan):
    with pytest.raises(BadInputError, match="'m' is not an ONNX model"):
        KitModel("m", b"\xff\xff", "n", "reference")
    model = onnx.load_from_string(conv_model(64))
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="keeps w1 in another file"):
        KitModel("m", (tmp_path / "m.onnx").read_bytes(), "n", "reference")
    with pytest.raises(BadInputError, match="must hold plain JSON values"):
        device_plan(small_plan(info={"array": np.zeros(1)}))
    with pytest.raises(BadInputError, match="cannot write"):
        write_kit(small_plan(), tmp_path / "missing" / "kit.pyz")


def test_the_kit_refuses_in_one_line(tmp_path, small_plan):
    write_kit(small_plan(), tmp_path / "kit.pyz")
    Path(tmp_path / "result.jsonl").write_text("my diary\n")
    refused = {
        ("kit.pyz", "-o", "result.jsonl"): "result.jsonl is not a kit's result file",
        ("kit.pyz", "-o", "r", "--threads", "0"): "--threads 0 must be at least 1",
        ("kit.pyz", "-o", "r", "--minutes", "0"): "--minutes 0.0 must be more than 0",
        ("kit.pyz", "-o", "r", "--provider", "Abacus"): "this onnxruntime has: .*CPUExecutionProvider",
        ("kit.pyz", "-o", "missing/r"): "cannot write missing/r",
    }
    for arguments, message in refused.items():
        done = run_kit(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert re.search(message, done.stderr), done.stderr
    assert (tmp_path / "result.jsonl").read_text() == "my diary\n"
    listed = run_kit(tmp_path, "kit.pyz", "--list")
    assert listed.stdout.splitlines()[0].split("\t")[:3] == ["w64", "net", "reference"]


@pytest.mark.slow
def test_a_kit_needs_only_numpy_and_onnxruntime(tmp_path, small_plan):
    """In a fresh virtual environment that has nothing else."""
    write_kit(small_plan(), tmp_path / "kit.pyz")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    refused = subprocess.run([python, *KIT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "this kit needs numpy and onnxruntime (No module named 'numpy')" in refused.stderr
    constraints = Path(__file__).parents[2] / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, "numpy", "onnxruntime"], check=True)
    assert subprocess.run([python, "-c", "import onnx"], capture_output=True, check=False).returncode != 0
    done = subprocess.run([python, *KIT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_results([tmp_path / "result.jsonl"])[0].coverage.timed == (3, 3)


def test_a_kit_takes_the_place_of_a_kit_and_of_nothing_else(tmp_path, small_plan):
    kit = tmp_path / "kit.pyz"
    write_kit(small_plan(), kit)
    first = kit.read_bytes()
    write_kit(small_plan((8, 16)), kit)
    assert kit.read_bytes() != first
    assert kit.stat().st_mode & 0o777 == 0o755
    (tmp_path / "thesis.tex").write_text("dear reader")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("plan.json", "{}")
    (tmp_path / "link.pyz").symlink_to(kit)
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("thesis.tex", "is there and is no kit; move it"),
        ("photos.zip", "is there and is no kit"),
        ("link.pyz", "is there and is no kit"),
        ("folder", "it is a folder"),
        ("nowhere/kit.pyz", "nowhere is no folder; make it"),
    ):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(BadInputError, match=words):
            write_kit(small_plan(), tmp_path / name)
        assert before == ((tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None)
    with pytest.raises(BadInputError, match="it is a device"):
        write_kit(small_plan(), Path("/dev/null"))


def test_a_full_disk_leaves_the_kit_that_was_there(tmp_path, small_plan, monkeypatch):
    kit = tmp_path / "kit.pyz"
    write_kit(small_plan(), kit)
    before = kit.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", full)
            with pytest.raises(BadInputError, match=r"cannot write .*kit\.pyz: No space left on device; free the disk"):
                write_kit(small_plan((8, 16)), kit)
        assert kit.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kit.pyz"]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_results_are_not_added_to_a_file_of_another_name(tmp_path, small_plan, link):
    target = tmp_path / "theirs.jsonl"
    target.write_text('{"kind":"header"')  # as a torn result of theirs
    link(tmp_path / "r.jsonl", target)
    with pytest.raises(BadInputError, match="is a link, has a second name, or is no file"):
        measure_here(small_plan(), tmp_path / "r.jsonl")
    assert target.read_text() == '{"kind":"header"'


def test_a_kit_runs_as_its_plan_says_unless_it_is_told_otherwise(tmp_path, small_plan, monkeypatch):
    settings = []
    end = {"coverage": {"models": 0, "timed": [0], "profiled": 0, "left_out": [], "failed": {}}, "complete": True}
    end |= {"notes": [], "drift": {"disturbed_share": 0.0, "largest": 1.0}}
    monkeypatch.setattr(command, "run", lambda plan, out, setting, progress: settings.append(setting) or end)
    write_kit(small_plan(threads=2, provider="OpenVINOExecutionProvider"), tmp_path / "set.pyz")
    write_kit(small_plan(), tmp_path / "plain.pyz")
    for kit, given in (("set", []), ("set", ["--threads", "1", "--provider", "CPU"]), ("plain", [])):
        assert command.main(tmp_path / f"{kit}.pyz", ["-o", str(tmp_path / "r"), *given]) == 0
    asked = [(setting.threads, setting.provider) for setting in settings]
    assert asked == [(2, "OpenVINOExecutionProvider"), (1, "CPU"), (1, "CPUExecutionProvider")]
