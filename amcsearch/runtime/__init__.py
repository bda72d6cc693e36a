"""Runtimes behind one protocol: export, interleaved timing, energy counters, quantisation, the program on devices."""

from collections.abc import Mapping
from typing import Final

from amcsearch.runtime.base import ONNX_SUFFIX, Runtime, RuntimeEngine
from amcsearch.runtime.comparison import OUTPUTS, Agreement, Compared, InBatches, compare
from amcsearch.runtime.energy_counters import calibrated_scale, find_counter, measure_energy
from amcsearch.runtime.executorch_runtime import ExecuTorchRuntime
from amcsearch.runtime.export import OPSET, WRAPPER, OnnxSettings, exported
from amcsearch.runtime.loaded import FileModule, LoadedNetwork, Port
from amcsearch.runtime.on_device.agent import SAYS
from amcsearch.runtime.on_device.connection import Connection, RefusedError, UnreachableError, read_token
from amcsearch.runtime.on_device.drift import DISTURBED, QUIET_QUANTILE, Drift
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import (
    HELPERS,
    KIT_VERSION,
    PLAN_FILE,
    DevicePlan,
    InputSpec,
    canonical,
    read_plan,
)
from amcsearch.runtime.on_device.program import ExecutedNode, run
from amcsearch.runtime.on_device.provenance import COMPARED, ONNXRUNTIME
from amcsearch.runtime.on_device.providers import CPU, full_provider_name, is_profiled
from amcsearch.runtime.on_device.records import SUM, Journal, parsed_lines
from amcsearch.runtime.on_device.untrusted import MOST_ARCHIVE_BYTES, checked_plan
from amcsearch.runtime.on_device.weights import DATA_TYPES, WeightSpec
from amcsearch.runtime.onnx_runtime import OnnxRuntime
from amcsearch.runtime.paired_latency import (
    SAMPLE_MS,
    PairedLatency,
    measure_many,
    measuring_seconds,
    paired_samples,
    quiet_rounds,
)
from amcsearch.runtime.quantisation.quantisation import converted
from amcsearch.runtime.session import OnnxModule, differences, provenance
from amcsearch.runtime.signature import Signature, arrays_of, outputs_of, sample_axis, signature_of
from amcsearch.runtime.torch_programs import program_module, torch_program

RUNTIMES: Final[Mapping[str, type[Runtime]]] = {
    OnnxRuntime.name: OnnxRuntime,
    ExecuTorchRuntime.name: ExecuTorchRuntime,
}
"""Runtimes by the name in ``device.runtime``."""

__all__ = [
    "COMPARED",
    "CPU",
    "DATA_TYPES",
    "DISTURBED",
    "HELPERS",
    "KIT_VERSION",
    "MOST_ARCHIVE_BYTES",
    "ONNXRUNTIME",
    "ONNX_SUFFIX",
    "OPSET",
    "OUTPUTS",
    "PLAN_FILE",
    "QUIET_QUANTILE",
    "RUNTIMES",
    "SAMPLE_MS",
    "SAYS",
    "SUM",
    "WRAPPER",
    "Agreement",
    "Compared",
    "Connection",
    "DeviceError",
    "DevicePlan",
    "Drift",
    "ExecutedNode",
    "FileModule",
    "InBatches",
    "InputSpec",
    "Journal",
    "LoadedNetwork",
    "OnnxModule",
    "OnnxRuntime",
    "OnnxSettings",
    "PairedLatency",
    "Port",
    "RefusedError",
    "Runtime",
    "RuntimeEngine",
    "Settings",
    "Signature",
    "UnreachableError",
    "WeightSpec",
    "arrays_of",
    "calibrated_scale",
    "canonical",
    "checked_plan",
    "compare",
    "converted",
    "differences",
    "exported",
    "find_counter",
    "full_provider_name",
    "is_profiled",
    "measure_energy",
    "measure_many",
    "measuring_seconds",
    "outputs_of",
    "paired_samples",
    "parsed_lines",
    "program_module",
    "provenance",
    "quiet_rounds",
    "read_plan",
    "read_token",
    "run",
    "sample_axis",
    "signature_of",
    "torch_program",
]
