"""The device kit: one file that measures a plan's models on a device that has Python, numpy and onnxruntime.

A kit is a zip archive that Python runs (zipapp): the measuring program, which is the package ``on_device`` as it is
here, plan.json, and the ONNX models without their weights, which are made on the device. So a ResNet-50 takes 20 KB.

Large tensors of two dimensions or more are the weights that are left out; biases, batch-norm statistics, scales, zero
points and shape constants stay, because optimisations look at their values. What replaces a weight has variance
2 / fan-in (see ``on_device.weights``).
"""

import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from importlib import resources
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from amcsearch.core import BadInputError
from amcsearch.runs import check_replaceable, replacing
from amcsearch.runtime import (
    CPU,
    DATA_TYPES,
    HELPERS,
    KIT_VERSION,
    PLAN_FILE,
    DeviceError,
    DevicePlan,
    InputSpec,
    Runtime,
    RuntimeEngine,
    Settings,
    WeightSpec,
    canonical,
    read_plan,
    run,
)

__all__ = [
    "REFERENCE",
    "InputSpec",
    "KitModel",
    "KitPlan",
    "KitRun",
    "check_kit_file",
    "device_plan",
    "kit_plan",
    "measure_here",
    "plan_archive",
    "without_weights",
    "write_kit",
]

LARGE_BYTES: Final = 1024  # smaller tensors travel as they are
# int32 and int64 travel: they may be indices, whose values must be in range
TYPE_NAMES: Final = {number: name for name, number in DATA_TYPES.items() if name != "int32"}


def _fan_in(tensor: onnx.TensorProto, user: onnx.NodeProto | None) -> int:
    """Numbers summed for one output: (C_out, C_in, kH, kW) for convolutions, (in, out) for matrices."""
    dims = list(tensor.dims)
    if user is not None and user.op_type in {"Gather", "Add"}:  # embeddings: used as they are
        return 2
    if user is not None and user.op_type == "Gemm" and helper.get_node_attr_value(user, "transB"):
        return int(dims[1])
    return int(dims[-2] if len(dims) == 2 or (user is not None and user.op_type == "MatMul") else np.prod(dims[1:]))


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's numbers can be made up: large, two dimensions or more, no integers that may be indices."""
    size = len(tensor.raw_data) or 4 * max(len(tensor.float_data), len(tensor.int32_data))
    return len(tensor.dims) >= 2 and tensor.data_type in TYPE_NAMES and size > LARGE_BYTES


def without_weights(model: bytes, name: str) -> tuple[bytes, tuple[WeightSpec, ...]]:
    """Take the weights out of a serialised ONNX model; ``on_device.weights.with_weights`` puts others in.

    Args:
        model: serialised model, weights inside.
        name: of the model, for messages.

    Returns:
        The model without them, and what is needed to make others.

    Raises:
        BadInputError: the model cannot be read, or keeps weights in another file.
    """
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's decode errors have no public base
        raise BadInputError(f"kit: model {name!r} is not an ONNX model ({error}); export it again") from error
    users = {tensor: node for node in reversed(proto.graph.node) for tensor in node.input}
    kept, weights = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BadInputError(f"kit: model {name!r} keeps {tensor.name} in another file; save it as one file")
        if not _is_weight(tensor):
            kept.append(tensor)
            continue
        scale = (2.0 / max(_fan_in(tensor, users.get(tensor.name)), 1)) ** 0.5
        weights.append(WeightSpec(tensor.name, tuple(tensor.dims), TYPE_NAMES[tensor.data_type], scale))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return bytes(proto.SerializeToString()), tuple(weights)


REFERENCE: Final = "reference"
OPSET, IR_VERSION = 17, 8
MAIN: Final = """\
import sys
from pathlib import Path

if sys.version_info < (3, 8):
    sys.exit("this kit needs Python 3.8 or newer")
try:
    from amcsearch.runtime.on_device.__main__ import main
except ImportError as error:
    sys.exit("this kit needs numpy and onnxruntime (%s): python3 -m pip install numpy onnxruntime" % error)

sys.exit(main(Path(__file__).parent))
"""


