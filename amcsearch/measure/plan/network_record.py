"""A network's shapes as plain JSON values: what travels with a kit, so that its result can be read anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amcsearch.core import (
    BadInputError,
    ChannelGroup,
    Coupling,
    LayerKind,
    LayerSpec,
    MapOp,
    MapStep,
    NetworkSpec,
    Side,
)

__all__ = ["DescribedNetwork", "described_networks", "network_from_record", "network_record"]

_PAIRS = ("kernel", "stride", "padding", "dilation", "in_size", "out_size")
_PLAIN = ("name", "in_channels", "out_channels", "conv_groups", "has_weight", "has_bias")


def network_record(network: NetworkSpec) -> dict[str, Any]:
    """Return layers and groups as lists of mappings."""
    layers = [
        {"kind": layer.kind.value}
        | {key: getattr(layer, key) for key in _PLAIN}
        | {key: list(getattr(layer, key)) for key in _PAIRS}
        | {"steps": [[step.op.value, list(step.reads), step.writes] for step in layer.steps]}
        for layer in network.layers
    ]
    groups = [
        {
            "name": group.name,
            "channels": group.channels,
            "unit": group.unit,
            "couplings": [[end.layer, end.side.value, end.factor] for end in group.couplings],
        }
        for group in network.groups
    ]
    return {"layers": layers, "groups": groups}


def _layer(record: Mapping[str, Any]) -> LayerSpec:
    pairs = {key: (int(record[key][0]), int(record[key][1])) for key in _PAIRS}
    values: dict[str, Any] = {key: record[key] for key in _PLAIN} | pairs
    # a kit of an earlier release knows of no steps
    steps = tuple(MapStep(MapOp(op), tuple(reads), writes) for op, reads, writes in record.get("steps", ()))
    return LayerSpec(kind=LayerKind(record["kind"]), steps=steps, **values)


def network_from_record(record: Mapping[str, Any]) -> NetworkSpec:
    """Inverse of ``network_record``.

    Raises:
        BadInputError: a key is missing or a value is not what a network can have.
    """
    try:
        layers = tuple(map(_layer, record["layers"]))
        groups = tuple(
            ChannelGroup(
                group["name"],
                group["channels"],
                tuple(Coupling(layer, Side(side), factor) for layer, side, factor in group["couplings"]),
                group["unit"],
            )
            for group in record["groups"]
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInputError(f"the network's shapes cannot be read ({error!r}); build the kit again") from error
    return NetworkSpec(layers, groups)


@dataclass(frozen=True)
class DescribedNetwork:
    """What a plan says of a network: its dense shapes, and which layer each node and tensor of its graph belongs to."""

    network: NetworkSpec
    owners: Mapping[str, str]


def described_networks(info: Mapping[str, Any]) -> dict[str, DescribedNetwork]:
    """The networks of a plan's ``info``, by name.

    Raises:
        BadInputError: the plan was not made by ``measurement_plan``, or shapes cannot be read.
    """
    networks = info.get("networks")
    if not isinstance(networks, Mapping) or not networks:
        raise BadInputError("the result's plan names no networks; build the kit with `amcsearch table kit`")
    return {
        str(name): DescribedNetwork(network_from_record(described["network"]), described["owners"])
        for name, described in networks.items()
    }
