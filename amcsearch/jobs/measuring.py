"""Where the latencies of a run are measured: on this machine, by the agent of a device, or later by a kit.

A kit measures the finalists before fine-tuning. The delivered network has the shapes of its finalist, and so its
kernels and its latency: one measurement serves both.
"""

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import Tensor

from amcsearch.config import Config
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.costs import LatencyModel, Provenance
from amcsearch.graph import Batch
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.measure import (
    AgentClient,
    KitPlan,
    PairedSetting,
    device_plan,
    kit_plan,
    paired_latencies,
    paired_plan,
    read_results,
    write_kit,
)
from amcsearch.runs import DEVICE_SERVER, HERE, OFFLINE, MeasuringDevice, RunFolder
from amcsearch.runtime import (
    CPU,
    Connection,
    DeviceError,
    PairedLatency,
    arrays_of,
    full_provider_name,
    measure_many,
    read_token,
)

__all__ = [
    "DELIVERED",
    "FLOAT32",
    "PairedRun",
    "agent_of",
    "agents_by",
    "awaited_device",
    "device_provenance",
    "is_awaited",
    "measure_paired",
    "measuring_device",
    "renew_kit",
    "verify_plan",
]

TOKEN_FILE: Final = "AMCSEARCH_DEVICE_TOKEN_FILE"
"""Environment variable of the file of the token of ``amcsearch device serve``."""
DELIVERED: Final = "finetuned"
"""The network that ``sparsify`` delivers, in a plan."""
FLOAT32: Final = "dense-float32"
"""The dense network in float32 in a plan whose device computes in another data type."""


_AGENTS: ContextVar[Callable[[str], AgentClient] | None] = ContextVar("agents", default=None)


@contextmanager
def agents_by(connect: Callable[[str], AgentClient]) -> Iterator[None]:
    """Reach agents, by name, through ``connect`` for a while, where the environment names no server."""
    token = _AGENTS.set(connect)
    try:
        yield
    finally:
        _AGENTS.reset(token)


@dataclass(frozen=True)
class PairedRun:
    """Latencies of networks beside the dense one, and the device that measured them."""

    latencies: tuple[PairedLatency, ...]
    device: MeasuringDevice


def is_awaited(config: Config) -> bool:
    """Whether a device that is not here measures later."""
    return config.device.location == OFFLINE


def agent_of(config: Config) -> AgentClient | None:
    """Return the agent that ``device.location`` names, by the environment or ``agents_by``; None for here.

    Raises:
        BadInputError: the device is offline, or the environment names no server, or a token that cannot be read.
    """
    location = config.device.location
    if location == HERE:
        return None
    if location == OFFLINE:
        raise BadInputError(
            "device.location = 'offline': this machine measures nothing for it; write a kit that measures there: "
            "amcsearch table kit CONFIG -o kit.pyz"
        )
    url, token_file, connect = os.environ.get(DEVICE_SERVER), os.environ.get(TOKEN_FILE), _AGENTS.get()
    if connect is not None and not url:
        return connect(location)
    if not url:
        raise BadInputError(
            f"device.location = {location!r}: {DEVICE_SERVER} is not set; start `amcsearch device serve` and set it "
            "to its address, or use here or offline"
        )
    try:
        return AgentClient(Connection(url, read_token(token_file) if token_file else None), location)
    except DeviceError as error:
        raise BadInputError(f"device.location = {location!r}: {error}") from error


def device_provenance(config: Config) -> Provenance:
    """Return what is known of the device that measures, before it does.

    Raises:
        BadInputError: as ``agent_of``, or the agent has never connected.
    """
    device, agent = config.device, agent_of(config)
    if agent is None:
        return runtime_of(config).provenance(device.batch, device.dtype)
    provider = full_provider_name(device.provider)
    provenance = agent.provenance()
    if provider != (provenance.provider or CPU):  # what the agent says of itself is of its own default
        provenance = replace(provenance, provider=provider, provider_version=None, nchwc_block=0)
    return replace(provenance, threads=device.threads, batch=device.batch, dtype=device.dtype)


def awaited_device(config: Config, table: LatencyModel | None) -> MeasuringDevice:
    """Describe the device that will measure: the one of the latency table, where there is one."""
    device, cpu = config.device, None if table is None else table.provenance.cpu
    name = "the device" if is_awaited(config) else device.location
    return MeasuringDevice(cpu or name, device.location, device.threads, device.batch)


def measuring_device(location: str, where: Provenance) -> MeasuringDevice:
    """Describe the device that has measured by what it says of itself."""
    runtime = f"{where.runtime_label}, {where.provider}"
    name, measured = where.cpu or "a CPU without a name", where.timestamp or "at an unknown time"
    return MeasuringDevice(name, location, where.threads or 1, where.batch or 1, runtime, measured)


def measure_paired(
    config: Config, dense: bytes, others: Sequence[Path | bytes], example: Batch | Tensor, *, decides: bool = True
) -> PairedRun:
    """Measure files of the runtime beside the dense one's in the same rounds, where ``device.location`` says.

    Where the latency ``decides`` nothing, a busy host is not waited for, unless ``device.patience_s`` says so.

    Raises:
        BadInputError: a model that cannot be run, or as the device's server.
    """
    device, agent = config.device, agent_of(config)
    if agent is not None:
        return _by_agent(config, agent, dense, others, example)
    latencies = measure_many(
        dense,
        others,
        arrays_of(example),
        runtime=runtime_of(config),
        rounds=device.rounds,
        seed=config.seed,
        patience_s=device.patience_s if decides or device.patience_s is not None else 0.0,
    )
    return PairedRun(tuple(latencies), measuring_device(HERE, device_provenance(config)))


def _by_agent(
    config: Config, agent: AgentClient, dense: bytes, others: Sequence[Path | bytes], example: Batch | Tensor
) -> PairedRun:
    """Measure on the device of an agent."""
    models = [other if isinstance(other, bytes) else other.read_bytes() for other in others]
    plan = verify_plan(config, dense, {str(i): model for i, model in enumerate(models)}, example, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.jsonl"
        agent.measure(plan, path)
        (result,) = read_results([path])
    place = f"the result of device {agent.device}"
    latencies = paired_latencies(result, list(map(str, range(len(models)))), place)
    return PairedRun(tuple(latencies), measuring_device(agent.device, result.provenance))


def renew_kit(run: RunFolder, plan: KitPlan | None) -> tuple[str, ...]:
    """Write the kit of an absent device, None for none, in place of an earlier delivery's.

    What the device measured with the earlier kit is kept where the new one measures the same networks, and goes where
    it does not.

    Returns:
        What to do about an earlier measurement, if there was one.

    Raises:
        BadInputError: as ``write_kit``.
    """
    was_measured = run.measured_jsonl.is_file()
    if was_measured and plan is not None and _measures(run.verify_pyz, plan):
        take_up = shlex.join(["amcsearch", "verify", str(run.path), str(run.measured_jsonl)])
        return (f"the device has measured these networks before: take that up again with `{take_up}`",)
    for path in (run.verify_pyz, run.measured_jsonl):
        path.unlink(missing_ok=True)
    if plan is not None:
        write_kit(plan, run.verify_pyz)
    return ("what the device had measured was of other networks and is gone; measure with the new kit",) * was_measured


def _measures(kit: Path, plan: KitPlan) -> bool:
    return kit.is_file() and kit_plan(kit).hash == device_plan(plan).hash


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
    provider = full_provider_name(device.provider)
    setting = PairedSetting(device.batch, device.dtype, device.rounds, config.seed, device.threads, provider)
    return paired_plan(dense, others, arrays_of(example), setting, policies)
