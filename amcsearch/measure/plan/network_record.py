"""A network's shapes as plain JSON values: what travels with a kit, so that its result can be read anywhere."""

from collections.abc import Mapping
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

__all__ = ["network_from_record", "network_record"]

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
            "couplings": [[one.layer, one.side.value, one.factor] for one in group.couplings],
        }
        for group in network.groups
    ]
    return {"layers": layers, "groups": groups}


def _layer(one: Mapping[str, Any]) -> LayerSpec:
    pairs = {key: (int(one[key][0]), int(one[key][1])) for key in _PAIRS}
    values: dict[str, Any] = {key: one[key] for key in _PLAIN} | pairs
    # a kit of an earlier release knows of no steps
    steps = tuple(MapStep(MapOp(op), tuple(reads), writes) for op, reads, writes in one.get("steps", ()))
    return LayerSpec(kind=LayerKind(one["kind"]), steps=steps, **values)


def network_from_record(record: Mapping[str, Any]) -> NetworkSpec:
    """Inverse of ``network_record``.

    Raises:
        BadInputError: a key is missing or a value is not what a network can have.
    """
    try:
        layers = tuple(_layer(one) for one in record["layers"])
        groups = tuple(
            ChannelGroup(
                one["name"],
                one["channels"],
                tuple(Coupling(layer, Side(side), factor) for layer, side, factor in one["couplings"]),
                one["unit"],
            )
            for one in record["groups"]
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInputError(f"the network's shapes cannot be read ({error!r}); build the kit again") from error
    return NetworkSpec(layers, groups)
