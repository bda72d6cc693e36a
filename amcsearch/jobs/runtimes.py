"""The runtime that a configuration names, and what it refuses to be used for."""

import re
from typing import Final

from amcsearch.config import Config, label, make
from amcsearch.core import BadInputError
from amcsearch.costs import LatencyTable
from amcsearch.runs import HERE, table_commands
from amcsearch.runtime import CPU, ONNXRUNTIME, RUNTIMES, OnnxRuntime, Runtime, full_provider_name, is_profiled

__all__ = ["check_kit", "check_provider", "has_profiles", "other_runtime", "runtime_of"]

_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,16}")
_TAKEN: Final = (".safetensors", ".pt2")  # of other files of the delivered network


def runtime_of(config: Config) -> Runtime:
    """Make the runtime that ``device.runtime`` names, with the threads and the provider of the section ``device``.

    Where ``device.location`` is another device, that one has the provider, and the CPU checks files here.

    Raises:
        BadInputError: an unknown name, or a class that is no runtime; a package that is not installed; threads, a
            provider or a data type that the runtime does not have.
    """
    device = config.device
    params = {"threads": device.threads, "provider": device.provider if device.location == HERE else CPU}
    runtime = make(RUNTIMES, device.runtime, params, ("device.runtime", "device"), Runtime)
    if runtime.is_onnx_runtime != isinstance(runtime, OnnxRuntime):
        raise BadInputError(
            f"device.runtime = {label(device.runtime)!r}: name = {runtime.name!r}, and {ONNXRUNTIME!r} is the name of "
            "amcsearch.runtime.OnnxRuntime and of what inherits it; rename it"
        )
    if device.dtype not in runtime.dtypes:
        raise BadInputError(
            f"device.dtype is {device.dtype}, runtime {runtime.name} computes in {', '.join(runtime.dtypes)}; set "
            f"device.dtype={runtime.dtypes[0]}, or device.runtime={ONNXRUNTIME}"
        )
    if not _SUFFIX.fullmatch(runtime.suffix) or runtime.suffix in _TAKEN:
        raise BadInputError(
            f"device.runtime = {device.runtime!r}: suffix = {runtime.suffix!r}, expected a dot with 1 to 16 letters "
            f"and digits, and none of {', '.join(_TAKEN)}"
        )
    return runtime


def other_runtime(config: Config) -> Runtime | None:
    """Return the runtime where it is another than ONNX Runtime, which measures by itself; None for that one.

    Raises:
        BadInputError: as ``runtime_of``.
    """
    runtime = runtime_of(config)
    return None if runtime.is_onnx_runtime else runtime


def has_profiles(config: Config) -> bool:
    """Whether what measures says which kernels it runs; else a table is made of whole runs alone."""
    return runtime_of(config).is_onnx_runtime and is_profiled(full_provider_name(config.device.provider))


def check_kit(config: Config) -> None:
    """Refuse to write a kit for another runtime than that of a kit.

    Raises:
        BadInputError: names it, and the cure.
    """
    if not runtime_of(config).is_onnx_runtime:
        raise BadInputError(
            f"device.runtime = {label(config.device.runtime)!r}: a kit measures with ONNX Runtime alone; measure on "
            "this machine, amcsearch table measure CONFIG -o latency_tables/NAME, or set "
            f"device.runtime={ONNXRUNTIME}"
        )


def check_provider(table: LatencyTable, config: Config, name: str) -> None:
    """Refuse a table of another runtime or execution provider, which runs other kernels.

    One that names no runtime is ONNX Runtime's, and one that names no provider the CPU's.

    Raises:
        BadInputError: names both, and the cure.
    """
    there, here = table.provenance.runtime_name, runtime_of(config).name
    if there != here:
        raise BadInputError(
            f"device.runtime is {here}, {name} was measured with {there}: another runtime has other latencies; set "
            f"device.runtime={there}, or device.table=null and limit another cost"
        )
    other = other_runtime(config)
    here = full_provider_name(config.device.provider) if other is None else other.provider
    there = table.provenance.provider or CPU
    if there != here:
        raise BadInputError(
            f"device.provider is {config.device.provider}, {name} was measured with {there}: another provider has "
            f"another table; set device.provider={there.removesuffix('ExecutionProvider')}, or measure one: "
            f"{table_commands(config.device.location)}"
        )
