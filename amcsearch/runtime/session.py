"""One place that makes ONNX Runtime sessions, and says where and how they ran.

Every latency in this project comes from sessions made here, so that a table, a prediction and a re-measured finalist
mean the same thing: CPU provider, sequential execution, all graph optimisations (the blocked NCHWc layout exists only
there) and a fixed number of threads. Denormals are left alone: flushing them sets the processor's state for the whole
process, and a model that is slow by them is slow for its user too.
"""

import hashlib
import os
import platform
import re
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from amcsearch.core import BadInputError

ort.disable_telemetry_events()  # a tool that measures other people's networks reports to nobody

__all__ = ["PROVIDER", "detect_nchwc_block", "make_session", "optimised_graph", "provenance"]

PROVIDER: Final = "CPUExecutionProvider"
QUIET: Final = 3  # errors only: the optimiser warns about every file it writes


def make_session(
    model: Path | str | bytes,
    threads: int = 1,
    profile: Path | None = None,
    optimised: Path | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model (a path or its bytes) for measuring.

    Args:
        model: file or serialised model.
        threads: threads inside an operator; operators run one after the other.
        profile: prefix of the file that ONNX Runtime's profiler writes at ``end_profiling``; no profiling if None.
            A profiled session is slower: use it to attribute time, never to state one.
        optimised: where to write the optimised graph, if anywhere.

    Raises:
        BadInputError: fewer than one thread, or a model that ONNX Runtime cannot read or run.
    """
    if threads < 1:
        raise BadInputError(f"threads = {threads}, must be at least 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = QUIET
    # Idle pools must not spin while another session is being timed beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
        name = "the model" if isinstance(model, bytes) else str(model)
        raise BadInputError(f"ONNX Runtime cannot open {name}: {str(error).splitlines()[0]}") from error


def optimised_graph(model: Path | str | bytes, threads: int = 1) -> onnx.GraphProto:
    """The graph ONNX Runtime really executes on this machine: fused, folded and in its own layout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        make_session(model, threads, optimised=path)
        return onnx.load(str(path), load_external_data=False).graph


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
    graph = optimised_graph(_one_conv(64, 4))
    conv = next(node for node in graph.node if node.op_type == "Conv")
    if conv.domain != "com.microsoft.nchwc":
        return 0
    weight = next(tensor for tensor in graph.initializer if tensor.name == conv.input[1])
    return int(weight.dims[0])


def _cpu() -> tuple[str, str]:
    """CPU model name and a digest of its feature flags (which decide the kernels)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ""
    model = re.search(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    digest = hashlib.sha256(" ".join(sorted(flags[1].split())).encode()).hexdigest()[:12] if flags else ""
    return (model[1].strip() if model else platform.machine()), digest


def _cgroup_quota() -> float | None:
    """CPUs this process may use by its control group, None where unlimited or unreadable."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def provenance(threads: int, batch: int) -> dict[str, Any]:
    """Where, with what and how latencies are being measured: plain values, ready for a YAML header."""
    cpu, flags = _cpu()
    return {
        "cpu": cpu,
        "cpu_flags": flags,
        "cores": os.cpu_count() or 1,
        "cgroup_quota": _cgroup_quota(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ort_version": ort.__version__,
        "provider": PROVIDER,
        "threads": threads,
        "batch": batch,
        "dtype": "float32",
        "optimisation": "all",
        "nchwc_block": detect_nchwc_block(),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
    }
