"""Where, with what and how latencies are being measured; whatever cannot be read is None.

Linux files, read as they are: /proc/cpuinfo, /sys/devices/system/cpu, /sys/class/thermal, control groups.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from amcsearch.runtime.on_device.providers import provider_version

__all__ = ["COMPARED", "ONNXRUNTIME", "load", "machine", "provenance", "temperatures_c"]

ONNXRUNTIME = "onnxruntime"
"""The runtime of kits, as ``device.runtime`` names it."""

COMPARED = {
    "cpu": "CPU",
    "cpu_flags": "CPU features",
    "runtime": "runtime",
    "runtime_version": "version of the runtime",
    "ort_version": "ONNX Runtime",
    "provider": "execution provider",
    "provider_version": "version of the execution provider",
    "optimisation": "optimisation level",
    "nchwc_block": "NCHWc block",
    "threads": "threads",
    "batch": "batch size",
    "dtype": "data type",
}
"""What must be equal for two measurements to be of one device and setting, and what messages call it."""
CPUS = Path("/sys/devices/system/cpu")
KHZ_PER_MHZ, MILLI = 1e3, 1e3


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path, scale: float) -> float | None:
    try:
        return float(_text(path) or "") / scale
    except ValueError:
        return None


def _cpu() -> dict[str, Any]:
    """CPU model, its feature flags (which decide the kernels) and a digest of them."""
    text = _text(Path("/proc/cpuinfo")) or ""
    model = re.search(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = sorted(match[1].split()) if match else []
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:12] if flags else ""
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return {"cpu": name, "cpu_flags": digest, "cpu_flag_list": flags or None}


def _caches() -> list[dict[str, Any]] | None:
    caches = []
    for folder in sorted((CPUS / "cpu0" / "cache").glob("index*")):
        names = ("level", "type", "size", "shared_cpu_list")
        caches.append({name: _text(folder / name) for name in names})
    return caches or None


def _cgroup_quota() -> float | None:
    """CPUs this process may use by its control group (version 2, else 1), None where unlimited or unreadable."""
    root = Path("/sys/fs/cgroup")
    parts = (_text(root / "cpu.max") or "").split()
    try:
        if len(parts) == 2:
            return None if parts[0] == "max" else int(parts[0]) / int(parts[1])
        quota = int(_text(root / "cpu" / "cpu.cfs_quota_us") or "")
        return quota / int(_text(root / "cpu" / "cpu.cfs_period_us") or "") if quota > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _frequency() -> dict[str, Any]:
    folder = CPUS / "cpu0" / "cpufreq"
    mhz = {
        name: _number(folder / f"{file}_freq", KHZ_PER_MHZ)
        for name, file in (("least", "scaling_min"), ("most", "scaling_max"), ("current", "scaling_cur"))
    }
    return {"governor": _text(folder / "scaling_governor"), "frequency_mhz": mhz}


def temperatures_c() -> list[float] | None:
    """Degrees of every thermal zone that can be read."""
    zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    temperatures = [degrees for zone in zones if (degrees := _number(zone, MILLI)) is not None]
    return temperatures or None


def load() -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def _affinity() -> list[int] | None:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return None


def machine() -> dict[str, Any]:
    """What is known of the machine and its state now, whatever the runtime: plain values, ready for JSON or YAML."""
    return {
        **_cpu(),
        "caches": _caches(),
        "cores": os.cpu_count() or 1,
        "affinity": _affinity(),
        "cgroup_quota": _cgroup_quota(),
        **_frequency(),
        "temperatures_c": temperatures_c(),
        "load": load(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def provenance(
    threads: int, batch: int, dtype: str, provider: str, nchwc_block: int, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides or disturbs a latency in ONNX Runtime: plain values, ready for JSON or YAML.

    Args:
        threads: threads inside an operator.
        batch: of the inputs.
        dtype: that the models compute in.
        provider: full name of the execution provider.
        nchwc_block: channels in a block of the runtime's layout, 0 without it.
        options: the provider's options.
    """
    return {
        **machine(),
        "runtime": ONNXRUNTIME,
        "runtime_version": None,  # ``ort_version`` says it
        "ort_version": ort.__version__,
        "provider": provider,
        "provider_version": provider_version(provider),
        "provider_options": options or {},
        "threads": threads,
        "batch": batch,
        "dtype": dtype,
        "optimisation": "all",
        "nchwc_block": nchwc_block,
    }