@dataclass(frozen=True)
class KitModel:
    """A model of a kit; weights of ONNX are left out as it is made, so that many large models fit into memory.

    Args:
        id: unique in the plan.
        model: serialised ONNX, weights inside.
        network: models of one network take the same input and are timed beside the same reference.
        role: what it is measured for; exactly one model of a network is its ``reference``, the dense one.
        policy: kept channels by group, if it is a pruned network.
        timed, profiled: neither: only the optimised graph is recorded.
        meta: anything that JSON can hold, for whoever reads the result.
        keeps_weights: it travels as it is, as a file of another runtime has to, which is no ONNX.

    Raises:
        BadInputError: the model cannot be read, or keeps weights in another file.
    """

    id: str
    model: InitVar[bytes]
    network: str
    role: str
    policy: Mapping[str, int] | None = None
    timed: bool = True
    profiled: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    keeps_weights: bool = False
    skeleton: bytes = field(init=False, repr=False)
    weights: tuple[WeightSpec, ...] = field(init=False, repr=False)

    def __post_init__(self, model: bytes) -> None:
        skeleton, weights = (model, ()) if self.keeps_weights else without_weights(model, self.id)
        object.__setattr__(self, "skeleton", skeleton)
        object.__setattr__(self, "weights", weights)


@dataclass(frozen=True)
class KitPlan:
    """What to measure on a device.

    Args:
        models: in order of priority, best coverage first: when time is short the last are left out.
        batch: of the inputs, for the record.
        dtype: that the models compute in, for the record.
        inputs: each network's one input; shapes include the batch.
        passes: times every model is measured, spread over the run.
        rounds: samples of a pass; disturbed ones are repeated, up to as many again.
        sample_ms: least duration of a sample.
        profile_rounds: rounds of the profile, six runs each.
        info: anything that JSON can hold; it comes back in the result.
        seed: of orders and weights.
        threads: inside an operator, that the device takes where its user names none; None leaves that to the user.
        provider: full name of the execution provider, likewise.
        empty: file of another runtime, of which the models are then too; it computes next to nothing of one number.

    Raises:
        BadInputError: a name twice, a network without exactly one timed reference or without input, counts below 1.
    """

    models: tuple[KitModel, ...]
    batch: int
    dtype: str
    inputs: Mapping[str, InputSpec | tuple[InputSpec, ...]]
    passes: int = 3
    rounds: int = 8
    sample_ms: float = 1.5
    profile_rounds: int = 15
    info: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    provider: str | None = None
    empty: bytes | None = None

    def __post_init__(self) -> None:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise BadInputError(f"kit: model {twice!r} occurs {ids.count(twice)} times; ids must differ")
        for network in sorted({model.network for model in self.models}):
            references = sum(m.network == network and m.role == REFERENCE and m.timed for m in self.models)
            if references != 1:
                raise BadInputError(f"kit: network {network!r} has {references} timed references, must have 1")
            if network not in self.inputs:
                raise BadInputError(f"kit: network {network!r} has no input; known are {sorted(self.inputs)}")
        counts = {n: getattr(self, n) for n in ("batch", "passes", "rounds", "profile_rounds")} | {"models": len(ids)}
        for name, value in counts.items():
            if value < 1:
                raise BadInputError(f"kit: {name} = {value}, must be at least 1")
        if not self.sample_ms > 0:
            raise BadInputError(f"kit: sample_ms = {self.sample_ms}, must be more than 0")


def _one_node(node: onnx.NodeProto, shapes: Sequence[Sequence[int]], weights: Sequence[onnx.TensorProto]) -> bytes:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True)]
    graph = helper.make_graph([node], "probe", ports[:1], ports[1:], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _probes() -> dict[str, bytes]:
    """The model that computes next to nothing, and the convolution whose padded weight tells the layout's block."""
    weight = numpy_helper.from_array(np.full((4, 64, 3, 3), 0.1, dtype=np.float32), "w")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    return {
        "empty": _one_node(helper.make_node("Relu", ["x"], ["y"]), [(1, 1), (1, 1)], ()),
        "probe": _one_node(conv, [(1, 64, 8, 8), (1, 4, 8, 8)], [weight]),
    }


def _written(inputs: InputSpec | tuple[InputSpec, ...]) -> dict[str, Any] | list[dict[str, Any]]:
    return inputs._asdict() if isinstance(inputs, InputSpec) else [spec._asdict() for spec in inputs]


def _described(model: KitModel, file: str) -> dict[str, Any]:
    return {
        "id": model.id,
        "network": model.network,
        "role": model.role,
        "policy": None if model.policy is None else dict(model.policy),
        "timed": model.timed,
        "profiled": model.profiled,
        "meta": dict(model.meta),
        "file": file,
        "weights": [list(weight) for weight in model.weights],
    }


def device_plan(plan: KitPlan) -> DevicePlan:
    """The plan as the measuring program takes it; ``hash`` is the plan's hash.

    Raises:
        BadInputError: ``info`` or a model's ``meta`` holds what JSON cannot.
    """
    names = [f"{i:04d}.onnx" for i in range(len(plan.models))]
    described = {
        "version": KIT_VERSION,
        **{n: getattr(plan, n) for n in ("batch", "dtype", "passes", "rounds", "sample_ms", "profile_rounds", "seed")},
        "inputs": {name: _written(spec) for name, spec in plan.inputs.items()},
        "models": [_described(model, name) for model, name in zip(plan.models, names, strict=True)],
        "info": dict(plan.info),
    }
    setting = {name: getattr(plan, name) for name in ("threads", "provider") if getattr(plan, name) is not None}
    if setting:
        described["setting"] = setting
    try:
        canonical(described)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"kit: info and meta must hold plain JSON values: {error}") from error
    files = {name: model.skeleton for name, model in zip(names, plan.models, strict=True)}
    helpers = _probes() if plan.empty is None else dict.fromkeys(HELPERS, plan.empty)
    return DevicePlan(described, files | helpers)


