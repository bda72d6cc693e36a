"""Rows: there and back through CSV, and every impossible value by the number of its row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.points import Observation
from amcsearch.costs.latency.rows import (
    COLUMNS,
    GRAPH,
    NO_KERNEL,
    checked_rows,
    csv_of,
    joined_rows,
    make_rows,
    measured_layers,
    observations,
    parse_rows,
    row_key,
)

CONV = LayerSpec("c", LayerKind.CONV, 32, 16, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8), has_bias=True)
NORM = LayerSpec("n", LayerKind.LAYER_NORM, 16, 16, in_size=(9, 1), out_size=(9, 1))


def rows(*observed: Observation) -> pd.DataFrame:
    def records(one: Observation) -> list[Mapping[str, object]]:
        kernels: Mapping[str, tuple[float, float | None]] = one.kernels or {NO_KERNEL: (0.0, 0.0)}
        return [
            dict(zip(COLUMNS, ("net", *row_key(one.layer), kernel, count, ms, ms, one.n_layers, GRAPH), strict=True))
            for kernel, (count, ms) in kernels.items()
        ]

    return make_rows(record for one in observed for record in records(one))


SEEN = (
    Observation(CONV, {"nchwc.Conv+Relu": (1.0, 0.25), "ReorderOutput": (0.5, None)}, 4),
    Observation(CONV.resized(5, 7), {"Conv": (1.0, 0.125)}, 1),
    Observation(NORM, {}, 2),
)


def there_and_back(observed: tuple[Observation, ...]) -> list[tuple[object, ...]]:
    found = observations(checked_rows(parse_rows(csv_of(rows(*observed)).encode(), "rows.csv")))
    return sorted((row_key(one.layer), sorted(one.kernels.items()), one.n_layers) for one in found)


def test_rows_come_back_with_kernels_never_timed_and_layers_folded_away() -> None:
    expected = [(row_key(one.layer), sorted(one.kernels.items()), one.n_layers) for one in SEEN]
    assert there_and_back(SEEN) == sorted(expected)
    assert csv_of(rows(*SEEN)).splitlines()[0] == ",".join(COLUMNS)


TIMES = st.one_of(st.none(), st.floats(1e-5, 1e3).map(lambda ms: float(f"{ms:.6g}")))


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 99), st.integers(1, 99)),
        st.tuples(
            st.dictionaries(st.sampled_from(["Conv", "a+b", "ms.x"]), st.tuples(st.sampled_from([0.5, 1.0]), TIMES)),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_rows_come_back(made: dict[tuple[int, int], Any]) -> None:
    seen = tuple(Observation(CONV.resized(*at), kernels, places) for at, (kernels, places) in made.items())
    expected = [(row_key(one.layer), sorted(one.kernels.items()), one.n_layers) for one in seen]
    assert there_and_back(seen) == sorted(expected)


def test_the_order_of_rows_on_disk_is_fixed_and_extra_columns_survive() -> None:
    made = rows(*SEEN).assign(note="kept")
    assert csv_of(made) == csv_of(made.iloc[::-1])
    assert parse_rows(csv_of(made).encode(), "rows.csv")["note"].tolist() == ["kept"] * 4


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("latency_ms", -0.1, "row 2: latency_ms = -0.1, must be a finite number of at least 0"),
        ("latency_ms", "fast", "row 2: latency_ms = 'fast'"),
        ("latency_ms", float("inf"), "row 2: latency_ms = inf"),
        ("mad_ms", float("-inf"), "row 2: mad_ms = -inf"),
        ("count", float("nan"), "row 2: count = nan"),
        ("count", 0, "row 2: count = 0 of the kernel '.*', must be at least 1e-06"),
        ("count", 10**400, "row 2: count = 1000"),
        ("latency_ms", 1e300, r"row 2: latency_ms = 1e\+300, must be .* at most 1e\+12"),
        ("out_h", 2**31, "row 2: out_h = 2147483648, must be .* at most 2147483647"),
        ("samples", 1.5, "row 2: samples = 1.5, must be a whole number of at least 0"),
        ("out_channels", 8.5, "row 2: out_channels = 8.5, must be a whole number"),
        ("in_channels", 0, "row 2: in_channels = 0, must be a whole number of at least 1"),
        ("conv_groups", 3, "row 2: .*not a multiple of conv_groups = 3"),
        ("kind", "pool", r"unknown layer kinds \['pool'\]"),
    ],
)
def test_bad_values_name_the_row(column: str, value: object, words: str) -> None:
    bad = rows(SEEN[1], SEEN[0]).astype({column: object})
    bad.loc[1, column] = value
    with pytest.raises(BadInputError, match=words):
        list(observations(checked_rows(bad)))


def test_only_kernels_that_were_never_timed_may_lack_a_time() -> None:
    bad = rows(*SEEN)
    bad["source"] = "profile"
    with pytest.raises(BadInputError, match="row 2: latency_ms = nan"):
        checked_rows(bad)


def test_lost_columns_repeated_and_absent_rows_are_refused() -> None:
    good = rows(*SEEN)
    with pytest.raises(BadInputError, match=r"lack the columns \['mad_ms'\]"):
        checked_rows(good.drop(columns="mad_ms"))
    with pytest.raises(BadInputError, match="row 5 repeats the shapes"):
        checked_rows(pd.concat([good, good[:1]]))
    with pytest.raises(BadInputError, match="has no rows"):
        checked_rows(good[:0])


@pytest.mark.parametrize("text", [b"", b'a,b\n"1,2\n3', b"\xff\xfe\x00broken\n"])
def test_a_damaged_csv_is_bad_input(text: bytes) -> None:
    with pytest.raises(BadInputError, match=r"^(cannot read )?latency rows rows\.csv.*; measure the table again$"):
        checked_rows(parse_rows(text, "rows.csv"))


def test_a_row_says_all_that_latency_depends_on() -> None:
    assert np.unique([len(row_key(layer)) for layer in (CONV, NORM)]).tolist() == [17]
    assert row_key(CONV) == ("conv", 32, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 8, 8, 8, 8, 1)


def test_the_layers_of_one_network_or_of_all_each_once() -> None:
    table = joined_rows([rows(*SEEN), rows(SEEN[2]).assign(network="other")])
    assert table.index.tolist() == list(range(5))
    everything = [row_key(one.layer) for one in SEEN]
    assert [row_key(layer) for layer in measured_layers(table)] == everything
    assert [row_key(layer) for layer in measured_layers(table, "net")] == everything
    assert [row_key(layer) for layer in measured_layers(table, "other")] == everything[2:]
