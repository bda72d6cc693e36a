"""What a latency table says beside its rows: where it was measured, and of each network how it was made and how well
it predicts.

Every document is a frozen dataclass. ``from_mapping`` reads one from plain values (YAML, JSON), ``as_mapping`` gives
them back: keys that this program does not know stay as they are, and all keys keep the order of the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Final, Self, get_origin, get_type_hints

import numpy as np

from amcsearch.core import BadInputError
from amcsearch.costs.latency.cache import CacheOverflow, bytes_a_weight

__all__ = [
    "Accuracy",
    "Anchors",
    "CalibrationRecord",
    "ChannelGrid",
    "DriftRecord",
    "GridStep",
    "NetworkEntry",
    "Provenance",
    "Sigma",
]

Reader = Callable[[str, Any], Any]


ONNXRUNTIME: Final = "onnxruntime"  # as ``device.runtime`` and the program on the device name it
MOST: Final = 1e12  # of anything a table counts or measures: sums over any network stay finite


def _number(name: str, value: object) -> float:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not -MOST <= value <= MOST:  # type: ignore[operator]
        raise _refused(name, value, f"a finite number within ±{MOST:g}")
    return float(value)  # type: ignore[arg-type]


def _amount(name: str, value: object) -> float:
    try:
        number = _number(name, value)
    except BadInputError:
        number = -1.0
    if number < 0.0:
        raise _refused(name, value, f"a finite number of at least 0 and at most {MOST:g}")
    return number


def _count(name: str, value: object) -> int:
    number = _amount(name, value)
    if number != round(number):
        raise _refused(name, value, "a whole number of at least 0")
    return round(number)


def _refused(name: str, value: object, expected: str) -> BadInputError:
    return BadInputError(f"latency table: {name} = {value!r:.200}, must be {expected}")


def _number_or_unknown(name: str, value: object) -> float | None:
    try:
        return _number(name, value)
    except BadInputError:
        return None


def _text(_: str, value: object) -> str:
    return str(value)


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _refused(name, value, "a list")
    return tuple(map(str, value))


def _numbers_by_name(name: str, value: object) -> dict[str, float]:
    return {str(key): _number(f"{name}.{key}", number) for key, number in _mapping(name, value).items()}


def _mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _refused(name, value, "a mapping")
    return value


Text = Annotated[str | None, _text]
Count = Annotated[int | None, _count]
Number = Annotated[float | None, _number]
NumberOrUnknown = Annotated[float | None, _number_or_unknown]
NumbersByName = Annotated[Mapping[str, float] | None, _numbers_by_name]


@dataclass(frozen=True, kw_only=True)
class _Document:
    """Values with names.

    ``extra`` holds the keys that this program does not know, ``keys`` all keys in the order of the file that was read.
    """

    extra: Mapping[str, object] = field(default_factory=dict)
    keys: tuple[str, ...] = field(default=(), repr=False, compare=False)

    null: ClassVar[tuple[str, ...]] = ()  # fields that a new document states even where they are None

    def __post_init__(self) -> None:
        for name, (reader, is_required) in _readers(type(self)).items():
            value = getattr(self, name)
            if value is not None or is_required:
                object.__setattr__(self, name, reader(name, value))

    @classmethod
    def from_mapping(cls, data: Mapping[Any, Any]) -> Self:
        """Read plain values.

        Raises:
            BadInputError: a value that the field cannot have; names the key and the value.
        """
        readers = _readers(cls)
        values = {name: data.get(name) for name, (_, needed) in readers.items() if needed or data.get(name) is not None}
        extra = {str(key): value for key, value in data.items() if key not in readers}
        return cls(**values, extra=extra, keys=tuple(map(str, data)))

    def as_mapping(self) -> dict[str, Any]:
        """Plain values, of which ``from_mapping`` makes an equal document."""
        values = {name: _plain(getattr(self, name)) for name in _readers(type(self))} | dict(self.extra)
        new = [key for key in values if key not in self.keys]
        if self.keys:  # what a file did not say, and what is the default anyway, it need not say now
            new = [key for key in new if key in self.extra or getattr(self, key) != _default(self, key)]
        stated = {*self.keys, *self.null}
        return {key: values[key] for key in (*self.keys, *new) if values[key] is not None or key in stated}


def _readers(kind: type[_Document]) -> dict[str, tuple[Reader, bool]]:
    """What checks the fields of a document, and whether each of them must be given: the annotations say it."""
    hints = get_type_hints(kind, include_extras=True)
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    return {
        name: (hint.__metadata__[0], name in required) for name, hint in hints.items() if get_origin(hint) is Annotated
    }


def _default(document: _Document, name: str) -> object:
    item = next(item for item in fields(document) if item.name == name)
    return item.default if item.default_factory is MISSING else item.default_factory()


def _plain(value: object) -> Any:
    if isinstance(value, _Document):
        return value.as_mapping()
    if isinstance(value, CacheOverflow):
        return {str(knot): slope for knot, slope in value.slopes.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _document(kind: type[_Document]) -> Reader:
    return lambda name, value: value if isinstance(value, kind) else kind.from_mapping(_mapping(name, value))


@dataclass(frozen=True, kw_only=True)
class Provenance(_Document):
    """Where, with what and how latencies were measured; None where that is not known.

    What only describes the machine (its caches, its load, versions of other software) is in ``extra``. The runtime's
    ``differences`` says which of the fields make two devices or settings different. ``runtime`` is None in older
    tables, which are of ONNX Runtime: ``runtime_name`` says it of any. The version of that one is ``ort_version``.
    ``provider_version`` is that of a provider which is a plugin, None for one that is part of the runtime.
    """

    cpu: Text = None
    cpu_flags: Text = None
    cores: Count = None
    runtime: Text = None
    runtime_version: Text = None
    ort_version: Text = None
    provider: Text = None
    provider_version: Text = None
    threads: Count = None
    batch: Count = None
    dtype: Text = None
    optimisation: Text = None
    nchwc_block: Count = None
    timestamp: Text = None

    @property
    def runtime_name(self) -> str:
        """The runtime as ``device.runtime`` names it: that of older tables too, which do not."""
        return self.runtime or ONNXRUNTIME

    @property
    def is_onnx_runtime(self) -> bool:
        """Whether ONNX Runtime measured, by whichever provider."""
        return self.runtime_name == ONNXRUNTIME

    @property
    def runtime_label(self) -> str:
        """The runtime with its version, for people."""
        version = self.ort_version if self.is_onnx_runtime else self.runtime_version
        return f"{'ONNX Runtime' if self.is_onnx_runtime else self.runtime_name} {version or ''}".rstrip()

    @property
    def weight_bytes(self) -> int:
        """Size of one weight in the data type, float32 where it is not known."""
        return bytes_a_weight(self.dtype)


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Document):
    """Errors of predictions on variants that took no part in a table, as shares; None where they are not known.

    ``mape`` is the mean, ``median`` the median absolute relative error, ``within_5`` and ``within_10`` the shares of
    variants within 5 and 10 %; ``noise_mape`` is the error of the first pass taken as prediction of the last, where
    there are two: no table can be expected to do better.
    """

    null = ("spearman", "noise_mape")

    variants: Count = None
    mape: NumberOrUnknown = None
    median: NumberOrUnknown = None
    worst: NumberOrUnknown = None
    within_5: NumberOrUnknown = None
    within_10: NumberOrUnknown = None
    bias: NumberOrUnknown = None
    spearman: NumberOrUnknown = None
    noise_mape: NumberOrUnknown = None


@dataclass(frozen=True, kw_only=True)
class Sigma(_Document):
    """Relative standard deviation of a prediction: ``floor``, and ``per_octave`` of distance from a measurement."""

    floor: Annotated[float, _amount] = 0.03
    per_octave: Annotated[float, _amount] = 0.1


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(_Document):
    """What calibration found: see ``Calibration`` of the room ``measure``.

    ``attribution`` says by what a profile's inserted nodes were told. Older tables lack it: they were told by names,
    which ONNX Runtime gives anew at each load, and the times of reorders went to random layers.
    """

    null = ("left_out_mape",)

    attribution: Text = None
    profile_scale: Number = None
    profile_node_ms: Number = None
    factors: NumbersByName = None
    call_overhead_ms: Number = None
    variants: Count = None
    left_out_mape: Number = None
    common_factor: Number = None


@dataclass(frozen=True)
class GridStep(_Document):
    """What ``multiple`` saves beside twice it: shares of MACs and of time (medians over pairs of networks)."""

    multiple: Annotated[int, _count]
    macs_saved: Annotated[float, _number]
    time_saved: Annotated[float, _number]


def _steps(name: str, value: object) -> tuple[GridStep, ...]:
    if not isinstance(value, list | tuple):
        raise _refused(name, value, "a list")
    return tuple(_document(GridStep)(name, step) for step in value)


@dataclass(frozen=True, kw_only=True)
class ChannelGrid(_Document):
    """Why a table rewards its multiple of channels: the rule, and every step that was tried."""

    rule: Annotated[str, _text] = ""
    tried: Annotated[tuple[GridStep, ...], _steps] = ()


@dataclass(frozen=True, kw_only=True)
class DriftRecord(_Document):
    """How quiet the device was: the share of rounds that were disturbed, and the largest drift of a block."""

    disturbed_share: Number = None
    largest: Number = None


@dataclass(frozen=True, kw_only=True)
class Anchors(_Document):
    """The whole runs that a table was brought up to date by: how many, the factors a kernel, when, from which CPU."""

    count: Count = None
    factors: NumbersByName = None
    timestamp: Text = None
    from_cpu: Text = None


def _residency(_: str, value: Any) -> CacheOverflow:
    return value if isinstance(value, CacheOverflow) else CacheOverflow.from_mapping(value)


@dataclass(frozen=True, kw_only=True)
class NetworkEntry(_Document):
    """What a table says of one network.

    ``constant_ms`` is what a call costs beside its layers; ``block`` how many channels are computed at a time as whole
    runs show it (0: each for itself), None where the runtime itself says it (``nchwc_block``); ``smoothing`` the noise
    of surfaces; ``residency`` what weights beyond the caches cost; ``accuracy`` is None until checked;
    ``channel_multiple`` is the channel grid that the device rewards, None where that was not asked; ``timestamp`` is
    when its runs were measured.

    Raises:
        BadInputError: no ``constant_ms``.
    """

    null = ("accuracy",)

    fingerprint: Text = None
    weights_mib: Annotated[float | None, _amount] = None
    constant_ms: Annotated[float, _amount]
    block: Count = None
    smoothing: Annotated[float, _amount] = 0.0
    residency: Annotated[CacheOverflow, _residency] = field(default_factory=lambda: CacheOverflow({}))
    sigma: Annotated[Sigma, _document(Sigma)] = field(default_factory=Sigma)
    calibration: Annotated[CalibrationRecord | None, _document(CalibrationRecord)] = None
    channel_multiple: Count = None
    channel_grid: Annotated[ChannelGrid | None, _document(ChannelGrid)] = None
    accuracy: Annotated[Accuracy | None, _document(Accuracy)] = None
    drift: Annotated[DriftRecord | None, _document(DriftRecord)] = None
    notes: Annotated[tuple[str, ...] | None, _texts] = None
    anchors: Annotated[Anchors | None, _document(Anchors)] = None
    timestamp: Text = None

    @property
    def is_misattributed(self) -> bool:
        """Whether it was made of profiles whose inserted nodes were told by names: see ``CalibrationRecord``."""
        made = self.calibration
        return made is not None and made.profile_scale is not None and made.attribution is None

    @property
    def brought_up_to_date(self) -> str | None:
        """When the network was last measured, None where that is not known."""
        return (self.anchors and self.anchors.timestamp) or self.timestamp
