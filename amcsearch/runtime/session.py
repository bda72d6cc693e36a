"""Sessions of ONNX Runtime on the host, their provenance, and an ONNX model as a torch module.

Every latency in this project comes from sessions made by ``on_device.session``, here as on a device, so that a table, a
prediction and a re-measured finalist mean the same thing: sequential execution, all graph optimisations (the blocked
NCHWc layout exists only there) and a fixed number of threads. Denormals are left alone: flushing them sets the
processor's state for the whole process, and a model that is slow by them is slow for its user too.

``OnnxModule`` lets the code that judges the torch network judge the delivered file too.
"""

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from amcsearch.core import BadInputError
from amcsearch.costs import Provenance
from amcsearch.graph import Batch, Tree
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.protobuf import nchwc_block
from amcsearch.runtime.on_device.provenance import COMPARED
from amcsearch.runtime.on_device.provenance import provenance as device_provenance
from amcsearch.runtime.on_device.providers import CPU, elsewhere, is_profiled, provider_name
from amcsearch.runtime.on_device.session import open_session, optimised_model
from amcsearch.runtime.signature import Signature, arrays_of, call_of, calls, joined, sample_axis

__all__ = ["OnnxModule"]

ort.disable_telemetry_events()  # a tool that measures other people's networks reports to nobody

__all__ = [
    "PROVIDER",
    "detect_nchwc_block",
    "differences",
    "make_session",
    "outputs_of_calls",
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


def outputs_of_calls(session: ort.InferenceSession, batch: Batch) -> Iterator[list[NDArray[np.generic]]]:
    """All outputs of each call for the samples of a batch, any number of them, in calls of the model's own batch.

    The last call is filled up with samples from the beginning; a model of any batch takes all samples in one call.

    Raises:
        BadInputError: the batch has other inputs than the model, or ONNX Runtime cannot run it.
    """
    ports, tensors = session.get_inputs(), batch.inputs.values()
    if len(ports) != len(tensors):
        names = ", ".join(port.name for port in ports)
        raise BadInputError(
            f"ONNX Runtime cannot run the model: it has {len(ports)} inputs ({names}), {len(tensors)} were given"
        )
    sizes = (p.shape[0] for p, t in zip(ports, tensors, strict=True) if t.ndim and len(t) == batch.size and p.shape)
    size = next(sizes, None)
    for call in calls(batch, size if isinstance(size, int) else batch.size):
        feed = {port.name: array for port, array in zip(ports, arrays_of(call), strict=True)}
        try:
            yield session.run(None, feed)
        except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
            raise BadInputError(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from error


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


class OnnxModule(nn.Module):
    """Runs an ONNX model on any number of samples, and gives what the network does that it was made from.

    Args:
        model: file or serialised model; its inputs are those of a call, in order.
        threads: threads inside an operator.
        provider: execution provider, by its name with or without its ending.
        signature: of the network. Without one, the result is the output of a model of one, a tuple of several, with
            their samples along the first axis that is as long as a call.

    Raises:
        BadInputError: as ``make_session``.
    """

    def __init__(
        self, model: Path | bytes, threads: int = 1, signature: Signature | None = None, *, provider: str = CPU
    ) -> None:
        super().__init__()
        self._session = make_session(model, threads, provider=provider)
        self._signature = signature

    @property
    def elsewhere(self) -> str | None:
        """What of the model the provider that was asked for does not run, in a sentence; None where it runs all."""
        provider = str(self._session.get_providers()[0])
        left = elsewhere(self._session, provider)
        if left is None:
            return f"this onnxruntime cannot say which nodes of the network {provider} runs"
        return left.note(provider, "the network") if left.nodes else None

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Samples → the network's outputs, in calls of the model's own batch.

        Raises:
            BadInputError: ONNX Runtime cannot run the model on these inputs.
        """
        whole = call_of(args, kwargs)
        parts = [[torch.from_numpy(np.asarray(array)) for array in a] for a in outputs_of_calls(self._session, whole)]
        if self._signature is not None:
            return self._signature.filled(joined(parts, self._signature.axes, whole.size))
        ports = self._session.get_inputs()
        size = ports[0].shape[0] if isinstance(ports[0].shape[0], int) else whole.size
        tensors = joined(parts, [sample_axis(tensor, size) for tensor in parts[0]], whole.size)
        return tensors[0] if len(tensors) == 1 else tuple(tensors)
