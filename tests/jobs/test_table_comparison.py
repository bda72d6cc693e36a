"""Latency tables side by side on one network: the same policies, by hand, in text, as JSON and as a picture."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.config.table_folder import write_latency_table
from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.latency.entry import Accuracy, ChannelGrid, GridStep, NetworkEntry, Provenance
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable, fingerprint
from amcsearch.jobs.table_comparison import compare_tables
from amcsearch.jobs.workload import InMemory, load_network
from amcsearch.reporting.table_comparison import write_table_comparison
from amcsearch.runs import ComparedTable, TableComparison

WriteConfig = Callable[..., Path]


def table_of(network: NetworkSpec, ms: float, multiple: int) -> LatencyTable:
    """Every layer, dense and at half of the channels, takes ``ms`` of its share of dense channels."""
    rows = {}
    half = PruningPolicy({group.name: group.channels // 2 for group in network.groups})
    for policy, share in ((network.dense, 1.0), (half, 0.5)):
        for layer in network.with_channels(policy).layers:
            if layer.kind is not LayerKind.BATCH_NORM:
                values = ("tiny", *row_key(layer), "k", 1.0, share * ms, 0.0, 1, "profile")
                rows[row_key(layer)] = dict(zip(COLUMNS, values, strict=True))
    entry = NetworkEntry(
        constant_ms=0.0,
        fingerprint=fingerprint(network),
        channel_multiple=multiple,
        channel_grid=ChannelGrid(tried=(GridStep(8, macs_saved=0.4, time_saved=0.2),)),
        accuracy=Accuracy(mape=0.02),
    )
    where = Provenance(cpu=f"{ms} ms", ort_version="1.0", provider="P", threads=1, batch=1, dtype="float32")
    return LatencyTable(make_rows(rows.values()), where, {"tiny": entry})


@pytest.fixture
def tables(write_config: WriteConfig) -> dict[str, LatencyTable]:
    network = load_network(load(write_config()), InMemory()).trace.network
    return {"slow": table_of(network, 2.0, 8), "fast": table_of(network, 1.0, 4)}


def test_the_same_policies_are_priced_by_every_table(
    write_config: WriteConfig, tables: dict[str, LatencyTable]
) -> None:
    compared = compare_tables(tables, load(write_config()))
    network = load_network(load(write_config()), InMemory()).trace.network
    layers = sum(layer.kind is not LayerKind.BATCH_NORM for layer in network.layers)
    slow, fast = compared.tables
    assert compared.policies[0] == "dense"
    assert compared.macs[0] == 1.0
    assert list(compared.macs) == sorted(compared.macs, reverse=True)
    assert len(set(compared.macs)) == len(compared.macs)
    assert slow.ms[0] == pytest.approx(2.0 * layers)
    assert [a / b for a, b in zip(slow.ms, fast.ms, strict=True)] == pytest.approx([2.0] * len(slow.ms))
    assert slow.speed_up == pytest.approx(fast.speed_up)
    assert slow.speed_up[0] == 1.0
    assert slow.speed_up[-1] > 1.0
    assert (slow.channel_multiple, fast.channel_multiple, slow.grid) == (8, 4, {"8": (0.4, 0.2)})
    assert TableComparison.from_json(json.loads(json.dumps(compared.to_json())), "it") == compared


def test_a_policy_of_ones_own_joins_them(
    write_config: WriteConfig, tables: dict[str, LatencyTable], tmp_path: Path
) -> None:
    network = load_network(load(write_config()), InMemory()).trace.network
    (tmp_path / "mine.json").write_text(PruningPolicy({g.name: g.channels // 2 for g in network.groups}).to_json())
    compared = compare_tables(tables, load(write_config()), tmp_path / "mine.json")
    assert compared.policies[-1] == "mine.json"
    assert compared.tables[0].speed_up[-1] > 1.5


def test_a_table_that_lacks_the_network_is_named(write_config: WriteConfig, tables: dict[str, LatencyTable]) -> None:
    rows = tables["slow"].rows[tables["slow"].rows["kind"] == "linear"]
    with pytest.raises(BadInputError, match=r"^few: latency table has no row for conv"):
        compare_tables({**tables, "few": replace(tables["slow"], rows=rows)}, load(write_config()))


def comparison_of(names: Sequence[str], dense_ms: Sequence[float]) -> TableComparison:
    """Tables of two policies, dense and one that is twice as fast; devices of the first of them use the grid of 8."""
    tables = tuple(
        ComparedTable(name, "somewhere", (ms, ms / 2), (0.1 * ms, 0.05 * ms), 8, {"8": (0.4, 0.2)}, None)
        for name, ms in zip(names, dense_ms, strict=True)
    )
    return TableComparison("net", ("dense", "half"), (1.0, 0.25), tables)


def height_of(path: Path) -> float:
    """Of a picture in points."""
    return float(ElementTree.parse(path).getroot().attrib["height"].removesuffix("pt"))


def test_the_picture_grows_with_long_names_and_keeps_the_room_of_its_axes(tmp_path: Path) -> None:
    names = [f"{'long/' * 30}{i}" for i in range(12)]
    for folder, labels in (("short", "abcdefghijkl"), ("long", names)):
        (tmp_path / folder).mkdir()
        write_table_comparison(comparison_of(list(labels), [1.0] * 12), tmp_path / folder)
    short, long = (height_of(tmp_path / folder / "tables.svg") for folder in ("short", "long"))
    assert long - short == pytest.approx(10 * 0.16 * 72)  # twelve lines in place of two
    text = (tmp_path / "long" / "tables.svg").read_text()
    assert f"…{names[3][-109:]}<" in text
    assert names[3] in (tmp_path / "long" / "tables.html").read_text()


@pytest.mark.parametrize(("dense_ms", "scale"), [((1.0, 9.0), ""), ((1.0, 11.0), ", logarithmic")])
def test_devices_far_apart_are_drawn_on_a_logarithmic_scale(
    tmp_path: Path, dense_ms: tuple[float, float], scale: str
) -> None:
    write_table_comparison(comparison_of("ab", dense_ms), tmp_path)
    assert f">Predicted latency (ms){scale}<" in (tmp_path / "tables.svg").read_text()


def test_folders_of_one_name_are_told_apart_by_the_ends_of_their_paths(
    write_config: WriteConfig, tables: dict[str, LatencyTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tmp_path / "there" / name / "pi5") for name in tables]
    for folder, table in zip(folders, tables.values(), strict=True):
        Path(folder).parent.mkdir(parents=True)
        write_latency_table(table, Path(folder))
    assert main(["table", "show", *folders, folders[0], "--config", str(write_config()), "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["tables"]] == ["slow/pi5", "fast/pi5"]


def test_text_and_picture_hold_all_tables(
    write_config: WriteConfig, tables: dict[str, LatencyTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, table in tables.items():
        write_latency_table(table, tmp_path / name)
    folders, config = [str(tmp_path / name) for name in tables], str(write_config())
    assert main(["table", "show", *folders]) == 2
    assert "2 tables are compared on one network; name it with --config" in capsys.readouterr().err
    assert main(["table", "show", *folders, "--config", config, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny: the same policies on 2 tables")
    assert "slow: 2.0 ms, ONNX Runtime 1.0, P, threads 1, batch 1, float32; channel multiple 8; mean error 2.0%" in said
    picture = ElementTree.parse(tmp_path / "out" / "tables.svg")
    texts = {"".join(node.itertext()).strip() for node in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"slow", "fast", "MACs kept (%)", "16 → 8", "as MACs", "Predicted latency (ms)"} <= texts
    page = (tmp_path / "out" / "tables.html").read_text()
    assert "<td>2.0 ms, ONNX Runtime 1.0, P, threads 1, batch 1, float32; channel multiple 8; mean error 2.0%" in page
    assert "var(--ink)" in page
    assert "<td>100%</td>" in page
    assert main(["table", "show", *folders, "--config", config, "--json"]) == 0
    assert [table["name"] for table in json.loads(capsys.readouterr().out)["tables"]] == ["slow", "fast"]
