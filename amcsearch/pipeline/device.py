"""From a configuration to the target: what a policy costs there, and which policies its budget allows."""

from dataclasses import dataclass

from amcsearch.config import Config, check_priced, read_device, read_latency_table
from amcsearch.core import BadInputError, Cost, PolicySpace
from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.device import DeviceProfile
from amcsearch.costs.energy import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.pipeline.network import Network
from amcsearch.runtime.session import provenance
from amcsearch.search.budget import FeasibleSet, resolve_budget
from amcsearch.search.widths import without_dominated

__all__ = ["Device", "load_device"]

POOR_MAPE, POOR_WITHIN_10 = 0.05, 0.9


@dataclass(frozen=True)
class Device:
    """The target: what a policy costs there, and which policies its budget allows."""

    profile: DeviceProfile | None
    table: LatencyTable | None
    channel_multiple: int
    space: PolicySpace
    grid: CostGrid
    feasible: FeasibleSet
    dense: Cost
    warnings: tuple[str, ...]


def load_device(config: Config, network: Network, *, strict: bool = False) -> Device:
    """Price the network on the target and find the policies within the budget.

    ``strict`` turns a latency table made elsewhere from a warning into an error.

    Raises:
        BadInputError: a missing or unfit profile or table, or a budget out of range.
        InfeasibleBudgetError: no policy meets the budget; gives the smallest feasible value.
    """
    check_priced(config)
    profile = read_device(config.device.profile) if config.device.profile else None
    spec = network.trace.network
    table = read_latency_table(config.device.table).for_network(spec) if config.device.table else None
    models: list[CostModel] = [Macs(), Params()]
    if table is not None:
        models.append(table)
    if profile is not None:
        models.append(EnergyModel(profile, config.device.batch, table))
    grid = CostGrid(spec, models)
    dense = grid.cost(spec.dense)
    multiple = _channel_multiple(config, table, profile)
    space = PolicySpace.on_grid(spec.groups, multiple, config.search.max_pruning_ratio)
    if config.device.channel_multiple == "auto":
        space = without_dominated(space, grid)
    feasible = FeasibleSet(
        space, grid, resolve_budget({str(name): limit for name, limit in config.budget.items()}, dense)
    )
    warnings = _table_warnings(config, table)
    if strict and warnings:
        raise BadInputError(f"--strict: {warnings[0]}")
    return Device(profile, table, multiple, space, grid, feasible, dense, tuple(warnings))


def _channel_multiple(config: Config, table: LatencyTable | None, profile: DeviceProfile | None) -> int:
    if config.device.channel_multiple != "auto":
        return int(config.device.channel_multiple)
    for source in (table, profile):
        if source is not None and source.channel_multiple:
            return source.channel_multiple
    return 1


def _table_warnings(config: Config, table: LatencyTable | None) -> list[str]:
    if table is None:
        return []
    cure = "measure your own: amcsearch table measure CONFIG -o latency_tables/NAME"
    found = table.mismatches(provenance(config.device.threads, config.device.batch))
    warnings = [f"latency table {config.device.table}: {difference}; {cure}" for difference in found]
    doubt = _doubt(table)
    return warnings + ([f"latency table {config.device.table}: {doubt}"] if doubt else [])


def _doubt(table: LatencyTable) -> str:
    """Why predictions for the bound network should not be trusted, "" where they may be."""
    check = "hold it to measurements: amcsearch table check TABLE CONFIG --write"
    if table.network is None:
        return "it never saw this network, whose latency is borrowed from others; extend it: amcsearch table measure"
    errors = table.accuracy
    if errors is None:
        return f"its predictions were never checked on this network; {check}"
    if errors["mape"] > POOR_MAPE or errors["within_10"] < POOR_WITHIN_10:
        return (
            f"its predictions of this network err by {errors['mape']:.1%} on average, {errors['within_10']:.0%} are "
            f"within 10 % (measuring twice differs by {errors['noise_mape']:.1%}); measure it again"
        )
    return ""
