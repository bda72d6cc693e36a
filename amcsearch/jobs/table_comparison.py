"""Latency tables side by side: what devices, runtimes and settings make of the same policies of one network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from amcsearch.config import Config
from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy
from amcsearch.costs import LatencyTable, Macs
from amcsearch.jobs.workload import load_network
from amcsearch.runs import ComparedTable, TableComparison

__all__ = ["compare_tables"]

SHARES: Final = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # of every group's channels


def compare_tables(tables: Mapping[str, LatencyTable], config: Config, policy: Path | None = None) -> TableComparison:
    """Predict the same policies of a configuration's network by several tables.

    The policies keep the same share of every group, on a channel grid that suits all the devices.

    Args:
        tables: by name.
        config: names the network.
        policy: a policy of the user's own, compared beside them.

    Raises:
        BadInputError: a table that cannot predict the network, or a policy that does not fit it.
    """
    network = load_network(config).trace.network
    multiples = [table.settings_for(network).channel_multiple or 1 for table in tables.values()]
    ordered = {"dense": network.dense}
    for share in SHARES:
        uniform = _uniform(network, share, max(multiples))
        if uniform not in ordered.values():
            ordered[f"{share:.0%} of channels"] = uniform
    if policy is not None:
        ordered[policy.name] = network.policy(network.kept_array(PruningPolicy.read(policy)))
    macs = [sum(map(Macs().layer_cost, network.with_channels(kept).layers)) for kept in ordered.values()]
    return TableComparison(
        network=config.name,
        policies=tuple(ordered),
        macs=tuple(each / macs[0] for each in macs),
        tables=tuple(_compared(name, table, network, list(ordered.values())) for name, table in tables.items()),
    )


def _uniform(network: NetworkSpec, share: float, multiple: int) -> PruningPolicy:
    def nearest(choices: list[int], wanted: float) -> int:
        return min(choices, key=lambda count: (abs(count - wanted), -count))

    return PruningPolicy(
        {group.name: nearest(list(group.choices(multiple)), share * group.channels) for group in network.groups}
    )


def _compared(name: str, table: LatencyTable, network: NetworkSpec, policies: list[PruningPolicy]) -> ComparedTable:
    model, where = table.bind(network), table.provenance
    variants = [network.with_channels(policy).layers for policy in policies]
    try:
        ms = model.predict_all(variants)
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}") from error
    grid = () if model.entry.channel_grid is None else model.entry.channel_grid.tried
    setting = f"{where.cpu}, {where.runtime_label}, {where.provider}"
    return ComparedTable(
        name=name,
        setting=f"{setting}, threads {where.threads}, batch {where.batch}, {where.dtype}",
        ms=tuple(ms.tolist()),
        sigma_ms=tuple(model.uncertainty(variant) for variant in variants),
        channel_multiple=model.channel_multiple,
        grid={str(step.multiple): (step.macs_saved, step.time_saved) for step in grid},
        mape=None if model.accuracy is None else model.accuracy.mape,
    )
