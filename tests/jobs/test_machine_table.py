"""This machine's own table: found, measured, brought up to date, and kept in the run that it priced."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amcsearch.cli.main import main
from amcsearch.config import Config, config_hash, dump
from amcsearch.config.loading import load
from amcsearch.config.table_folder import TableFolder, read_latency_table, table_digest, write_latency_table
from amcsearch.costs import LatencyTable
from amcsearch.jobs import machine_table as machine
from amcsearch.jobs import tables
from amcsearch.jobs.machine_table import MachineTable, expected_table, own_table
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.table_check import machine_folder, other_setting
from amcsearch.jobs.workload import InMemory, TracedNetwork, load_network
from amcsearch.measure.kit.kit import KitPlan, KitRun, measure_here
from amcsearch.runs import RunFolder, TableOrigin

WriteConfig = Callable[..., Path]
LATENCY = "budget={latency_ms: 0.8x}"
OWN = ("device.table=auto", LATENCY)
VARIANTS = 12


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.stop_at = 1.1

    def phase(self, text: str) -> None:
        self.texts.append(text)

    def warn(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, share: float, text: str) -> None:
        if text.startswith("pass 2") and share > self.stop_at:
            signal.raise_signal(signal.SIGINT)


def quickly(
    plan: KitPlan, out: Path, threads: int, provider: str, minutes: float | None, progress: object, runtime: None
) -> KitRun:
    """Measure here in a hurry; the bound is left out, for a loaded machine may not keep it."""
    quick = replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1)
    return measure_here(quick, out, threads, provider, progress=progress)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few variants, in a hurry, without a table of another machine; noise says nothing of the machine then."""
    monkeypatch.setattr(tables, "measure_here", quickly)
    monkeypatch.setattr(tables, "needed_variants", lambda *_: VARIANTS)
    monkeypatch.setattr(tables, "prior_of", lambda *_: None)
    monkeypatch.setattr(machine, "prior_of", lambda *_: None)
    monkeypatch.setattr(machine, "ANCHORS", 4)
    monkeypatch.setattr(machine, "FRESH", 3)
    monkeypatch.setattr(machine, "NOISE", np.inf)
    monkeypatch.setattr(machine, "DRIFT", np.inf)


@pytest.fixture
def job(write_config: WriteConfig) -> Callable[..., tuple[Config, TracedNetwork]]:
    def make(*overrides: str, factory: str = "network") -> tuple[Config, TracedNetwork]:
        config = load(write_config(factory), [*OWN, *overrides])
        return config, load_network(config, InMemory())

    return make


