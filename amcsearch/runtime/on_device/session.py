"""One place that makes ONNX Runtime sessions, so that a table, a prediction and a finalist's latency mean the same.

Sequential execution, all graph optimisations (the blocked NCHWc layout exists only there) and a fixed number of
threads. Denormals are left alone: flushing them sets the processor's state for the whole process.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence

import numpy as np
import onnxruntime as ort

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.providers import CPU, add_provider, elsewhere

ort.disable_telemetry_events()  # a tool that measures other people's networks reports to nobody

if TYPE_CHECKING:  # older numpy lacks it
    from numpy.typing import NDArray

__all__ = ["CPU", "Call", "bound_call", "input_array", "open_session", "optimised_model"]

MOST_CALL_S = 600.0  # of a model, run for the first time
QUIET = 4  # the optimiser warns about every file it writes, and what fails is raised as well as logged
Call = Callable[[], None]


def open_session(
    model: Path | str | bytes,
    threads: int = 1,
    provider: str = CPU,
    profile: Path | None = None,
    optimised: Path | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model (a path or its bytes) for measuring.

    Args:
        model: file or serialised model.
        threads: threads inside an operator; operators run one after the other.
        provider: full name of the execution provider, as ``provider_name`` gives it. The CPU provider runs the nodes
            that it cannot run: ``elsewhere`` counts them.
        profile: prefix of the file that the profiler writes at ``end_profiling``; no profiling if None. A profiled
            session is slower: use it to share time out, never to state one.
        optimised: where to write the optimised graph, if anywhere.

    Raises:
        DeviceError: fewer than one thread, a model that ONNX Runtime cannot read or run with this provider, or
            of which the provider runs no node.
    """
    if threads < 1:
        raise DeviceError(f"threads = {threads}, must be at least 1")
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
    providers = add_provider(options, provider, threads)
    name = "the model" if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers)
    except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
        raise DeviceError(f"ONNX Runtime cannot open {name}: {str(error).splitlines()[0]}") from error
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{provider} did not start, {session.get_providers()[0]} did; check its driver and libraries")
    left = elsewhere(session, provider)
    if left is not None and left.of and left.nodes == left.of:
        raise DeviceError(f"{provider} runs none of the {left.of} nodes of {name}; use another provider")
    return session


def optimised_model(model: Path | str | bytes, threads: int = 1, provider: str = CPU) -> bytes:
    """The serialised model ONNX Runtime really executes here: fused, folded and in its own layout.

    Raises:
        DeviceError: as ``open_session``, or there is no room for the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, threads, provider, optimised=path)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DeviceError(f"cannot read the optimised graph back: {error.strerror}; set TMPDIR") from error


def input_array(shape: Sequence[int], dtype: str, high: int | None, seed: int = 0) -> NDArray[np.generic]:
    """An input of ``shape``, batch included: integers in [0, high) if ``high`` is given, else standard normal."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) if high is None else rng.integers(0, high, shape)
    return np.ascontiguousarray(values.astype(dtype))


class _BoundCall:
    """Runs a session on bound memory; ``kept`` is that memory, which the binding reads without keeping it alive."""

    def __init__(self, session: ort.InferenceSession, binding: ort.IOBinding, kept: object) -> None:
        self._run, self._binding, self._kept = session.run_with_iobinding, binding, kept

    def __call__(self) -> None:
        self._run(self._binding)


def _run_bounded(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Run for the first time; a loop in the model that does not end is broken off."""
    options = ort.RunOptions()
    watch = threading.Timer(MOST_CALL_S, lambda: setattr(options, "terminate", True))
    watch.daemon = True
    watch.start()
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:
        if options.terminate:
            raise DeviceError(f"the model takes more than {MOST_CALL_S:.0f} s a call") from error
        raise
    finally:
        watch.cancel()


def bound_call(session: ort.InferenceSession, inputs: NDArray[np.generic] | Sequence[NDArray[np.generic]]) -> Call:
    """A call without arguments that runs ``session`` once on ``inputs``, nothing allocated or copied on the way.

    Args:
        session: of a model.
        inputs: its inputs in order, or the only one.

    Raises:
        DeviceError: the model does not take such inputs.
    """
    arrays = [np.ascontiguousarray(array) for array in ([inputs] if isinstance(inputs, np.ndarray) else inputs)]
    ports, outputs = session.get_inputs(), session.get_outputs()
    if len(ports) != len(arrays):
        raise DeviceError(f"the model has {len(ports)} inputs, {len(arrays)} were given")
    binding = session.io_binding()
    try:
        for port, array in zip(ports, arrays):
            binding.bind_cpu_input(port.name, array)
        for output in outputs:
            binding.bind_output(output.name, "cpu")
        _run_bounded(session, binding)
    except DeviceError:
        raise
    except Exception as error:  # as in open_session
        given = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise DeviceError(f"the model cannot be run on {given}: {error}".splitlines()[0]) from error
    # of this batch's shape, so that each run writes into the same memory; our own, because the binding's die with it
    values = [ort.OrtValue.ortvalue_from_numpy(value) for value in binding.copy_outputs_to_cpu()]
    binding.clear_binding_outputs()
    for output, value in zip(outputs, values):
        binding.bind_ortvalue_output(output.name, value)
    return _BoundCall(session, binding, (arrays, values))
