"""Where the latencies of a run are measured: on this machine, by the agent of a device, or later by a kit.

A kit measures the finalists before fine-tuning. The delivered network has the shapes of its finalist, and so its
kernels and its latency: one measurement serves both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from amcsearch.config import Config
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.costs import LatencyModel, Provenance
from amcsearch.graph import Batch
from amcsearch.measure import KitPlan, PairedSetting, paired_plan
from amcsearch.runs import HERE, OFFLINE, MeasuringDevice
from amcsearch.runtime import PairedLatency, arrays_of, measure_many, provenance

__all__ = [
    "FLOAT32",
    "PairedRun",
    "awaited_device",
    "check_here",
    "is_awaited",
    "measure_paired",
    "measuring_device",
    "verify_plan",
]

FLOAT32: Final = "dense-float32"
"""The dense network in float32 in a plan whose device computes in another data type."""


@dataclass(frozen=True)
class PairedRun:
    """Latencies of networks beside the dense one, and the device that measured them."""

    latencies: tuple[PairedLatency, ...]
    device: MeasuringDevice


def is_awaited(config: Config) -> bool:
    """Whether a device that is not here measures later."""
    return config.device.location == OFFLINE


def check_here(config: Config) -> None:
    """Refuse to measure on this machine for a device that is not here.

    Raises:
        BadInputError: names the location and the cure.
    """
    location = config.device.location
    if location == OFFLINE:
        raise BadInputError(
            "device.location = 'offline': this machine measures nothing for it; write a kit that measures there: "
            "amcsearch table kit CONFIG -o kit.pyz"
        )
    if location != HERE:
        raise BadInputError(f"device.location = {location!r}: no device of that name is served; use here or offline")


def awaited_device(config: Config, table: LatencyModel | None) -> MeasuringDevice:
    """Describe the device that will measure: the one of the latency table, where there is one."""
    cpu = None if table is None else table.provenance.cpu
    return MeasuringDevice(cpu or "the device", config.device.location, config.device.threads, config.device.batch)


def measuring_device(location: str, where: Provenance) -> MeasuringDevice:
    """Describe the device that has measured by what it says of itself."""
    runtime = f"ONNX Runtime {where.ort_version}, {where.provider}"
    name, measured = where.cpu or "a CPU without a name", where.timestamp or "at an unknown time"
    return MeasuringDevice(name, location, where.threads or 1, where.batch or 1, runtime, measured)


def measure_paired(config: Config, dense: bytes, others: Sequence[Path | bytes], example: Batch | Tensor) -> PairedRun:
    """Measure ONNX models beside the dense one in the same interleaved rounds, where ``device.location`` says.

    Raises:
        BadInputError: a model that cannot be run, or as the device's server.
    """
    device = config.device
    check_here(config)
    latencies = measure_many(
        dense,
        others,
        arrays_of(example),
        threads=device.threads,
        rounds=device.rounds,
        seed=config.seed,
        patience_s=device.patience_s,
    )
    return PairedRun(tuple(latencies), measuring_device(HERE, provenance(device.threads, device.batch, device.dtype)))


def verify_plan(
    config: Config,
    dense: bytes,
    others: Mapping[str, bytes],
    example: Batch | Tensor,
    policies: Mapping[str, PruningPolicy],
) -> KitPlan:
    """Return the plan that measures models by name beside the dense one on a device that is not here.

    ``policies`` of the pruned ones come back in the result.
    """
    device = config.device
    setting = PairedSetting(device.batch, device.dtype, device.rounds, config.seed)
    return paired_plan(dense, others, arrays_of(example), setting, policies)
