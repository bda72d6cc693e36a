"""Rows of a latency table: one a network, layer shape and kernel.

``count`` is how many of the kernel one such layer becomes on average, ``latency_ms`` what one of them takes. A layer
that was folded into its neighbours has one row with the kernel ``none``; a kernel seen in an optimised graph but never
timed has no latency. ``samples`` is how many layers of these shapes were seen.
"""

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from amcsearch.core import BadInputError, LayerKind, LayerSpec, check_csv, decoded
from amcsearch.costs.latency.kernels.points import Observation

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ADD",
    "COLUMNS",
    "GRAPH",
    "KEY_COLUMNS",
    "LAYER_COLUMNS",
    "NO_KERNEL",
    "RowKey",
    "checked_rows",
    "csv_of",
    "joined_rows",
    "make_rows",
    "measured_layers",
    "observations",
    "parse_rows",
    "row_key",
]

LAYER_COLUMNS: Final = (
    "kind", "in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w",
    "dilation_h", "dilation_w", "conv_groups", "in_h", "in_w", "out_h", "out_w", "has_bias",
)  # fmt: skip
KEY_COLUMNS: Final = ("network", *LAYER_COLUMNS, "kernel")
COLUMNS: Final = (*KEY_COLUMNS, "count", "latency_ms", "mad_ms", "samples", "source")
NO_KERNEL: Final = "none"
GRAPH: Final = "graph"  # source of a row that was never timed
ADD: Final = (
    "add it with `amcsearch table measure CONFIG -o latency_tables/NAME`, or for a device that is elsewhere with "
    "`amcsearch table kit` and `amcsearch table build`"
)
_AMOUNTS: Final = ("count", "latency_ms", "mad_ms")
_AT_LEAST_ONE: Final = frozenset(
    {
        *("in_channels", "out_channels", "conv_groups", "kernel_h", "kernel_w", "stride_h", "stride_w"),
        *("dilation_h", "dilation_w", "in_h", "in_w", "out_h", "out_w"),
    }
)
_LEAST_COUNT: Final = 1e-6  # of a kernel a layer: a mean weighted by less is no number
_MOST_SIZE: Final = 2**31 - 1  # of any width, map or count of samples
_MOST_AMOUNT: Final = 1e12  # kernels a layer, or ms

RowKey = tuple[str | int, ...]


def row_key(layer: LayerSpec) -> RowKey:
    """Values of ``LAYER_COLUMNS`` for a layer: all that its latency may depend on.

    Left out: the name, and ``has_weight``, since a module called twice works as hard the second time.
    """
    return (
        layer.kind.value, layer.in_channels, layer.out_channels, *layer.kernel, *layer.stride, *layer.padding,
        *layer.dilation, layer.conv_groups, *layer.in_size, *layer.out_size, int(layer.has_bias),
    )  # fmt: skip


def _layer(key: RowKey, number: int) -> LayerSpec:
    """Inverse of ``row_key`` of the row of this number, without a name."""
    kind, *numbers = key
    c_in, c_out, kh, kw, sh, sw, ph, pw, dh, dw, groups, in_h, in_w, out_h, out_w, has_bias = map(int, numbers)
    try:
        return LayerSpec(
            "row", LayerKind(str(kind)), c_in, c_out, (kh, kw), (sh, sw), (ph, pw), (dh, dw), groups,
            (in_h, in_w), (out_h, out_w), has_bias=bool(has_bias),
        )  # fmt: skip
    except BadInputError as error:
        raise BadInputError(f"latency row {number}: {error}") from error


def _number(cell: object) -> float:
    """The number in a cell, NaN where there is none."""
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _numbers(rows: "pd.DataFrame", column: str) -> "pd.Series[Any]":
    import pandas as pd  # a third of a second that most processes need not wait

    values = np.array([_number(cell) for cell in rows[column].tolist()], dtype=np.float64)
    unknown = np.isnan(values) & rows[column].isna().to_numpy()
    unknown &= (column in ("latency_ms", "mad_ms")) & (rows["source"] == GRAPH).to_numpy()
    whole, least = column not in _AMOUNTS, int(column in _AT_LEAST_ONE)
    most = _MOST_SIZE if whole else _MOST_AMOUNT
    within = (values >= least) & (values <= most)  # false for NaN
    wrong = ~unknown & (~within | (whole & (values != np.round(values))))
    if wrong.any():
        at = int(np.argmax(wrong))
        number = "a whole number" if whole else "a finite number"
        raise BadInputError(
            f"latency row {at + 1}: {column} = {rows[column].tolist()[at]!r:.80}, must be {number} of at least {least} "
            f"and at most {most:.12g}; measure the table again"
        )
    return pd.Series(values.astype(np.int64) if whole else values, index=rows.index)


