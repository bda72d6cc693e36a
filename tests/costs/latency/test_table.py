"""The table as a document and the model bound to a network: settings, what is missing, and many widths at once."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency.entry import Accuracy, NetworkEntry
from amcsearch.costs.latency.model import LatencyModel
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable, fingerprint

CONV = LayerSpec("c", LayerKind.CONV, 32, 32, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
FC = LayerSpec("fc", LayerKind.LINEAR, 32, 10, has_bias=True)
DEPTHWISE = replace(CONV, name="d", conv_groups=32)
ATTENTION = LayerSpec("a", LayerKind.ATTENTION, 32, 32, conv_groups=4, in_size=(64, 1), out_size=(64, 1))
NORM = LayerSpec("n", LayerKind.BATCH_NORM, 32, 32, in_size=(8, 8), out_size=(8, 8))
ONE = NetworkSpec((CONV, FC), ())
OTHER = NetworkSpec((DEPTHWISE, CONV), ())
PROVENANCE = {"cpu": "Toy CPU", "ort_version": "1.0", "threads": 1, "batch": 1, "nchwc_block": 16}

Row = tuple[str, LayerSpec, str, float, float | None]


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    return make_rows(
        dict(zip(COLUMNS, (net, *row_key(x), kernel, n, ms, 0.0, 1, "profile"), strict=True))
        for net, x, kernel, n, ms in rows
    )


def info(**networks: Mapping[str, Any]) -> dict[str, Any]:
    return {"provenance": PROVENANCE, "networks": networks}


ROWS: list[Row] = [
    ("one", CONV, "nchwc.Conv", 1.0, 0.4),
    ("one", FC, "ms.Gemm", 1.0, 0.02),
    ("other", CONV, "nchwc.Conv", 1.0, 0.6),
    ("other", DEPTHWISE, "nchwc.Conv", 1.0, 0.1),
]
INFO = info(
    one={"fingerprint": fingerprint(ONE), "constant_ms": 0.005, "weights_mib": 0.04, "channel_multiple": 8},
    other={"fingerprint": fingerprint(OTHER), "constant_ms": 0.007, "weights_mib": 4.0, "accuracy": {"mape": 0.01}},
)


def table() -> LatencyTable:
    return LatencyTable.from_mapping(frame(ROWS), INFO)


def bound(rows: Sequence[Row], entry: Mapping[str, Any]) -> LatencyModel:
    """The model of ``one``, the only network of a table."""
    return LatencyTable.from_mapping(frame(rows), info(one=entry)).bind("one")


def of_all_rows(made: LatencyTable) -> LatencyModel:
    """The model of no network in particular."""
    return LatencyModel(made.rows, made.provenance, next(iter(made.networks.values())), None)


def test_a_model_answers_from_its_network_first() -> None:
    assert table().bind(ONE).layer_cost(CONV) == pytest.approx(0.4)
    assert table().bind(OTHER).layer_cost(CONV) == pytest.approx(0.6)
    assert of_all_rows(table()).layer_cost(CONV) == pytest.approx(0.5)  # bound to none: all rows
    assert table().bind(ONE).layer_cost(DEPTHWISE) == pytest.approx(0.1, rel=1e-5)  # from the other's rows
    assert table().bind(OTHER).layer_cost(FC) == pytest.approx(0.02)


def test_settings_and_accuracy_are_the_networks_own() -> None:
    one, other = table().bind(ONE), table().bind(OTHER)
    assert (one.network, one.constant, one.channel_multiple, one.accuracy) == ("one", 0.005, 8, None)
    assert (other.network, other.constant, other.channel_multiple) == ("other", 0.007, None)
    assert other.accuracy == Accuracy(mape=0.01)


def test_a_network_never_measured_takes_the_settings_of_the_nearest_in_weights() -> None:
    small = table().bind(NetworkSpec((CONV.resized(16, 16),), ()))
    large = table().bind(NetworkSpec((CONV.resized(512, 512),), ()))
    assert (small.network, small.constant, small.accuracy) == (None, 0.005, None)
    assert (large.network, large.constant, large.accuracy) == (None, 0.007, None)
    assert small.layer_cost(CONV) == pytest.approx(0.5)


def test_a_network_is_bound_by_its_name_too() -> None:
    with pytest.raises(BadInputError, match="holds no network 'three'; it holds one, other"):
        table().bind("three")
    alone = bound(ROWS[:2], INFO["networks"]["one"])
    assert (alone.network, alone.layer_cost(CONV)) == ("one", pytest.approx(0.4))


def test_the_only_network_is_not_taken_for_another() -> None:
    alone = LatencyTable.from_mapping(frame(ROWS[:2]), info(one=INFO["networks"]["one"]))
    other = alone.bind(NetworkSpec((CONV.resized(16, 16),), ()))
    assert (other.network, other.accuracy) == (None, None)
    assert other.constant == alone.networks["one"].constant_ms


def test_the_table_is_a_document_that_is_copied_not_changed() -> None:
    other = table().with_entry("one", NetworkEntry(constant_ms=0.5))
    assert other.networks["one"].constant_ms == 0.5
    assert other.networks["other"] == table().networks["other"]
    assert other.bind("one").constant == 0.5
    assert table().as_mapping() == INFO
    extended = LatencyTable.from_mapping(frame(ROWS), {**INFO, "by": "hand"})
    assert extended.with_entry("one", NetworkEntry(constant_ms=0.5)).as_mapping()["by"] == "hand"


def test_settings_are_read_without_a_model() -> None:
    wide = NetworkSpec((CONV.resized(512, 512),), ())
    assert table().name_of(ONE) == "one"
    assert table().name_of(wide) is None
    assert (table().settings_for(ONE).constant_ms, table().settings_for(wide).constant_ms) == (0.005, 0.007)


def test_fingerprints_tell_shapes_apart_and_names_not() -> None:
    renamed = NetworkSpec((replace(CONV, name="x"), FC), ())
    assert fingerprint(ONE) == fingerprint(renamed)
    assert len({fingerprint(n) for n in (ONE, OTHER, NetworkSpec((FC, CONV), ()))}) == 3
    assert len(fingerprint(ONE)) == 12


def test_a_prediction_by_hand_with_weights_beyond_the_cache() -> None:
    wide = LayerSpec("fc", LayerKind.LINEAR, 1024, 1024)
    rows: list[Row] = [("one", wide, "ms.Gemm", 1.0, 0.5), ("one", CONV, "Conv+Relu", 2.0, 0.1)]
    model = bound(rows, {"constant_ms": 0.01, "residency": {2.0: 0.25}})
    assert model.amounts(wide) == (4.0, 4.0)
    conv_mib = 9 * 32 * 32 * 4 / 2**20
    assert model.amounts(CONV) == (conv_mib, 0.0)  # plain convolutions do not stream
    extra = 0.25 * (4.0 + conv_mib - 2.0) * 4.0 / (4.0 + conv_mib)
    assert model.predict([wide, CONV]) == pytest.approx(0.01 + 0.5 + 2 * 0.1 + extra)


def test_prices_at_many_widths_by_hand() -> None:
    wide = LayerSpec("fc", LayerKind.LINEAR, 1024, 1024)
    rows: list[Row] = [("one", wide, "ms.Gemm", 1.0, 0.5), ("one", CONV, "Conv+Relu", 2.0, 0.1)]
    model = bound(rows, {"constant_ms": 0.01, "residency": {2.0: 0.25}})
    narrower, same = np.array([1024, 512]), np.array([1024, 1024])
    half_ms, single_ms = model.layer_cost(wide.resized(512, 1024)), model.layer_cost(CONV.resized(1, 1))
    for _ in range(2):  # asked in turn, as a grid does
        assert model.layer_costs(wide, narrower, same).tolist() == pytest.approx([0.5, half_ms])
        assert model.layer_amounts(wide, narrower, same).tolist() == [[4.0, 4.0], [2.0, 2.0]]
        assert model.layer_costs(wide, same, same).tolist() == pytest.approx([0.5, 0.5])
        # a plain convolution does not stream; one channel may be a depthwise layer's last and is asked for alone
        few = np.array([32, 1, 32])
        mib = 9 * 32 * 32 * 4 / 2**20
        assert model.layer_amounts(CONV, few, few).tolist() == [[mib, 0.0], [mib / 1024, 0.0], [mib, 0.0]]
        assert model.layer_costs(CONV, few, few).tolist() == pytest.approx([0.2, single_ms, 0.2])
    networks = [[wide, CONV], [wide], [CONV, CONV]]
    assert model.predict_all(networks).tolist() == pytest.approx([model.predict(layers) for layers in networks])


def test_uncertainty_by_hand() -> None:
    entry = {"constant_ms": 0.0, "sigma": {"floor": 0.1, "per_octave": 0.5}}
    model = bound([("one", FC, "ms.Gemm", 1.0, 0.4)], entry)
    assert model.uncertainty([FC]) == pytest.approx(0.04)
    half = FC.resized(16, 10)  # an octave away, 0.2 ms
    assert model.uncertainty([half]) == pytest.approx(np.hypot(0.1 * 0.2, 0.5 * 0.2))


def test_folded_layers_are_free_unless_measured() -> None:
    assert table().bind(ONE).layer_cost(NORM) == 0.0
    assert table().bind(ONE).layer_cost(LayerSpec("cls", LayerKind.PARAMETER, 1, 32)) == 0.0
    measured = bound([("one", NORM, "BatchNormalization", 1.0, 0.3)], {"constant_ms": 0.0})
    assert measured.layer_cost(NORM.resized(16, 16)) == pytest.approx(0.15)


def test_a_layer_seen_and_folded_away_is_free_whatever_its_kind() -> None:
    norm = replace(NORM, kind=LayerKind.LAYER_NORM)
    seen = bound([("one", norm, "none", 0.0, 0.0)], {"constant_ms": 0.0})
    assert seen.layer_cost(norm) == 0.0
    assert seen.layer_costs(norm, np.array([8]), np.array([8])).tolist() == [0.0]


@pytest.mark.parametrize("kind", [k for k in LayerKind if k not in (LayerKind.BATCH_NORM, LayerKind.PARAMETER)])
def test_a_missing_row_names_the_layer_and_the_cure(kind: LayerKind) -> None:
    layer = LayerSpec("head", kind, 7, 7, (5, 5), in_size=(5, 1), out_size=(5, 1))
    with pytest.raises(BadInputError, match=rf"no row for {kind} 7→7, input 5x1.*\(head\); add it with `amcsearch tab"):
        table().bind(ONE).layer_cost(layer)
    with pytest.raises(BadInputError, match=rf"no row for {kind}"):
        table().bind(ONE).layer_costs(layer, np.array([7]), np.array([7]))


def test_pickling_keeps_the_prices() -> None:
    model = table().bind(ONE)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.predict([CONV.resized(20, 20), FC]) == model.predict([CONV.resized(20, 20), FC])
    assert copy.network == "one"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"networks": INFO["networks"]}, "provenance"),
        (
            {"provenance": PROVENANCE},
            r"^latency table has no `networks` \(fingerprint, constant_ms\); measure it again$",
        ),
        (info(one=INFO["networks"]["one"]), r"rows are of the networks \['one', 'other'\], `networks` names \['one'\]"),
        (info(one={}, other={}), "constant_ms = None"),
        (info(one={"constant_ms": "fast"}, other={}), "constant_ms = 'fast'"),
        (info(one={"constant_ms": float("nan")}, other={}), "constant_ms = nan"),
        (info(one={"constant_ms": 0.1, "smoothing": -1}, other={}), "smoothing = -1"),
        (info(one={"constant_ms": 0.1, "residency": {1: -2}}, other={}), "residency"),
    ],
)
def test_a_table_that_says_too_little_of_itself_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        LatencyTable.from_mapping(frame(ROWS), wrong)


LAYERS = (CONV, FC, DEPTHWISE, ATTENTION, NORM, replace(CONV, conv_groups=4), replace(CONV, kernel=(1, 1)))
KERNELS = ("nchwc.Conv+Relu", "Conv", "ms.FusedConv", "ReorderInput")


@st.composite
def models(draw: st.DrawFn) -> LatencyModel:
    """Of rows of any of the layers and kernels but the last layer's, several widths, a hinge, a second network."""
    rows: dict[tuple[Any, ...], Row] = {}
    for layer in LAYERS[:-1]:
        for _ in range(draw(st.integers(1, 3))):
            c = 8 * draw(st.integers(1, 4))
            one = layer.resized(c, 10 if layer is FC else c)
            for kernel in draw(st.sets(st.sampled_from(KERNELS), min_size=1, max_size=2)):
                net = draw(st.sampled_from(["one", "other"]))
                ms = draw(st.floats(0.01, 1.0))
                rows[net, row_key(one), kernel] = (net, one, kernel, draw(st.sampled_from([0.5, 1.0])), ms)
    entry = {"constant_ms": 0.25, "residency": {0.001: draw(st.floats(0.0, 5.0))}, "smoothing": 0.1}
    named = {net: entry for net, *_ in rows}
    made = LatencyTable.from_mapping(frame(list(rows.values())), info(**named))
    name = draw(st.sampled_from([None, *named]))
    return of_all_rows(made) if name is None else made.bind(name)


