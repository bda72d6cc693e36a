"""ONNX Runtime: export, sessions, interleaved timing, energy counters, quantisation, the program on devices."""

from amcsearch.runtime.comparison import OUTPUTS, Agreement, Compared, InBatches, compare
from amcsearch.runtime.energy_counters import calibrated_scale, find_counter, measure_energy
from amcsearch.runtime.export import OPSET, WRAPPER, OnnxSettings, exported
from amcsearch.runtime.on_device.agent import SAYS
from amcsearch.runtime.on_device.connection import Connection, RefusedError, UnreachableError, read_token
from amcsearch.runtime.on_device.drift import DISTURBED, QUIET_QUANTILE, Drift
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import KIT_VERSION, PLAN_FILE, DevicePlan, InputSpec, canonical, read_plan
from amcsearch.runtime.on_device.program import ExecutedNode, run
from amcsearch.runtime.on_device.provenance import COMPARED
from amcsearch.runtime.on_device.providers import CPU, full_provider_name, is_profiled
from amcsearch.runtime.on_device.records import SUM, Journal, parsed_lines
from amcsearch.runtime.on_device.session import bound_call
from amcsearch.runtime.on_device.untrusted import MOST_ARCHIVE_BYTES, checked_plan
from amcsearch.runtime.on_device.weights import DATA_TYPES, WeightSpec
from amcsearch.runtime.paired_latency import PairedLatency, measure_many, measuring_seconds, paired_samples
from amcsearch.runtime.quantisation.quantisation import converted
from amcsearch.runtime.session import OnnxModule, differences, make_session, provenance
from amcsearch.runtime.signature import Signature, arrays_of, outputs_of, sample_axis, signature_of
from amcsearch.runtime.torch_programs import program_module, torch_program

__all__ = [
    "COMPARED",
    "CPU",
    "DATA_TYPES",
    "DISTURBED",
    "KIT_VERSION",
    "MOST_ARCHIVE_BYTES",
    "OPSET",
    "OUTPUTS",
    "PLAN_FILE",
    "QUIET_QUANTILE",
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
    "InBatches",
    "InputSpec",
    "Journal",
    "OnnxModule",
    "OnnxSettings",
    "PairedLatency",
    "RefusedError",
    "Settings",
    "Signature",
    "UnreachableError",
    "WeightSpec",
    "arrays_of",
    "bound_call",
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
    "make_session",
    "measure_energy",
    "measure_many",
    "measuring_seconds",
    "outputs_of",
    "paired_samples",
    "parsed_lines",
    "program_module",
    "provenance",
    "read_plan",
    "read_token",
    "run",
    "sample_axis",
    "signature_of",
    "torch_program",
]