def checked_rows(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows with numbers as numbers.

    Raises:
        BadInputError: columns missing, no row, an unknown kind, a value out of range, or a row twice; names the row.
    """
    missing = [column for column in COLUMNS if column not in rows.columns]
    if missing:
        raise BadInputError(f"latency rows lack the columns {missing}; measure the table again")
    if rows.empty:
        raise BadInputError(f"latency table has no rows; {ADD}")
    rows = rows.reset_index(drop=True)
    unknown = sorted(set(map(str, rows["kind"])) - set(LayerKind))[:5]
    if unknown:
        raise BadInputError(f"latency rows name unknown layer kinds {unknown}; known: {[k.value for k in LayerKind]}")
    for column in (*LAYER_COLUMNS[1:], *_AMOUNTS, "samples"):
        rows[column] = _numbers(rows, column)
    idle = (rows["count"] < _LEAST_COUNT) & (rows["kernel"] != NO_KERNEL)
    if idle.any():
        at = int(np.argmax(idle.to_numpy()))
        raise BadInputError(
            f"latency row {at + 1}: count = {rows['count'][at]:g} of the kernel {rows['kernel'][at]!r:.80}, must be at "
            f"least {_LEAST_COUNT:g}; leave out a kernel that no layer becomes"
        )
    repeated = rows.duplicated(list(KEY_COLUMNS))
    if repeated.any():
        at = int(np.argmax(repeated.to_numpy()))
        raise BadInputError(f"latency row {at + 1} repeats the shapes of an earlier row; keep one of them")
    return rows


def observations(rows: "pd.DataFrame") -> list[Observation]:
    """Rows back as observations of layers, one a network and layer shape.

    Raises:
        BadInputError: a layer that cannot exist; names the row.
    """
    columns = ["network", *LAYER_COLUMNS, "kernel", "count", "latency_ms", "samples"]
    observation_of: dict[tuple[str, RowKey], Observation] = {}
    for number, (network, *key, kernel, count, ms, samples) in enumerate(
        rows[columns].itertuples(index=False, name=None), 1
    ):
        shapes = (str(network), tuple(key))
        known = observation_of.get(shapes)
        kernels = {} if kernel == NO_KERNEL else {str(kernel): (float(count), None if np.isnan(ms) else float(ms))}
        if known is None:
            observation_of[shapes] = Observation(_layer(shapes[1], number), kernels, max(int(samples), 1))
        else:
            observation_of[shapes] = Observation(known.layer, {**known.kernels, **kernels}, max(int(samples), 1))
    return list(observation_of.values())


def measured_layers(rows: "pd.DataFrame", network: str | None = None) -> list[LayerSpec]:
    """The distinct layer shapes of rows, of one network or of all; their names say nothing.

    Raises:
        BadInputError: as ``observations``.
    """
    chosen = rows if network is None else rows[rows["network"] == network]
    return list(dict.fromkeys(observation.layer for observation in observations(chosen)))


def make_rows(records: Iterable[Mapping[str, object]]) -> "pd.DataFrame":
    """Rows of a table from one mapping of ``COLUMNS`` to values a row, as a measurement produces them."""
    import pandas as pd  # a third of a second that most processes need not wait

    return pd.DataFrame(list(records), columns=list(COLUMNS))


def joined_rows(parts: "Iterable[pd.DataFrame]") -> "pd.DataFrame":
    """Rows of several tables as those of one."""
    import pandas as pd  # a third of a second that most processes need not wait

    return pd.concat(list(parts), ignore_index=True)


def parse_rows(content: bytes, source: Path | str) -> "pd.DataFrame":
    """Read the content of a table's CSV file; ``source`` names it in errors.

    Raises:
        BadInputError: it is not CSV.
    """
    import pandas as pd  # a third of a second that most processes need not wait

    try:
        text = decoded(content, f"latency rows {source}")
        check_csv(text, f"latency rows {source}", COLUMNS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows with more values than columns
            return pd.read_csv(io.StringIO(text), index_col=False)
    except BadInputError as error:
        raise BadInputError(f"{error}; measure the table again") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        raise BadInputError(f"cannot read latency rows {source}: {error}; measure the table again") from error


def csv_of(rows: "pd.DataFrame") -> str:
    """Rows as CSV in a fixed order and with six digits, so that two tables can be compared line by line."""
    ordered = rows.sort_values(list(KEY_COLUMNS), kind="stable")
    extra = [column for column in rows.columns if column not in COLUMNS]
    return str(ordered[[*COLUMNS, *extra]].to_csv(index=False, float_format="%.6g"))