_FIRST_LINE: Final = b"#!/usr/bin/env python3\n"


def _program_files() -> dict[str, str]:
    """The measuring program under the names it is imported by here."""
    package = resources.files("amcsearch.runtime.on_device")
    sources = sorted(file.name for file in package.iterdir() if file.name.endswith(".py"))
    empty = {f"{name}/__init__.py": '"""Part of a measuring kit."""\n' for name in ("amcsearch", "amcsearch/runtime")}
    inside = {f"amcsearch/runtime/on_device/{name}": (package / name).read_text("utf-8") for name in sources}
    return {"__main__.py": MAIN, **empty, **inside}


def write_kit(plan: KitPlan, path: Path) -> None:
    """Write the kit of a plan; equal plans give equal files.

    Raises:
        BadInputError: as ``device_plan`` and ``check_kit_file``, or the file cannot be written.
    """
    ready = device_plan(plan)
    program = {name: text.encode() for name, text in _program_files().items()}
    check_kit_file(path)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(_FIRST_LINE)
            _write_archive(file, program | _contents(ready))
        temporary.chmod(0o755)


def plan_archive(plan: DevicePlan) -> bytes:
    """Return a plan as an archive without the program, for a device's agent; equal plans give equal bytes."""
    file = io.BytesIO()
    _write_archive(file, _contents(plan))
    return file.getvalue()


def _contents(plan: DevicePlan) -> dict[str, bytes]:
    return {PLAN_FILE: canonical(plan.plan)} | {f"models/{name}": content for name, content in plan.files.items()}


def _write_archive(file: IO[bytes], contents: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def check_kit_file(path: Path) -> None:
    """Refuse a file that a kit cannot take the place of: before the models are exported.

    Raises:
        BadInputError: what is there is no kit, or there is no folder for it.
    """
    if not os.path.isdir(path.parent):
        raise BadInputError(f"cannot write {path}: {path.parent} is no folder; make it, or name another --out")
    check_replaceable(path)
    if os.path.islink(path) or (os.path.lexists(path) and not _is_kit(path)):
        raise BadInputError(f"{path} is there and is no kit; move it, or name another --out")
    if not os.access(path.parent, os.W_OK):
        raise BadInputError(f"cannot write {path}: {path.parent} is read-only; name another --out")


def kit_plan(path: Path) -> DevicePlan:
    """Read the plan of a kit.

    Raises:
        BadInputError: the file is no kit, or was damaged.
    """
    try:
        return read_plan(path)
    except DeviceError as error:
        raise BadInputError(str(error)) from error


def _is_kit(path: Path) -> bool:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return PLAN_FILE in archive.namelist() and file.seek(0) == 0 and file.read(2) == _FIRST_LINE[:2]
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


@dataclass(frozen=True)
class KitRun:
    """How a run ended: whether the plan is done, how long this part took, and what was repaired."""

    complete: bool
    seconds: float
    notes: tuple[str, ...]


def measure_here(
    plan: KitPlan,
    out_path: Path,
    threads: int = 1,
    provider: str = CPU,
    minutes: float | None = None,
    progress: Callable[[float, str], None] | None = None,
    runtime: Runtime | None = None,
) -> KitRun:
    """Run the kit's program on this machine, in this process; a result that was broken off is gone on with.

    Args:
        plan: what to measure.
        out_path: the result file.
        threads: threads inside an operator.
        provider: execution provider.
        minutes: bound of the run, None for none.
        progress: called with the share done and what is being done.
        runtime: whose files the models are, with its own threads and provider; None is ONNX Runtime.

    Raises:
        BadInputError: what the program refuses.
    """
    engine = None if runtime is None else RuntimeEngine(runtime)
    try:
        end = run(device_plan(plan), out_path, Settings(threads, provider, minutes), progress, engine=engine)
    except DeviceError as error:
        raise BadInputError(str(error)) from error
    return KitRun(bool(end["complete"]), float(end["seconds"]), tuple(end["notes"]))
