"""Latency as measured on the device: one row a layer shape, and a staircase between the rows.

A network's predicted latency is ``constant`` + Σ ``layer_cost``, for one call with the batch the table was made with.
``latency_ms`` of a row is final: the calibration on whole runs (scale, time a node) is already folded in, and so
is everything the runtime does for a layer (its activation, the addition or pooling after it). ``layer_cost`` answers

1. with the row of exactly these shapes;
2. else with the ``Staircase`` through the rows of the same signature, which is everything but the widths;
3. else with 0 for batch norms and bare parameters: the runtime folds them into their neighbours. Where it cannot
   (a batch norm before its convolution), the table has rows for them and these count;
4. else with an error that says which layer is missing and how to add it.

Other kinds that leave no kernel behind need a row of 0 ms: silence means "not measured", never "free".
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from amcsearch.core import BadInputError, LayerKind, LayerSpec
from amcsearch.costs.staircase import Signature, Staircase, signature

__all__ = [
    "COLUMNS",
    "KEY_COLUMNS",
    "MEASURED_COLUMNS",
    "LatencyTable",
    "RowKey",
    "make_rows",
    "read_rows",
    "row_key",
    "write_rows",
]

KEY_COLUMNS: Final = (
    "kind", "in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w",
    "dilation_h", "dilation_w", "conv_groups", "in_h", "in_w", "out_h", "out_w", "has_bias",
)  # fmt: skip
MEASURED_COLUMNS: Final = ("latency_ms", "mad_ms", "samples", "source")
COLUMNS: Final = (*KEY_COLUMNS, *MEASURED_COLUMNS)

RowKey = tuple[str | int, ...]

_FOLDED: Final = frozenset({LayerKind.BATCH_NORM, LayerKind.PARAMETER})
_ADD: Final = "add it with `amcsearch table measure CONFIG -o latency_tables/NAME`"
_COMPARED: Final = {
    "cpu": "CPU",
    "cpu_flags": "CPU features",
    "ort_version": "ONNX Runtime",
    "provider": "execution provider",
    "optimisation": "optimisation level",
    "nchwc_block": "NCHWc block",
    "threads": "threads",
    "batch": "batch size",
    "dtype": "data type",
}


def row_key(layer: LayerSpec) -> RowKey:
    """Values of ``KEY_COLUMNS`` for a layer: all that its latency may depend on.

    Left out: the name, and ``has_weight``, since a module called twice works as hard the second time.
    """
    return (
        layer.kind.value, layer.in_channels, layer.out_channels, *layer.kernel, *layer.stride, *layer.padding,
        *layer.dilation, layer.conv_groups, *layer.in_size, *layer.out_size, int(layer.has_bias),
    )  # fmt: skip


def _layer(key: RowKey) -> LayerSpec:
    """Inverse of ``row_key``, without a name."""
    kind, *numbers = key
    c_in, c_out, kh, kw, sh, sw, ph, pw, dh, dw, groups, in_h, in_w, out_h, out_w, has_bias = map(int, numbers)
    return LayerSpec(
        "row", LayerKind(str(kind)), c_in, c_out, (kh, kw), (sh, sw), (ph, pw), (dh, dw), groups,
        (in_h, in_w), (out_h, out_w), has_bias=bool(has_bias),
    )  # fmt: skip


def _checked(rows: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in COLUMNS if column not in rows.columns]
    if missing:
        raise BadInputError(f"latency rows lack the columns {missing}; measure the table again")
    if rows.empty:
        raise BadInputError(f"latency table has no rows; {_ADD}")
    rows = rows.reset_index(drop=True)
    unknown = sorted(set(rows["kind"]) - set(LayerKind))
    if unknown:
        raise BadInputError(f"latency rows name unknown layer kinds {unknown}; known: {[k.value for k in LayerKind]}")
    for column in (*KEY_COLUMNS[1:], "latency_ms", "mad_ms", "samples"):
        numbers = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
        whole = column not in ("latency_ms", "mad_ms")
        wrong = ~np.isfinite(numbers) | (numbers < 0) | (whole & (numbers != np.round(numbers)))
        if wrong.any():
            at = int(np.argmax(wrong))
            want = "a whole number of at least 0" if whole else "a finite number of at least 0"
            raise BadInputError(f"latency row {at + 1}: {column} = {rows[column].iloc[at]!r}, must be {want}")
        rows[column] = numbers.astype(np.int64) if whole else numbers
    repeated = rows.duplicated(list(KEY_COLUMNS))
    if repeated.any():
        at = int(np.argmax(repeated.to_numpy()))
        raise BadInputError(f"latency row {at + 1} repeats the shapes of an earlier row; keep one of them")
    return rows


class LatencyTable:
    """A measured latency table as a cost, in milliseconds a call.

    ``rows`` has at least ``COLUMNS``. ``info`` holds ``provenance`` (cpu, ort_version, threads, batch, nchwc_block, …),
    ``calibration`` (``constant_ms``, and how the rows were made: scale, node_ms), and optionally ``channel_multiple``
    and ``accuracy`` (held-out errors, None until checked).

    Raises:
        BadInputError: rows or info that cannot be used; names the row, the value and the bound.
    """

    name = "latency_ms"

    def __init__(self, rows: pd.DataFrame, info: Mapping[str, Any]) -> None:
        self.rows = _checked(rows)
        self.info = dict(info)
        self.constant = self._constant()
        keys = list(self.rows[list(KEY_COLUMNS)].itertuples(index=False, name=None))
        self._exact: dict[RowKey, float] = dict(zip(keys, self.rows["latency_ms"].tolist(), strict=True))
        measured: dict[Signature, list[tuple[LayerSpec, float]]] = {}
        for number, (key, latency_ms) in enumerate(self._exact.items()):
            try:
                layer = _layer(key)
            except BadInputError as error:
                raise BadInputError(f"latency row {number + 1}: {error}") from error
            measured.setdefault(signature(layer), []).append((layer, latency_ms))
        block = int(self._provenance().get("nchwc_block", 16))
        self._staircases = {key: Staircase(points, block) for key, points in measured.items()}

    def _provenance(self) -> Mapping[str, Any]:
        found = self.info.get("provenance")
        if not isinstance(found, Mapping):
            raise BadInputError(
                "latency table has no `provenance` (cpu, ort_version, threads, batch); measure it again"
            )
        return found

    def _constant(self) -> float:
        calibration = self.info.get("calibration")
        value = calibration.get("constant_ms") if isinstance(calibration, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise BadInputError(f"latency table: calibration.constant_ms = {value!r}, must be a number of milliseconds")
        return float(value)

    @property
    def channel_multiple(self) -> int | None:
        """Channel grid the device prefers, None where the table does not say."""
        value = self.info.get("channel_multiple")
        return int(value) if value else None

    @property
    def accuracy(self) -> Mapping[str, Any] | None:
        """Errors on whole networks that were not used to build the table; None until they were measured."""
        return self.info.get("accuracy")

    def layer_cost(self, layer: LayerSpec) -> float:
        """Latency of one layer in ms.

        Raises:
            BadInputError: no row of this signature; names the layer and how to add it.
        """
        exact = self._exact.get(row_key(layer))
        if exact is not None:
            return exact
        for alike in (layer, *_as_depthwise(layer)):
            staircase = self._staircases.get(signature(alike))
            if staircase is not None:
                return staircase.predict(alike)
        if layer.kind in _FOLDED:
            return 0.0
        raise BadInputError(f"latency table has no row for {_describe(layer)}; {_ADD}")

    def mismatches(self, provenance: Mapping[str, Any]) -> list[str]:
        """Say in sentences how the table's device and settings differ from ``provenance``; [] where they agree.

        What either side does not know is not compared.
        """
        own = self._provenance()
        return [
            f"{words}: the table was measured with {own[key]!r}, this run has {provenance[key]!r}"
            for key, words in _COMPARED.items()
            if own.get(key) is not None and provenance.get(key) is not None and own[key] != provenance[key]
        ]


def _as_depthwise(layer: LayerSpec) -> list[LayerSpec]:
    """A depthwise convolution pruned to one channel looks like an ordinary one: price it as one with two channels."""
    one = layer.kind is LayerKind.CONV and (layer.in_channels, layer.out_channels) == (1, 1)
    return [replace(layer, in_channels=2, out_channels=2, conv_groups=2)] if one else []


def _describe(layer: LayerSpec) -> str:
    size = "x".join(map(str, layer.in_size))
    words = f"{layer.kind.value} {layer.in_channels}→{layer.out_channels}, input {size}"
    if layer.kind is LayerKind.CONV:
        words += f", kernel {layer.kernel}, stride {layer.stride}, padding {layer.padding}, groups {layer.conv_groups}"
    return f"{words} ({layer.name})" if layer.name else words


def make_rows(records: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Rows of a table from one mapping of ``COLUMNS`` to values a row, as a measurement produces them."""
    return pd.DataFrame(list(records), columns=list(COLUMNS))


def read_rows(path: Path | str) -> pd.DataFrame:
    """Read the CSV rows of a table; they are checked when the table is made of them.

    Raises:
        BadInputError: the file cannot be read or is not CSV.
    """
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' parser and encoding errors are ValueErrors
        raise BadInputError(
            f"cannot read latency rows {path}: {str(error).strip()}; measure the table again"
        ) from error


def write_rows(rows: pd.DataFrame, path: Path | str) -> None:
    """Write rows as CSV in a fixed order and with six digits, so that two tables can be compared line by line."""
    ordered = rows.sort_values(list(KEY_COLUMNS), kind="stable")
    extra = [column for column in rows.columns if column not in COLUMNS]
    ordered[[*COLUMNS, *extra]].to_csv(path, index=False, float_format="%.6g")