@settings(max_examples=40, deadline=None)
@given(models(), st.data())
def test_many_widths_at_once_cost_what_each_costs_alone(made: LatencyModel, data: st.DataObject) -> None:
    layer = replace(data.draw(st.sampled_from([*LAYERS[:-1], replace(CONV, in_size=(4, 4), out_size=(4, 4))])), name="")
    unit = {4: 8 if layer.kind is LayerKind.ATTENTION else 4}.get(layer.conv_groups, 1)
    counts = data.draw(st.lists(st.integers(1, 32 // unit), min_size=1, max_size=12))
    c_in = unit * np.array(counts)
    c_out = np.full(len(c_in), 10) if layer.kind is LayerKind.LINEAR else c_in
    resized = [layer.resized(i, o) for i, o in zip(c_in.tolist(), c_out.tolist(), strict=True)]
    costs, amounts = made.layer_costs(layer, c_in, c_out), made.layer_amounts(layer, c_in, c_out)
    np.testing.assert_allclose(costs, [made.layer_cost(one) for one in resized], rtol=1e-12)
    np.testing.assert_allclose(amounts, [made.amounts(one) for one in resized], rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(models(), st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5), max_size=4))
def test_many_networks_at_once_take_what_each_takes_alone(
    made: LatencyModel, networks: list[list[tuple[int, int]]]
) -> None:
    layers = [[LAYERS[i].resized(8 * c, 10 if LAYERS[i] is FC else 8 * c) for i, c in network] for network in networks]
    alone = [made.predict(one) if one else made.constant for one in layers]
    np.testing.assert_allclose(made.predict_all(layers), alone, rtol=1e-12)


def network() -> NetworkSpec:
    """A residual stem and depthwise tower, a hidden width, a head; two groups."""
    layers = (
        replace(CONV, name="stem"),
        replace(DEPTHWISE, name="depthwise"),
        replace(NORM, name="norm"),
        replace(CONV, name="project"),
        FC,
    )
    wide = [("stem", Side.OUT), *((n, s) for n in ("depthwise", "norm") for s in Side), ("project", Side.IN)]
    groups = (
        ChannelGroup("wide", 32, tuple(Coupling(*at) for at in wide)),
        ChannelGroup("out", 32, (Coupling("project", Side.OUT), Coupling("fc", Side.IN))),
    )
    return NetworkSpec(layers, groups)


@settings(max_examples=40, deadline=None)
@given(models(), st.lists(st.tuples(st.integers(1, 32), st.integers(1, 32)), min_size=1, max_size=6))
def test_a_grid_prices_what_the_table_predicts(made: LatencyModel, kept: list[tuple[int, int]]) -> None:
    spec = network()
    prices = CostGrid(spec, [made]).price(np.array(kept))["latency_ms"]
    expected = [made.predict(spec.with_channels(spec.policy(np.array(row))).layers) for row in kept]
    np.testing.assert_allclose(prices, expected, rtol=1e-12)
