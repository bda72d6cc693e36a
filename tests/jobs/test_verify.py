"""A search for a device that is not here: predictions and a kit; then what the device measured is taken or refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amcsearch
from amcsearch.cli.main import main
from amcsearch.core.errors import BadInputError
from amcsearch.jobs.delivery import finalist_name
from amcsearch.jobs.measuring import renew_kit
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.summary import with_measurement
from amcsearch.measure.kit.kit import KitModel, KitPlan, write_kit
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.summary import Summary
from amcsearch.runtime.on_device.plan import InputSpec, read_plan
from amcsearch.runtime.on_device.records import encoded
from amcsearch.runtime.paired_latency import paired_samples
from amcsearch.service.measured_kinds import VerifyRequest
from tests.conftest import TINY_JOB
from tests.measured_results import made_up, write_result
from tests.offline_run import offline_run

SETTINGS = ["search.agent=random", "search.trials=8", "device.location=offline", "budget={latency_ms: 0.9x}"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of an offline search, and what it printed."""
    with offline_run(tmp_path_factory.mktemp("offline"), "search", SETTINGS) as run_and_text:
        yield run_and_text


@pytest.fixture
def run(searched: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    return Path(shutil.copytree(searched[0], tmp_path / "run"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with one line; gives it."""

    def refuse(*arguments: object) -> str:
        assert main(list(map(str, arguments))) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch: ")]
        return line

    return refuse


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def finalists_of(run: Path) -> list[dict[str, Any]]:
    return list(summary_of(run)["finalists"])


def latencies(run: Path, chosen_ms: float = 0.4, others_ms: float = 0.9) -> dict[str, float]:
    """Of the chosen finalist, of all others, and 1 ms for the dense network."""
    pairs = {f"trial-{each['trial']}": chosen_ms if each["chosen"] else others_ms for each in finalists_of(run)}
    return {"dense": 1.0, **pairs}


def test_a_search_for_an_absent_device_ends_with_predictions_and_two_commands(searched: tuple[Path, str]) -> None:
    run, printed = searched
    summary, report = summary_of(run), (run / "report.html").read_text()
    name = summary["device"]["name"]
    assert f"predicted, not yet measured on {name}" in printed
    assert f"predicted, not yet measured on {name}" in report
    assert f"amcsearch verify kit {run} -o verify.pyz" in printed
    assert f"amcsearch verify {run} result.jsonl" in printed
    assert "amcsearch verify kit run -o verify.pyz" in report
    assert "amcsearch verify run result.jsonl" in report
    assert summary["device"]["measured"] is summary["latency_ratio"] is summary["dense"]["latency_ms_measured"] is None
    assert summary["verdict"]["state"] == "undecided"
    assert summary["verdict"]["limits"][0]["measured"] is None
    assert Summary.from_json(summary).to_json() == summary
    first = [each for each in summary["finalists"] if "round" not in each]
    cheaper = [each for each in summary["finalists"] if each.get("round") == 2]
    assert len(first) == 2
    assert [each["chosen"] for each in cheaper] == [False] * len(cheaper)
    limit = summary["budget"]["latency_ms"]["limit"]
    assert all(each["latency_ms_predicted"] <= 0.9 * limit for each in cheaper)
    assert all("reward_trained" in each for each in first)
    assert all("reward_trained" not in each for each in cheaper)


class Silent(Observer):
    """Shows nothing."""


def test_a_job_verifies_a_copy_of_another_jobs_run(run: Path, tmp_path: Path) -> None:
    """As the local call does, also where an earlier attempt ended while it copied."""
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", latencies(run), cpu="Cortex-A76")
    there, here = tmp_path / "runs" / ("a" * 16) / "run", tmp_path / "runs" / ("b" * 16) / "run"
    shutil.copytree(run, there)
    (here.parent / ".run").mkdir(parents=True)
    request = VerifyRequest({}, "a" * 16, str(result))
    request.check()
    shown = request.run(here, Silent())
    local = amcsearch.verify(run, result, observer=Silent()).summary.to_json()
    assert {**shown, "seconds": 0} == {**local, "seconds": 0}
    assert summary_of(here) == shown
    assert summary_of(there)["device"]["measured"] is None
    assert not (here.parent / ".run").exists()


def test_the_kit_measures_the_dense_network_and_every_finalist(run: Path, tmp_path: Path) -> None:
    assert main(["verify", "kit", str(run), "-o", str(tmp_path / "verify.pyz")]) == 0
    plan = read_plan(tmp_path / "verify.pyz")
    assert [entry.id for entry in plan.entries] == ["dense", *(f"trial-{each['trial']}" for each in finalists_of(run))]
    assert not any(entry.profiled for entry in plan.entries)
    assert main(["verify", "kit", str(run), "-o", str(tmp_path / "verify.pyz")]) == 0  # a kit may be replaced


def test_a_measurement_that_confirms_the_choice_is_taken_without_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (run / "pruned.safetensors").read_bytes()
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", latencies(run), cpu="Cortex-A76")
    assert main(["verify", str(run), str(result)]) == 0
    said = capsys.readouterr()
    assert "0.400x of dense, measured in pairs (0.400–0.400) on Cortex-A76" in said.out
    assert "epoch" not in said.err
    assert (run / "pruned.safetensors").read_bytes() == weights
    assert (run / "measured.jsonl").read_bytes() == result.read_bytes()
    summary = summary_of(run)
    assert summary["device"]["name"] == "Cortex-A76"
    assert summary["latency_ratio"]["median"] == pytest.approx(0.4)
    assert summary["finetuned"]["latency_ms_measured"]["median"] == pytest.approx(0.4, rel=2e-3)
    assert summary["dense"]["latency_ms_measured"]["median"] == pytest.approx(1.0, rel=2e-3)
    assert summary["verdict"]["state"] == "met"
    assert all(each["latency_ms_measured"] is not None for each in summary["finalists"])
    assert any("predicted for" in text and "measured on Cortex-A76" in text for text in summary["warnings"])
    report = (run / "report.html").read_text()
    assert "on Cortex-A76" in report
    assert "not yet" not in report
    assert amcsearch.load(run).verdict.state == "met"


def test_a_measurement_stays_where_a_search_that_goes_on_delivers_the_same_networks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", latencies(run))
    assert main(["verify", str(run), str(result)]) == 0
    assert main(["search", str(run / "config.yaml"), "-o", str(run), "--resume"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "measured these networks before" in line]
    assert f"amcsearch verify {run} {run / 'measured.jsonl'}" in said
    assert summary_of(run)["verdict"]["state"] != "met"
    assert main(["verify", str(run), str(run / "measured.jsonl")]) == 0
    assert summary_of(run)["verdict"]["state"] == "met"
    assert (run / "measured.jsonl").read_bytes() == result.read_bytes()
    (gone,) = renew_kit(RunFolder.open(run), None)
    assert "of other networks and is gone" in gone
    assert not (run / "measured.jsonl").exists()


def test_a_prediction_that_the_device_refutes_is_told_with_how_to_measure_the_table_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A twentieth of the dense network's milliseconds, where the table predicts several times as much."""
    shares = latencies(run, chosen_ms=0.05, others_ms=0.9)
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", shares, cpu="Cortex-A76")
    assert main(["verify", str(run), str(result)]) == 0
    summary = summary_of(run)
    (told,) = [text for text in summary["verdict"]["warnings"] if "the latency table errs" in text]
    assert "measured are 0.05 (0.05–0.05), so another policy may fit the limits better; measure it again:" in told
    assert "amcsearch table build result.jsonl" in told
    assert told in summary["warnings"]
    assert "the latency table errs on the delivered network" in capsys.readouterr().out
    assert "the latency table errs on the delivered network" in (run / "report.html").read_text()


def test_a_refuted_prediction_of_a_network_without_a_block_says_what_no_table_prices(run: Path) -> None:
    summary = Summary.from_json(summary_of(run))
    gone = replace(summary, network=(*summary.network[1:], replace(summary.network[0], kept=0)))
    timed = paired_samples(np.full(40, 1.0), np.full(40, 0.05))
    all_timed = {finalist_name(each.trial): timed for each in summary.finalists}
    assert summary.device is not None
    for each, is_told in ((gone, True), (summary, False)):
        measured = with_measurement(each, all_timed, summary.device, None, "measure it later")
        (text,) = [text for text in measured.warnings if "the latency table errs" in text]
        assert ("no table prices the constants that its vanished blocks leave; measure it again" in text) == is_told


def test_too_few_rounds_are_told_without_an_interval(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        record for record in made_up(read_plan(run / "verify.pyz"), latencies(run)) if record.get("pass", 1) == 1
    ]
    for record in records:
        for key in record.keys() & {"samples_ms", "reference_ms"}:
            record[key] = record[key][:2]
    (tmp_path / "result.jsonl").write_bytes(b"".join(map(encoded, records)))
    assert main(["verify", str(run), str(tmp_path / "result.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "latency: undecided, too few rounds: the 0.40x of dense that were measured on" in printed
    assert "0.400 (undecided)" in printed
    assert "too few rounds: 2 of 2 were quiet, at least 5 are needed; predicted" in printed
    assert f"; measure it on an idle device: amcsearch verify kit {run} -o verify.pyz\n" in printed  # no patience there
    report = (run / "report.html").read_text()
    assert "too few rounds" in report
    assert "too busy" not in printed + report
    assert "95 % bootstrap interval" not in report


def test_only_the_notes_of_the_newest_result_are_kept(run: Path, tmp_path: Path) -> None:
    good = write_result(run / "verify.pyz", tmp_path / "good.jsonl", latencies(run), cpu="Cortex-A76")
    lines = good.read_bytes().splitlines(keepends=True)
    (tmp_path / "early.jsonl").write_bytes(b"".join(lines[:-1]))
    other = write_result(run / "verify.pyz", tmp_path / "other.jsonl", latencies(run), cpu="Neoverse-N1")
    expected = summary_of(run)["device"]["name"]
    for result, cpu, count in ((tmp_path / "early.jsonl", "Cortex-A76", 2), (other, "Neoverse-N1", 1)):
        amcsearch.verify(run, result)
        notes = [text for text in summary_of(run)["warnings"] if text.startswith("measurement: ")]
        assert len(notes) == count
        assert f"latency was predicted for {expected} and measured on {cpu}" in notes[-1]


def test_a_torn_result_names_its_line_and_what_is_missing(
    run: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = write_result(run / "verify.pyz", tmp_path / "good.jsonl", latencies(run)).read_bytes()
    lines, torn = content.splitlines(keepends=True), tmp_path / "torn.jsonl"
    for kept, reason in ((0, "holds no header"), (2, "the result holds no time"), (3, "has not timed trial-")):
        torn.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        line = refused("verify", run, torn)
        assert (
            f"{torn}: line {kept + 1}, the last, is torn: the file was cut off; copy it again from the device" in line
        )
        assert reason in line
    networks, planned = len(latencies(run)), 5 * len(latencies(run))  # five passes
    torn.write_bytes(b"".join(lines[: 2 + networks]) + lines[2 + networks][:20])  # header, overhead, and one pass
    assert main(["verify", str(run), str(torn)]) == 0
    said = capsys.readouterr().out
    assert f"line {3 + networks} is torn" in said
    assert f"{networks} of {planned} planned timings are in the result; copy it again from the device, or run" in said


def test_the_finalist_that_the_measurement_chooses_is_trained_and_delivered(run: Path, tmp_path: Path) -> None:
    finalists = finalists_of(run)
    other = next(each for each in finalists if not each["chosen"] and "round" not in each)
    slow = latencies(run, chosen_ms=1.1, others_ms=1.2) | {f"trial-{other['trial']}": 0.5}
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", slow)
    before, evaluations = read_plan(run / "verify.pyz").hash, summary_of(run)["evaluations"]
    measured = amcsearch.verify(run, result)
    assert dict(measured.policy) == other["policy"]
    summary = summary_of(run)
    assert [each["trial"] for each in summary["finalists"] if each["chosen"]] == [other["trial"]]
    assert len(summary["finalists"]) == len(finalists)
    assert summary["latency_ratio"]["median"] == pytest.approx(0.5)
    assert summary["verdict"]["state"] == "met"
    assert summary["evaluations"] == evaluations
    assert read_plan(run / "verify.pyz").hash == before
    again = amcsearch.verify(run, result)  # the same measurement again changes nothing
    assert again.summary.to_json() == summary


def test_where_none_of_the_first_is_fast_enough_a_cheaper_one_is_delivered(run: Path, tmp_path: Path) -> None:
    cheaper = next(each for each in finalists_of(run) if each.get("round") == 2)
    slow = latencies(run, chosen_ms=0.95, others_ms=0.96) | {f"trial-{cheaper['trial']}": 0.7}
    amcsearch.verify(run, write_result(run / "verify.pyz", tmp_path / "result.jsonl", slow))
    assert [each["trial"] for each in finalists_of(run) if each["chosen"]] == [cheaper["trial"]]


def test_without_the_network_the_error_says_what_to_hand_over(run: Path, tmp_path: Path) -> None:
    other = next(each for each in finalists_of(run) if not each["chosen"] and "round" not in each)
    slow = latencies(run, chosen_ms=1.1, others_ms=1.2) | {f"trial-{other['trial']}": 0.5}
    result, config = write_result(run / "verify.pyz", tmp_path / "result.jsonl", slow), run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(f"factory: {TINY_JOB}:network", "factory: null"))
    assert config.read_text() != text
    before = summary_of(run)
    with pytest.raises(
        BadInputError, match=r"chooses trial \d+ in place .* amcsearch\.verify\(.*, RESULT, model, data"
    ):
        amcsearch.verify(run, result)
    assert summary_of(run) == before


def test_results_that_are_not_of_this_run_are_refused_in_one_line(
    run: Path, tmp_path: Path, refused: Callable[..., str], conv_model: Callable[[int], bytes]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    good = write_result(run / "verify.pyz", tmp_path / "good.jsonl", latencies(run))
    table_plan = KitPlan(
        (KitModel("w", conv_model(8), "net", "reference"),), 1, "float32", {"net": InputSpec((1, 16, 8, 8))}
    )
    write_kit(table_plan, tmp_path / "table.pyz")
    of_table = write_result(tmp_path / "table.pyz", tmp_path / "table.jsonl", {"w": 1.0})
    line = refused("verify", run, of_table)
    assert "is the result of a table kit; make a table of it with `amcsearch table build`" in line
    line = refused("table", "build", good, "-o", tmp_path / "table")
    assert "of a verify kit, which makes no table; give it to `amcsearch verify RUN RESULT`" in line

    plan = read_plan(run / "verify.pyz")
    records = made_up(plan, latencies(run))
    foreign = [{**records[0], "plan_hash": "f" * 64}, *records[1:]]
    (tmp_path / "foreign.jsonl").write_bytes(b"".join(map(encoded, foreign)))
    assert "was measured with another kit (ffffffffffff) than that of run" in refused(
        "verify", run, tmp_path / "foreign.jsonl"
    )
    absurd = write_result(run / "verify.pyz", tmp_path / "absurd.jsonl", dict.fromkeys(latencies(run), 1e-09))
    assert "MACs a second, at most 1e+14 are possible" in refused("verify", run, absurd)
    threads = write_result(run / "verify.pyz", tmp_path / "threads.jsonl", latencies(run), threads=4)
    assert "threads = 4, device.threads is 1; run the kit with --threads 1" in refused("verify", run, threads)
    other = write_result(
        run / "verify.pyz", tmp_path / "provider.jsonl", latencies(run), provider="OpenVINOExecutionProvider"
    )
    line = refused("verify", run, other)
    assert "provider = OpenVINOExecutionProvider, device.provider is CPUExecutionProvider" in line
    assert "run the kit with --provider CPUExecutionProvider" in line

    content = good.read_bytes()
    (tmp_path / "edited.jsonl").write_bytes(content.replace(b'"pass":1', b'"pass":2', 1))
    assert "does not match its checksum" in refused("verify", run, tmp_path / "edited.jsonl")
    (tmp_path / "cut.jsonl").write_bytes(b"".join(content.splitlines(keepends=True)[:3]))
    assert "has not timed trial-" in refused("verify", run, tmp_path / "cut.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert "is empty" in refused("verify", run, tmp_path / "empty.jsonl")
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    assert {name for name in after if after[name] != before.get(name)} <= {"log.jsonl"}


def test_runs_that_no_kit_can_measure_are_refused_in_one_line(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    kit = tmp_path / "verify.pyz"
    assert "say where the kit goes" in refused("verify", "kit", run)
    assert "is no run folder" in refused("verify", "kit", tmp_path, "-o", kit)
    summary = summary_of(run)
    summary["device"] |= {"location": "here", "name": "this CPU", "measured": "now"}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "was measured on this CPU; to have another device measure it" in refused("verify", "kit", run, "-o", kit)
    (run / "summary.json").unlink()
    assert "has not finished: there is nothing to measure yet" in refused("verify", "kit", run, "-o", kit)
    assert not kit.exists()
