"""Several target devices of one job, each a device profile, a latency table, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from amcsearch.config import AUTO, Config, asks_latency, check_list, check_once, find_target, read_latency_table
from amcsearch.core import BadInputError
from amcsearch.costs import DeviceProfile, LatencyTable
from amcsearch.jobs.device import Device, load_device
from amcsearch.jobs.machine_table import MachineTable
from amcsearch.jobs.table_check import is_of_machine
from amcsearch.jobs.workload import InMemory, Workload

__all__ = ["AskedDevice", "Target", "device_of", "targets_of"]

CONFIGURED_NAME: Final = "configured"

AskedDevice = str | Path | DeviceProfile | LatencyTable
"""A device profile or a latency table, or the file, folder or name of one."""


@dataclass(frozen=True)
class Target:
    """A device as it was asked for: its name, and what its costs are predicted from; shapes alone without both."""

    name: str
    profile: str | DeviceProfile | None = None
    table: str | LatencyTable | None = None


def targets_of(config: Config, devices: Sequence[AskedDevice]) -> list[Target]:
    """Return what is known of the devices that were asked for: the configured one where none was.

    Raises:
        BadInputError: an unknown device, or one twice.
    """
    check_list("devices", devices, "['edge_cpu']")
    if not devices:
        is_unpriced = config.device.table == AUTO and not asks_latency(config)
        return [Target(CONFIGURED_NAME, config.device.profile, None if is_unpriced else config.device.table)]
    targets = [_target(config, device) for device in devices]
    check_once("devices", [target.name for target in targets])
    return targets


def _target(config: Config, device: AskedDevice) -> Target:
    """A device by its name; one that the configuration names has the configured profile and table, both.

    ``auto`` is this machine.
    """
    if device == AUTO:
        return Target(AUTO, config.device.profile, AUTO)
    if isinstance(device, DeviceProfile):
        return Target(device.name, profile=device)
    if isinstance(device, LatencyTable):
        return Target(device.provenance.cpu or "table", table=device)
    if not isinstance(device, str | Path):
        raise BadInputError(
            f"devices: {device!r:.60} is no device; give a name, a file, a folder, a DeviceProfile or a LatencyTable"
        )
    profile, table = find_target(device)
    if table is None and profile == config.device.profile:
        table = config.device.table
    if profile is None and table == config.device.table:
        profile = config.device.profile
    return Target(Path(device).name.removesuffix(".yaml"), profile, table)


def _on(config: Config, target: Target) -> Config:
    """The configuration with another device; what is in memory is no part of it."""
    files = {"profile": target.profile, "table": target.table}
    update = {key: value if isinstance(value, str) else None for key, value in files.items()}
    device, search = config.device.model_copy(update=update), config.search.model_copy(update={"objectives": None})
    return config.model_copy(update={"device": device, "search": search})


def _table(target: Target) -> LatencyTable | None:
    return read_latency_table(target.table) if isinstance(target.table, str) else target.table


def device_of(
    config: Config,
    workload: Workload,
    target: Target,
    given: InMemory,
    machine: Callable[[], MachineTable] | None = None,
) -> Device:
    """Price the network on a device, without limits; ``machine`` gives this machine's table where a target is this one.

    Raises:
        BadInputError: a profile or table that cannot be used, or a table that lacks the network; names the device.
    """
    profile = target.profile if isinstance(target.profile, DeviceProfile) else None
    try:
        measured = None if target.table != AUTO or machine is None else machine()
        table = _table(target) if measured is None else measured.table
        there = replace(given, table=table, profile=profile)
        device = load_device(_on(config, target), workload, (), there, is_here=False, machine=measured)
    except BadInputError as error:
        raise BadInputError(f"device {target.name}: {error}") from error
    if table is not None and device.table is not None and device.table.network is None:
        raise BadInputError(
            f"device {target.name}: its latency table, of {table.provenance.cpu}, holds no measurement of this "
            f"network, only of {', '.join(table.networks)}, so its error would not be known; "
            f"{_cure(config, target, table)}, or leave the device out"
        )
    return device


def _cure(config: Config, target: Target, table: LatencyTable) -> str:
    """How the table of a device comes to hold a network: measured here, or on the device by a kit."""
    if isinstance(target.table, str) and is_of_machine(table, config):
        return f"add it on this machine: amcsearch table check {target.table} CONFIG --anchors 10 --write"
    return (
        f"name {AUTO} in place of it for this machine, which is measured then; for another device measure this network "
        "there: amcsearch table kit CONFIG -o kit.pyz, on the device python3 kit.pyz -o result.jsonl, here amcsearch "
        "table build result.jsonl -o latency_tables/NAME, and name that"
    )
