"""A device priced by a latency table: widths that are left out of the search, and what is said of the table."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amcsearch.cli.main import main
from amcsearch.cli.text import with_sigma
from amcsearch.config import Config
from amcsearch.config.loading import load
from amcsearch.config.table_folder import write_latency_table
from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.core.layer import LayerKind
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable, fingerprint
from amcsearch.graph import trace
from amcsearch.jobs.device import Device, load_device, policy_space
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.jobs.search import met_by_dense
from amcsearch.jobs.workload import load_workload
from amcsearch.runtime.session import provenance

WriteConfig = Callable[..., Path]
GOOD = {"variants": 20, "mape": 0.02, "within_5": 0.95, "within_10": 1.0, "noise_mape": 0.018}
SHARES = {1.0: 1.0, 0.5: 2.0, 0.25: 0.4}  # ms a layer: half of the channels take twice the time


def table_of(network: NetworkSpec, entry: Mapping[str, Any]) -> LatencyTable:
    """Every layer of a network at three widths."""
    rows = {}
    for share, ms in SHARES.items():
        kept = np.array([int(share * group.channels) for group in network.groups])
        for layer in network.with_channels(network.policy(kept)).layers:
            if layer.kind is not LayerKind.BATCH_NORM:
                values = ("tiny", *row_key(layer), f"{layer.kind}", 1.0, ms, 0.0, 1, "profile")
                rows[row_key(layer)] = dict(zip(COLUMNS, values, strict=True))
    known = {"constant_ms": 0.01, "fingerprint": fingerprint(network), "channel_multiple": 4, **entry}
    other = {**known, "fingerprint": "other"}
    info = {"provenance": provenance(1, 1).as_mapping(), "networks": {"tiny": known, "other": other}}
    return LatencyTable.from_mapping(make_rows(rows.values()), info)


@pytest.fixture
def configured(write_config: WriteConfig, tmp_path: Path) -> Callable[..., Config]:
    """A configuration whose table has this entry for its network; further settings overrule it."""

    def configure(entry: Mapping[str, Any], *overrides: str) -> Config:
        path, folder = write_config(), tmp_path / "table"
        write_latency_table(table_of(load_workload(load(path), train=False).trace.network, entry), folder)
        return load(path, [f"device.table={folder}", "device.channel_multiple=auto", *overrides])

    return configure


def device_of(config: Config) -> Device:
    return load_device(config, load_workload(config, train=False), config.limits)


def test_slow_narrow_widths_are_left_out_and_counted(configured: Callable[..., Config]) -> None:
    device = device_of(configured({"accuracy": GOOD}))
    whole = device_of(configured({"accuracy": GOOD}, "device.channel_multiple=4"))
    assert (whole.widths_left_out, device.warnings) == (0, ())
    assert [c.tolist() for c in whole.space.choices] == [[4, 8, 12, 16], [8, 12, 16, 20, 24]]
    assert device.widths_left_out == sum(map(len, whole.space.choices)) - sum(map(len, device.space.choices)) > 0
    assert all(set(few) <= set(every) for few, every in zip(device.space.choices, whole.space.choices, strict=True))
    assert (device.space.dense == whole.space.dense).all()
    assert device.feasible.space is device.space


def test_without_a_table_no_width_is_left_out(write_config: WriteConfig) -> None:
    device = device_of(load(write_config(), ["device.channel_multiple=auto", "budget={macs: 1x}"]))
    assert (device.widths_left_out, device.warnings) == (0, ())


def test_slow_widths_stay_where_another_budget_needs_them(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHARES, 0.25, 4.0)  # the narrowest are the slowest
    config = configured({"accuracy": GOOD})
    whole = device_of(configured({"accuracy": GOOD}, "device.channel_multiple=4"))
    least = float(whole.grid.price(whole.space.floor[None, :])["params"][0])
    small = config.model_copy(update={"budget": {"params": least}})
    device = device_of(small)
    assert device.widths_left_out == 0
    assert [text for text in device.warnings if "no policy without widths that are no faster" in text]


def test_a_multiple_that_meets_no_budget_halves_by_hand(configured: Callable[..., Config]) -> None:
    # of 16 and 24 channels nothing but 16 and 16 or 24 is on multiples of 16: over half of the MACs; 8 leaves 16 two
    entry, half = {"accuracy": GOOD, "channel_multiple": 16}, "budget={macs: 0.3x}"
    device = device_of(configured(entry, half))
    assert device.channel_multiple == 4
    assert [set(choices) <= {4, 8, 12, 16, 20, 24} for choices in device.space.choices] == [True, True]
    (text,) = [text for text in device.warnings if "multiples of 16 channels, which latency table" in text]
    assert "budget.macs = 0.3x" in text
    assert text.endswith("prefers; multiples of 4 are searched (device.channel_multiple)")
    assert device_of(configured(entry, "budget={macs: 1x}")).channel_multiple == 16
    with pytest.raises(InfeasibleBudgetError, match=r"device.channel_multiple = 16"):
        device_of(configured(entry, half, "device.channel_multiple=16"))
    with pytest.raises(InfeasibleBudgetError, match="smallest found"):  # not on multiples of 1 either
        device_of(configured(entry, "budget={macs: 0.001x}"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "was never checked on this network; run amcsearch table check"),
        ({"accuracy": None}, "was never checked on this network"),
        ({"accuracy": {"mape": "small"}}, "was never checked on this network"),
        (
            {"accuracy": {**GOOD, "mape": 0.071}},
            "mean error 7.1%, 100% within 10 %, on networks it had not seen, where measuring twice differs by 1.8%",
        ),
        ({"accuracy": {**GOOD, "within_10": 0.85}}, "is poor on this network: mean error 2.0%, 85% within 10 %"),
        (
            {"fingerprint": "another", "accuracy": GOOD},
            "no measurement of this network: predictions borrow from tiny, other",
        ),
    ],
)
def test_a_table_that_may_be_wrong_is_a_warning_and_no_error(
    configured: Callable[..., Config], entry: Mapping[str, Any], words: str
) -> None:
    config = configured(entry)
    (text,) = load_device(config, load_workload(config, train=False), config.limits, strict=True).warnings
    assert words in text
    assert text.startswith(f"latency table {config.device.table} ")


@pytest.mark.parametrize(
    ("location", "cure"),
    [
        ("here", "amcsearch table measure CONFIG -o {table}"),
        ("pi5", "amcsearch table measure CONFIG -o {table} --set device.location=pi5"),
        (
            "offline",
            "amcsearch table kit CONFIG -o kit.pyz; run python3 kit.pyz -o result.jsonl on the device; then "
            "amcsearch table build result.jsonl -o {table}",
        ),
    ],
)
def test_a_table_that_lacks_the_network_names_the_commands_that_measure_on_its_device(
    configured: Callable[..., Config], location: str, cure: str
) -> None:
    config = configured({"fingerprint": "another", "accuracy": GOOD}, f"device.location={location}")
    (text,) = device_of(config).warnings
    assert text.endswith("add it: " + cure.format(table=config.device.table))


def test_an_absent_device_is_not_sent_to_check_its_table_here(configured: Callable[..., Config]) -> None:
    (text,) = device_of(configured({}, "device.location=offline")).warnings
    assert "was never checked on this network; measure more: amcsearch table kit" in text


def test_an_infeasible_latency_says_that_the_table_may_be_wrong(configured: Callable[..., Config]) -> None:
    poor = {"accuracy": {**GOOD, "mape": 0.4, "noise_mape": 0.3}}
    with pytest.raises(InfeasibleBudgetError, match=r"no policy .*; latency table .* is poor .* differs by 30\.0%"):
        device_of(configured(poor, "budget={latency_ms: 0.001x}"))
    with pytest.raises(InfeasibleBudgetError) as caught:
        device_of(configured(poor, "budget={macs: 0.001x}"))
    assert "latency table" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["budget={macs: 1x}"], "budget.macs = 1x: the dense network meets that already"),
        (["budget={latency_ms: 1x, params: 7236}"], "budget.latency_ms = 1x and budget.params = 7236.0: the dense"),
        (["budget={macs: 1x, params: 0.99x}"], None),
        (["budget={macs: 1x}", "search.objectives=[accuracy, latency_ms]", "search.agent=nsga2"], None),
        (["budget={}", "search.objectives=[accuracy, latency_ms]", "search.agent=nsga2"], None),
    ],
)
def test_a_budget_that_the_dense_network_meets_is_said(
    configured: Callable[..., Config], overrides: list[str], said: str | None
) -> None:
    config = configured({"accuracy": GOOD}, *overrides)
    texts = met_by_dense(config, device_of(config))
    assert [said is not None and text.startswith(said) for text in texts] == ([] if said is None else [True])


def test_a_plan_and_a_search_say_it_before_the_training(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["search.trials=1", "search.baseline=null", "recovery.finetune=null", "search.agent=random"]
    search = ["search", str(write_config()), *(word for key in ["budget={macs: 1x}", *few] for word in ("--set", key))]
    words = "WARNING: budget.macs = 1x: the dense network meets that already, and nothing has to be pruned; ask for"
    assert main([*search, "--dry-run"]) == 0
    assert words in capsys.readouterr().out
    assert main([*search, "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert 0 <= said.index(words) < said.index("Loading or training the network")


def test_a_table_of_another_data_type_is_refused(configured: Callable[..., Config]) -> None:
    config = configured({"accuracy": GOOD}, "device.dtype=int8")
    with pytest.raises(BadInputError, match=r"device\.dtype is int8, .* was measured in float32; set device\.dtype="):
        device_of(config)


def test_a_table_of_another_provider_is_refused_and_one_that_names_none_is_the_cpus(
    configured: Callable[..., Config],
) -> None:
    config = configured({"accuracy": GOOD}, "device.provider=OpenVINO")
    with pytest.raises(BadInputError, match=r"device\.provider is OpenVINO, .* with CPUExecutionProvider: .*=CPU, or"):
        device_of(config)
    for spelt in ("cpu", "CPUExecutionProvider"):
        device_of(configured({"accuracy": GOOD}, f"device.provider={spelt}"))


@pytest.mark.parametrize("location", ["offline", "pi5"])
def test_files_are_checked_on_the_cpu_where_another_device_has_the_provider(
    configured: Callable[..., Config], location: str
) -> None:
    settings = {"device.provider": "TensorRT", "device.location": location}
    config = configured({"accuracy": GOOD}, *(f"{key}={value}" for key, value in settings.items()))
    assert runtime_of(config).provenance(1, "float32").provider == "CPUExecutionProvider"
    with pytest.raises(BadInputError, match=r"device\.provider is TensorRT, .* was measured with CPUExecutionProvider"):
        device_of(config)  # the table says nothing of that provider


def test_plan_and_summary_say_how_sure_the_table_is(
    configured: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Path(str(configured({"accuracy": GOOD}).device.table))
    settings = [f"device.table={table}", "device.channel_multiple=auto", "search.trials=2", "search.agent=random"]
    arguments = ["search", str(tmp_path / "tiny.yaml"), *(part for text in settings for part in ("--set", text))]
    assert main([*arguments, "--dry-run"]) == 0
    assert "widths left out, no faster than wider ones" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "mean error 2.00%, 95% within 5 %, 100% within 10 % on networks it had not seen" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["table"] == {"name": "table", "network": "tiny", "accuracy": GOOD}
    assert summary["widths_left_out"] > 0
    for name in ("dense", "pruned", "finetuned"):
        block = summary[name]
        assert with_sigma(block["latency_ms_predicted"], block["latency_ms_predicted_sigma"]) in said
        assert block["latency_ms_predicted_sigma"] > 0.0
    dense = summary["dense"]  # every kernel was measured: the default's share of 3 % alone
    assert dense["latency_ms_predicted_sigma"] == pytest.approx(0.03 * dense["latency_ms_predicted"])
    assert "within 10 %" in (tmp_path / "run" / "report.html").read_text()


class _TwoLayers(nn.Module):
    """A branch of two layers, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(x).relu()))


@pytest.mark.parametrize(
    ("overrides", "narrowest"),
    [((), 2), (("search.vanish=true",), 0), (("search.vanish=true", "prune={target: {macs: 0.5x}, rounds: 2}"), 2)],
)
def test_a_branch_vanishes_where_it_is_asked_for(
    overrides: tuple[str, ...], narrowest: int, write_config: WriteConfig
) -> None:
    network = trace(_TwoLayers(), torch.zeros(1, 4)).network
    space = policy_space(load(write_config(), list(overrides)), network, 2)
    assert [choices[0] for choices in space.choices] == [narrowest]


@pytest.mark.parametrize("vanish", ["true", "false"])
def test_memory_is_priced_whether_branches_may_vanish_or_not(write_config: WriteConfig, vanish: str) -> None:
    names = device_of(load(write_config(), [f"search.vanish={vanish}"])).grid.names
    assert {"model_bytes", "peak_memory_bytes"} <= set(names)