Job = Callable[..., tuple[Config, TracedNetwork]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The table that the first test measures, for the others."""
    return {}


def own(job: tuple[Config, TracedNetwork], observer: Told | None = None) -> MachineTable:
    return own_table(*job, observer or Told())


@pytest.fixture
def cached(job: Job, measured: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine's table in the cache of this test, measured once for all tests."""
    folder = machine_folder(job()[0])
    if "table" not in measured:
        own(job())
        measured["table"] = tmp_path_factory.mktemp("measured") / "table"
        shutil.copytree(folder, measured["table"])
    elif not folder.exists():
        shutil.copytree(measured["table"], folder)
    return folder


def aged(folder: Path, days: float, factor: float = 1.0) -> LatencyTable:
    """The table in a folder, measured so many days ago and on a machine so much slower."""
    table = read_latency_table(folder)
    stamp = str(np.datetime64("now") - np.timedelta64(int(days * 86_400), "s")) + "+00:00"
    networks = {
        name: replace(entry, timestamp=stamp, anchors=None, constant_ms=factor * entry.constant_ms)
        for name, entry in table.networks.items()
    }
    rows = table.rows.assign(latency_ms=factor * table.rows["latency_ms"])
    old = LatencyTable(rows, table.provenance, networks)
    write_latency_table(old, folder)
    return old


def test_what_the_cache_lacks_is_measured_and_then_used(job: Job, cached: Path) -> None:
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    told = Told()
    made = own(job(), told)
    assert (made.origin.done, made.origin.models, told.texts) == ("used", 0, [])
    assert made.origin.folder == str(cached)
    assert table_digest(made.table) == table_digest(read_latency_table(cached))
    other = job(factory="broader")
    with_both = own(other)
    assert with_both.origin.done == "measured"
    assert with_both.origin.models == 1 + VARIANTS + 12
    assert len(with_both.table.networks) == 2  # both are called tiny
    assert with_both.table.name_of(other[1].trace.network) != "tiny"
    assert made.table.rows.equals(
        with_both.table.rows[with_both.table.rows["network"] == "tiny"].reset_index(drop=True)
    )


@pytest.mark.parametrize("settings", [["budget={macs: 0.5x}"], ["device.table=null", "budget={macs: 0.5x}"]])
def test_nothing_is_measured_that_nobody_asks_for(job: Job, settings: list[str]) -> None:
    config, network = job(*settings)
    assert machine.machine_table(config, network, config.limits, InMemory(), Told()) is None
    assert expected_table(config, network, config.limits, InMemory()) is None


def test_an_old_table_is_brought_up_to_date(job: Job, cached: Path) -> None:
    aged(cached, days=2)
    assert "more than a day ago and will be brought up to date (8 networks, at most" in str(
        expected_table(*job(), job()[0].limits, InMemory()).text
    )
    made = own(job())
    assert (made.origin.done, made.origin.models) == ("updated", 1 + machine.ANCHORS + machine.FRESH)
    assert 1.9 * 86_400 < made.origin.age_s < 2.1 * 86_400
    assert made.table.networks["tiny"].anchors.count >= machine.ANCHORS
    assert own(job()).origin.done == "used"


def test_a_machine_that_drifted_is_found_out(job: Job, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(cached, days=0.1, factor=10.0)
    made = own(job())
    assert (made.origin.done, made.origin.models) == ("used", 1 + machine.PROBES)
    assert -1.0 < made.origin.drift < -0.5  # a tenth of the prediction, whatever the noise
    monkeypatch.setattr(machine, "DRIFT", 0.5)
    network = job()[1].trace.network
    made, before = own(job()), made.table.bind(network).predict(network.layers)
    assert made.origin.done == "updated"
    assert made.table.bind(network).predict(network.layers) < 0.5 * before


def test_a_network_measured_on_a_busy_machine_is_measured_again(
    job: Job, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_latency_table(cached)
    entry = table.networks["tiny"]
    write_latency_table(
        table.with_entry("tiny", replace(entry, accuracy=replace(entry.accuracy, noise_mape=0.3))), cached
    )
    monkeypatch.setattr(machine, "NOISE", 0.2)
    assert "busy machine (measuring twice differed by 30%)" in expected_table(*job(), job()[0].limits, InMemory()).text
    assert own(job()).origin.done == "updated"


def test_a_measuring_that_was_broken_off_goes_on(job: Job) -> None:
    folder, told = machine_folder(job()[0]), Told()
    told.stop_at = 0.0
    with pytest.raises(KeyboardInterrupt):
        own(job(), told)
    (stage,) = folder.glob(".measuring/stage-*.jsonl")
    before = stage.read_bytes()
    kept = []

    def keeping(plan: KitPlan, out: Path, *args: object, **options: object) -> KitRun:
        kept.append(out.read_bytes())
        return quickly(plan, out, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "measure_here", keeping)
        assert own(job()).origin.done == "measured"
    assert kept == [before]
    assert not (folder / ".measuring").exists()


def test_a_second_job_waits_and_reads(job: Job, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, told = read_latency_table(cached), Told()
    shutil.rmtree(cached)
    first = TableFolder.take(cached)

    def end_of_the_first(seconds: float) -> None:
        first.write(table)
        first.close()

    monkeypatch.setattr(machine.time, "sleep", end_of_the_first)
    made = own(job(), told)
    assert (made.origin.done, made.origin.models) == ("used", 0)
    (text,) = told.texts
    assert text.startswith("Waiting for another job that measures this machine: ")


def test_a_cache_that_cannot_be_written_costs_the_table_and_not_the_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job()
    monkeypatch.setenv("AMCSEARCH_CACHE", "/proc/nowhere")
    told = Told()
    made = own(given, told)
    assert made.origin.done == "measured"
    assert made.table.name_of(given[1].trace.network) == "tiny"
    assert any("cannot be kept" in text and "of this job alone" in text for text in told.texts)


def test_a_damaged_table_is_measured_anew(job: Job, cached: Path) -> None:
    (cached / "device.yaml").write_text("nothing: 1\n")
    told = Told()
    assert own(job(), told).origin.done == "measured"
    assert any("it is measured anew" in text for text in told.texts)


def test_a_table_whose_reorders_were_told_by_names_is_measured_anew(job: Job, cached: Path) -> None:
    table = read_latency_table(cached)
    (name,) = table.networks
    made = table.networks[name].calibration
    assert made is not None
    assert made.attribution == "order of execution"
    older = replace(table.networks[name], calibration=replace(made, attribution=None))
    write_latency_table(table.with_entry(name, older), cached)
    told = Told()
    again = own(job(), told)
    assert again.origin.done == "measured"
    assert not again.table.networks[name].is_misattributed
    assert any("older amcsearch" in text and "it is measured anew" in text for text in told.texts)


def test_a_search_keeps_the_table_that_priced_its_trials(
    write_config: WriteConfig, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_config()), tmp_path / "run"
    command = [
        "search",
        config,
        "--set",
        OWN[0],
        "--set",
        LATENCY,
        "--set",
        "search.trials=2",
        "--set",
        "search.agent=random",
    ]
    command += ["--set", "search.baseline=null", "--out", str(run)]
    assert main(command) == 0
    assert "used as it was on" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    origin = summary["table"]["origin"]
    assert (origin["folder"], origin["done"]) == (str(cached), "used")
    assert origin["folder"] in (run / "report.html").read_text()
    trials, priced = (run / "trials.csv").read_text(), table_digest(read_latency_table(run / "latency_table"))
    aged(cached, days=0.0, factor=2.0)
    assert main([*command, "--resume"]) == 0
    assert (run / "trials.csv").read_text() == trials
    assert table_digest(read_latency_table(run / "latency_table")) == priced


def test_a_run_begins_with_the_very_prices_that_it_is_resumed_with(
    job: Job, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, network = job()
    table = read_latency_table(cached)
    finer = replace(table, rows=table.rows.assign(latency_ms=table.rows["latency_ms"] / 3.0))  # more digits than a file
    just_measured = MachineTable(finer, TableOrigin(str(cached), "this machine", "measured"))
    monkeypatch.setattr(machine._Keeper, "table", lambda self: just_measured)
    with RunFolder.create(tmp_path / "run", dump(config), config_hash(config), resume=False) as run:
        first, again = (own_table(config, network, Told(), run).table for _ in range(2))
    layers = network.trace.network.layers
    assert first.bind(network.trace.network).predict(layers) == again.bind(network.trace.network).predict(layers)
    pd.testing.assert_frame_equal(first.rows, again.rows, check_exact=True)


def test_a_dry_run_says_what_it_would_measure_and_writes_nothing(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(write_config()), "--set", OWN[0], "--set", LATENCY, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "no latency table of this machine holds this network" in said
    minutes = r"at most [1-9][0-9]* minutes\); until then nothing prices latency"
    assert re.search(rf"\({1 + VARIANTS + 12} networks, {minutes}", said)
    assert "a limit on it can be met is known once the table is measured, before trial 1" in " ".join(said.split())
    assert "table " in said.splitlines()[-1]
    assert not (tmp_path / "cache" / "tables").exists()


def test_a_table_of_another_setting_is_named(job: Job, cached: Path) -> None:
    config, network = job("device.batch=2")
    text = other_setting(config, network.trace.network)
    assert text.startswith(f" in this setting (the one in {cached} is of another, and a table is of one: ")
    assert "the table was measured with 1, this run has 2" in text


def test_another_machines_table_is_corrected_into_this_machines_own(
    write_config: WriteConfig, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, other = str(write_config()), tmp_path / "other"
    table = aged(cached, days=0.0, factor=10.0)
    foreign = replace(table.provenance, cpu="another", cpu_flags="fewer")
    write_latency_table(replace(table, provenance=foreign), other)
    shutil.rmtree(cached)
    before = table_digest(read_latency_table(other))
    check = ["table", "check", str(other), config, "--fresh", "6", "--anchors", "6", "--write", "--json"]
    assert main(check) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == str(cached)
    assert said["after"]["mape"] < said["before"]["mape"]
    assert table_digest(read_latency_table(other)) == before
    learnt = read_latency_table(cached)
    assert set(learnt.networks) == {"tiny", "from another"}
    assert learnt.networks["tiny"].anchors.from_cpu == "another"
    assert learnt.networks["from another"].fingerprint is None
