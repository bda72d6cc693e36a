"""A network's shapes as plain JSON values: what travels with a kit, so that its result can be read anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

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
    Stored,
)
from amcsearch.runs import read_as

__all__ = ["DescribedNetwork", "described_networks", "network_from_record", "network_record"]

_Name = TypeVar("_Name", bound=StrEnum)
_PAIRS = ("kernel", "stride", "padding", "dilation", "in_size", "out_size")
_PLAIN = ("name", "in_channels", "out_channels", "conv_groups", "has_weight", "has_bias")


def network_record(network: NetworkSpec) -> dict[str, Any]:
    """Return layers and groups as lists of mappings."""
    layers = [
        {"kind": layer.kind.value}
        | {key: getattr(layer, key) for key in _PLAIN}
        | {key: list(getattr(layer, key)) for key in _PAIRS}
        | ({} if layer.stored is Stored.ALL else {"stored": layer.stored.value})
        | {"steps": [[step.op.value, list(step.reads), step.writes] for step in layer.steps]}
        for layer in network.layers
    ]
    groups = [
        {
            "name": group.name,
            "channels": group.channels,
            "unit": group.unit,
            "couplings": [
                [end.layer, end.side.value, end.factor, *([end.removed] if end.removed > 1 else [])]
                for end in group.couplings
            ],
        }
        for group in network.groups
    ]
    return {"layers": layers, "groups": groups}


_OBJECT: Final = Mapping[str, object]
_FIELDS: Final[Mapping[str, object]] = {
    "kind": str,
    "name": str,
    **dict.fromkeys(("in_channels", "out_channels", "conv_groups"), int),
    **dict.fromkeys(("has_weight", "has_bias"), bool),
    **dict.fromkeys(_PAIRS, tuple[int, ...]),
}
_LEAST: Final = {"padding": 0}  # of a size; 1 of all others
PAIRED: Final = "paired"
"""The ``purpose`` in the ``info`` of a plan that measures networks of one run in pairs, for no table."""
_MOST: Final = 2**24  # of a size or a width: no layer comes near, and arrays of so many channels fit into memory

_MOST_PAIRS: Final = 2**23  # of a layer and a group: each has a number in memory


def _layer(record: object, where: str) -> LayerSpec:
    given = read_as(_OBJECT, record, where)
    values = {key: read_as(hint, given.get(key), f"{where}: {key}") for key, hint in _FIELDS.items()}
    for key, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,) if type(value) is int else ()
        if (key in _PAIRS and len(numbers) != 2) or not all(_LEAST.get(key, 1) <= n <= _MOST for n in numbers):
            raise BadInputError(
                f"{where}: {key} = {value!r:.80}, must be {'two numbers' if key in _PAIRS else 'a number'} from "
                f"{_LEAST.get(key, 1)} to {_MOST}"
            )
    kind = _named(LayerKind, values.pop("kind"), f"{where}: kind")
    # a kit of an earlier release knows of neither
    stored = _named(Stored, given.get("stored", Stored.ALL.value), f"{where}: stored")
    steps = read_as(tuple[object, ...], given.get("steps", ()), f"{where}: steps")
    return LayerSpec(
        kind=kind,
        steps=tuple(_step(step, f"{where}: step {i + 1}") for i, step in enumerate(steps)),
        stored=stored,
        **values,
    )


def _step(record: object, where: str) -> MapStep:
    op, reads, writes = _parts(record, 3, where)
    sizes = read_as(tuple[int, ...], reads, where)
    return MapStep(_named(MapOp, op, where), sizes, read_as(int, writes, where))


def _group(record: object, where: str) -> ChannelGroup:
    given = read_as(_OBJECT, record, where)
    name = read_as(str, given.get("name"), f"{where}: name")
    channels, unit = (read_as(int, given.get(key), f"{where}: {key}") for key in ("channels", "unit"))
    if channels > _MOST:
        raise BadInputError(f"{where}: channels = {channels}, at most {_MOST} can be read")
    ends = read_as(tuple[object, ...], given.get("couplings"), f"{where}: couplings")
    return ChannelGroup(name, channels, tuple(_coupling(end, f"{where}: coupling") for end in ends), unit)


def _coupling(record: object, where: str) -> Coupling:
    parts = read_as(tuple[object, ...], record, where)
    layer, side, factor, removed = _parts(parts if len(parts) == 4 else (*parts, 1), 4, where)
    numbers = [read_as(int, number, where) for number in (factor, removed)]
    if not all(1 <= number <= _MOST for number in numbers):
        raise BadInputError(f"{where}: factor = {numbers[0]} for {numbers[1]} channels, must be from 1 to {_MOST}")
    return Coupling(read_as(str, layer, where), _named(Side, side, where), *numbers)


def _parts(record: object, count: int, where: str) -> tuple[object, ...]:
    parts: tuple[object, ...] = read_as(tuple[object, ...], record, where)
    if len(parts) != count:
        raise BadInputError(f"{where} has {len(parts)} parts, expected {count}")
    return parts


def _named(kind: type[_Name], value: object, where: str) -> _Name:
    names = [name.value for name in kind]
    if value not in names:
        raise BadInputError(f"{where} is {value!r:.60}, expected one of {', '.join(names)}")
    return kind(value)


def network_from_record(record: object) -> NetworkSpec:
    """Inverse of ``network_record``.

    Raises:
        BadInputError: a key is missing or a value is not what a network can have; names it.
    """
    try:
        given = read_as(_OBJECT, record, "network")
        layers = read_as(tuple[object, ...], given.get("layers"), "layers")
        groups = read_as(tuple[object, ...], given.get("groups"), "groups")
        if len(layers) * len(groups) > _MOST_PAIRS:
            raise BadInputError(
                f"{len(layers)} layers and {len(groups)} groups, at most {_MOST_PAIRS} pairs can be read"
            )
        return NetworkSpec(
            tuple(_layer(layer, f"layer {i + 1}") for i, layer in enumerate(layers)),
            tuple(_group(group, f"group {i + 1}") for i, group in enumerate(groups)),
        )
    except BadInputError as error:
        raise BadInputError(f"the network's shapes cannot be read ({error}); build the kit again") from error


@dataclass(frozen=True)
class DescribedNetwork:
    """What a plan says of a network: its dense shapes, and which layer each node and tensor of its graph belongs to."""

    network: NetworkSpec
    owners: Mapping[str, str]


def described_networks(info: Mapping[str, object]) -> dict[str, DescribedNetwork]:
    """The networks of a plan's ``info``, by name.

    Raises:
        BadInputError: the plan was not made by ``measurement_plan``, or shapes cannot be read.
    """
    networks = info.get("networks")
    if not isinstance(networks, Mapping) or not networks:
        if info.get("purpose") == PAIRED:
            raise BadInputError(
                "the result is of a verify kit, which makes no table; give it to `amcsearch verify RUN RESULT`, and "
                "build the table's kit with `amcsearch table kit`"
            )
        raise BadInputError("the result's plan names no networks; build the kit with `amcsearch table kit`")
    return {str(name): _described(value, f"network {name!r:.80}") for name, value in networks.items()}


def _described(value: object, where: str) -> DescribedNetwork:
    given = read_as(_OBJECT, value, where)
    owners = read_as(Mapping[str, str], given.get("owners"), f"{where}: owners")
    return DescribedNetwork(network_from_record(given.get("network")), owners)
