"""Sessions of ONNX Runtime on the host, their provenance, and an ONNX model as a loaded network and a torch module.

Every latency in this project comes from sessions made by ``on_device.session``, here as on a device, so that a table, a
prediction and a re-measured finalist mean the same thing: sequential execution, all graph optimisations (the blocked
NCHWc layout exists only there) and a fixed number of threads. Denormals are left alone: flushing them sets the
processor's state for the whole process, and a model that is slow by them is slow for its user too.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from amcsearch.core import BadInputError
from amcsearch.costs import Provenance
from amcsearch.runtime.loaded import FileModule, LoadedNetwork, Port
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.protobuf import nchwc_block
from amcsearch.runtime.on_device.provenance import COMPARED
from amcsearch.runtime.on_device.provenance import provenance as device_provenance
from amcsearch.runtime.on_device.providers import CPU, elsewhere, is_profiled, provider_name
from amcsearch.runtime.on_device.session import bound_call, open_session, optimised_model
from amcsearch.runtime.signature import Signature

ort.disable_telemetry_events()  # a tool that measures other people's networks reports to nobody

__all__ = [
    "PROVIDER",
    "OnnxModule",
    "OnnxNetwork",
    "detect_nchwc_block",
    "differences",
    "make_session",
    "provenance",
    "simplified_model",
]

PROVIDER: Final = CPU


def make_session(
    model: Path | str | bytes, threads: int = 1, optimised: Path | None = None, provider: str = CPU
) -> ort.InferenceSession:
    """Open an ONNX model (a path or its bytes) for measuring; see ``on_device.session.open_session``.

    Raises:
        BadInputError: fewer than one thread, a provider that is not here, or a model that ONNX Runtime cannot read or
            run with it.
    """
    try:
        return open_session(model, threads, provider_name(provider), optimised=optimised)
    except DeviceError as error:
        raise BadInputError(str(error)) from error


def simplified_model(model: bytes) -> bytes:
    """The model after ONNX Runtime's basic optimisations, which fold and fuse alike for every machine.

    Raises:
        BadInputError: a model that ONNX Runtime cannot read.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3  # errors only: the optimiser warns about every file it writes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(model, options, [PROVIDER])
            return path.read_bytes()
        except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
            raise BadInputError(f"ONNX Runtime cannot simplify the model: {str(error).splitlines()[0]}") from error


def _one_conv(c_in: int, c_out: int) -> bytes:
    """A 3x3 convolution on an 8x8 map, serialised; the smallest model the layout optimiser looks at."""
    weight = np.full((c_out, c_in, 3, 3), 0.1, dtype=np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, c_in, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, c_out, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@cache
def detect_nchwc_block() -> int:
    """Channels in a block of the runtime's NCHWc layout here (16 with AVX-512, 8 with AVX2 …), 0 if it has none.

    Read from the runtime's own optimised graph: the weight of a convolution with 4 outputs is padded to one block.
    """
    return nchwc_block(optimised_model(_one_conv(64, 4)))


def provenance(threads: int, batch: int, dtype: str = "float32", provider: str = CPU) -> Provenance:
    """Where, with what and how latencies are being measured here.

    Raises:
        BadInputError: a provider that is not here.
    """
    try:
        name = provider_name(provider)
    except DeviceError as error:
        raise BadInputError(str(error)) from error
    block = detect_nchwc_block() if is_profiled(name) else 0
    return Provenance.from_mapping(device_provenance(threads, batch, dtype, name, block))


def differences(measured: Provenance, here: Provenance) -> list[str]:
    """Say in sentences how a table's device and setting differ from those of a run; [] where they agree.

    What either side does not know is not compared.
    """
    pairs = [(words, getattr(measured, name), getattr(here, name)) for name, words in COMPARED.items()]
    return [
        f"{words}: the table was measured with {before!r}, this run has {now!r}"
        for words, before, now in pairs
        if before is not None and now is not None and before != now
    ]


class OnnxNetwork(LoadedNetwork):
    """An ONNX model in a session of ONNX Runtime.

    Args:
        model: file or serialised model.
        threads: threads inside an operator.
        provider: execution provider, by its name with or without its ending.

    Raises:
        BadInputError: as ``make_session``.
    """

    def __init__(self, model: Path | bytes, threads: int = 1, provider: str = CPU) -> None:
        self._session = make_session(model, threads, provider=provider)
        shapes = (tuple(n if isinstance(n, int) else None for n in port.shape) for port in self._session.get_inputs())
        names = (port.name for port in self._session.get_inputs())
        self._inputs = tuple(Port(*pair) for pair in zip(names, shapes, strict=True))

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs of the model; None stands for an axis that is free."""
        return self._inputs

    def run(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Return all outputs.

        Raises:
            BadInputError: ONNX Runtime cannot run the model on these inputs.
        """
        feed = {port.name: array for port, array in zip(self._inputs, arrays, strict=True)}
        try:
            return list(self._session.run(None, feed))
        except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
            raise BadInputError(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from error

    def bound_call(self, arrays: Sequence[NDArray[np.generic]]) -> Callable[[], None]:
        """Return what runs the model once on bound memory: nothing is allocated or copied on the way.

        Raises:
            BadInputError: the model does not take such inputs.
        """
        try:
            return bound_call(self._session, arrays)
        except DeviceError as error:
            raise BadInputError(str(error)) from error

    @property
    def elsewhere(self) -> str | None:
        """What of the model the provider that was asked for does not run, in a sentence; None where it runs all."""
        provider = str(self._session.get_providers()[0])
        left = elsewhere(self._session, provider)
        if left is None:
            return f"this onnxruntime cannot say which nodes of the network {provider} runs"
        return left.note(provider, "the network") if left.nodes else None


class OnnxModule(FileModule):
    """An ONNX model as a torch module.

    Args:
        model: file or serialised model; its inputs are those of a call, in order.
        threads: threads inside an operator.
        signature: as of ``FileModule``.
        provider: execution provider, by its name with or without its ending.

    Raises:
        BadInputError: as ``make_session``.
    """

    def __init__(
        self, model: Path | bytes, threads: int = 1, signature: Signature | None = None, *, provider: str = CPU
    ) -> None:
        super().__init__(OnnxNetwork(model, threads, provider), signature)
