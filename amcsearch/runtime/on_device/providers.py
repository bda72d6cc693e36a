"""Execution providers of ONNX Runtime: their names, their plugins, and how each is told what to compute in.

A provider is part of onnxruntime (CPU; CUDA and TensorRT in ``onnxruntime-gpu``) or a plugin of its own package, which
is registered the first time that it is asked for. The CPU provider runs kernels one by one: its optimised graph can be
written and its profile read. Any other one is a black box here: it fuses the graph, or runs it on another processor
while the profiler watches the host.
"""

from __future__ import annotations

import importlib
import json
from typing import Any, Mapping, NamedTuple, Sequence

import onnxruntime as ort

from amcsearch.runtime.on_device.errors import DeviceError

__all__ = [
    "CPU",
    "Elsewhere",
    "add_provider",
    "elsewhere",
    "full_provider_name",
    "is_profiled",
    "provider_name",
    "provider_version",
]

CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
SUFFIX = "ExecutionProvider"
PLUGINS = {OPENVINO: "onnxruntime_ep_openvino"}
"""Modules of the plugins that are known: ``get_library_path`` gives the library to register."""
PACKAGES = {
    OPENVINO: "onnxruntime-ep-openvino",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
}
"""Packages that bring a provider, for the cure in an error."""
NO_DEVICE = "finds no device here that it supports"
ASSIGNMENT = "session.record_ep_graph_assignment_info"
NAMED = 4  # operators in a note


class Elsewhere(NamedTuple):
    """Nodes of a model that a provider left to others: how many, of how many, and their operators."""

    nodes: int
    of: int
    operators: tuple[str, ...]

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.nodes / self.of if self.of else 0.0

    def note(self, provider: str, subject: str) -> str:
        """Say in a sentence what does not run on the provider."""
        names = ", ".join(self.operators[:NAMED]) + (", …" if len(self.operators) > NAMED else "")
        return (
            f"{subject}: {self.nodes} of {self.of} nodes ({self.share:.0%}: {names}) run on the CPU provider, "
            f"not on {provider}; latencies count both"
        )


_registered: set[str] = set()


def _register(name: str) -> bool:
    """Register the plugin of a provider, once; return whether the provider has one that is installed.

    A plugin lists the devices that it supports, and onnxruntime has its provider where there is one.
    """
    if name not in PLUGINS or name in ort.get_available_providers():
        return False
    try:
        plugin = importlib.import_module(PLUGINS[name])
    except ImportError:
        return False
    try:
        if name not in _registered:
            ort.register_execution_provider_library(name, plugin.get_library_path())
            _registered.add(name)
        return True
    except Exception as error:  # onnxruntime raises a family of pybind classes without a common public base
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{name} cannot be loaded by onnxruntime {ort.__version__}: {reason}") from error


def full_provider_name(name: str) -> str:
    """Of a provider that is known, here or not, in the spelling of ONNX Runtime; what was asked where none is."""
    known = [*PACKAGES, *ort.get_all_providers()]
    return next((n for n in known if name.lower() in (n.lower(), n[: -len(SUFFIX)].lower())), name)


def provider_name(given: str) -> str:
    """Full name of an execution provider of this runtime, from its name with or without its ending, in any case.

    Raises:
        DeviceError: this runtime has no such provider; the message lists those it has, and what to install, or that
            what is installed finds no device.
    """
    name = full_provider_name(given)
    is_registered = _register(name)
    available = ort.get_available_providers()
    if name in available:
        return name
    if is_registered:
        cure = f"; {PACKAGES[name]} is installed, but {NO_DEVICE}: use another provider, or a machine that it supports"
    else:
        cure = f"; install it: pip install {PACKAGES[name]}" if name in PACKAGES else ""
    raise DeviceError(f"provider {given!r} is not available; this onnxruntime has: {', '.join(available)}{cure}")


def is_profiled(provider: str) -> bool:
    """Whether the provider's optimised graph and profile say which kernels it runs, and for how long."""
    return provider == CPU


def _devices(provider: str) -> Sequence[Any]:
    """Devices of a plugin; none for a provider that onnxruntime brings itself."""
    return [d for d in ort.get_ep_devices() if d.ep_name == provider] if provider in PLUGINS else []


def provider_version(provider: str) -> str | None:
    """Version of a plugin, which is not that of ONNX Runtime; None for a provider that onnxruntime brings itself."""
    return next((str(device.ep_metadata.get("version")) for device in _devices(provider)), None)


def _openvino_options(threads: int) -> Mapping[str, str]:
    # By default OpenVINO computes in bfloat16 where the CPU can: another network than the one that was judged.
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
    return {"load_config": json.dumps({"CPU": properties})}


def add_provider(options: ort.SessionOptions, provider: str, threads: int) -> list[str]:
    """Prepare options for a provider.

    Args:
        options: of the session; changed.
        provider: full name.
        threads: threads inside an operator.

    Returns:
        The providers to name when the session is made: none for a plugin, which the options hold.

    Raises:
        DeviceError: a plugin without a device here.
    """
    if provider == CPU:
        return [CPU]
    options.add_session_config_entry(ASSIGNMENT, "1")
    if provider not in PLUGINS:
        return [provider]
    devices = _devices(provider)
    if not devices:
        raise DeviceError(f"{provider} lists no device here; check its driver and libraries")
    options.add_provider_for_devices(devices[:1], dict(_openvino_options(threads)))
    return []


def elsewhere(session: ort.InferenceSession, provider: str) -> Elsewhere | None:
    """Nodes of a session's model that run on another provider; None where this onnxruntime cannot say."""
    if provider == CPU:
        return Elsewhere(0, 0, ())
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # an onnxruntime that has no such method, or did not record it
        return None
    theirs, count = [], 0
    for part in parts:
        nodes = list(part.get_nodes())
        count += len(nodes)
        if part.ep_name != provider:
            theirs += [str(node.op_type) for node in nodes]
    return Elsewhere(len(theirs), count, tuple(sorted(set(theirs))))
