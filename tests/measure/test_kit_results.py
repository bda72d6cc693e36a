import json
import math
from dataclasses import replace

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.measure.kit.kit import KitModel, device_plan
from amcsearch.measure.kit.kit_results import DriftSummary, read_results
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.records import encoded


@pytest.fixture(scope="module")
def records(tmp_path_factory, small_plan, fake_clock):
    """The records of a small measurement."""
    path = tmp_path_factory.mktemp("result") / "r.jsonl"
    run(device_plan(small_plan()), path, Settings(), clock=fake_clock())
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def written(tmp_path):
    """A function that writes records with their checksums, and gives the path."""

    def write(records, name="r.jsonl"):
        (tmp_path / name).write_bytes(b"".join(map(encoded, records)))
        return tmp_path / name

    return write


def changed(records, kind, index=0, **content):
    """The records with those keys of the ``index``-th of a kind changed."""
    at = [i for i, record in enumerate(records) if record["kind"] == kind][index]
    return [*records[:at], {**records[at], **content}, *records[at + 1 :]]


def provenance_changed(records, **content):
    return changed(records, "header", provenance={**records[0]["provenance"], **content})


def summary(result):
    return [(m.id, m.latency_ms, [p.samples_ms.tolist() for p in m.passes], m.nodes) for m in result.models]


def test_a_whole_result(records, written):
    (result,) = read_results([written(records)])
    assert [m.latency_ms for m in result.models] == [100.0, 100.0, 100.0]
    assert [p.number for p in result.models[0].passes] == [1, 2]
    assert result.overhead_ms == 100.0
    assert result.drift == DriftSummary(rounds=4, disturbed_share=0.0, largest=1.0, events=())
    assert [m.id for m in result.of("train")] == ["w16", "w32"]
    assert result.of("train", "other") == ()
    assert result.notes == ()
    assert result.plan["batch"] == 1


def test_a_torn_last_line_is_noted(records, written):
    path = written(records)
    path.write_bytes(path.read_bytes()[:-20])
    (result,) = read_results([path])
    assert result.notes == (
        f"{path}: line {len(records)} is torn and was left out",
        "there is no end record: the run was broken off",
    )


def test_reordered_lines_are_the_same_result(records, written):
    (ordered,) = read_results([written(records)])
    (shuffled,) = read_results([written(records[::-1])])
    assert summary(shuffled) == summary(ordered)
    assert shuffled.notes == ()


def test_records_that_occur_twice_count_once(records, written):
    (result,) = read_results([written([*records, *records[3:6]])])
    assert result.notes == ("3 records occur twice and were counted once",)
    assert result.coverage.timed == (3, 3)


def test_two_results_of_one_model_are_refused(records, written):
    other = changed(records, "timing", samples_ms=[99.0, 99.0])
    at = next(i for i, record in enumerate(records) if record["kind"] == "timing")
    with pytest.raises(BadInputError, match=r"line \d+ and .*line \d+ hold different results of timing w64 pass 1"):
        read_results([written([*records, other[at]])])


def test_an_edited_line_is_named(records, written):
    path = written(records)
    path.write_bytes(path.read_bytes().replace(b'"pass":2,"samples_ms":[100.0', b'"pass":2,"samples_ms":[10.0', 1))
    with pytest.raises(BadInputError, match=r"r\.jsonl, line \d+: .*not match its checksum.*bring the file"):
        read_results([path])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e9, 1e-9])
def test_impossible_times_are_dropped_with_their_references(records, written, bad):
    (result,) = read_results([written(changed(records, "timing", 1, samples_ms=[bad, 100.0]))])
    model = result.models[1]
    assert model.passes[0].samples_ms.tolist() == model.passes[0].reference_ms.tolist() == [100.0]
    assert result.notes == ("model w16: 1 of 4 times are impossible and were left out",)


def test_impossible_reference_times_are_dropped_too(records, written):
    (result,) = read_results([written(changed(records, "timing", 1, reference_ms=[100.0, math.nan]))])
    assert result.models[1].passes[0].samples_ms.tolist() == [100.0]
    assert result.drift.largest == 1.0


def test_a_model_without_any_possible_time_is_refused(records, written):
    bad = [
        {**r, "samples_ms": [0.0, math.nan]} if r["kind"] == "timing" and r["model"] == "w16" else r for r in records
    ]
    with pytest.raises(BadInputError, match="model w16: none of its 4 times is a possible one; measure again"):
        read_results([written(bad)])


def test_a_profile_of_impossible_times_is_left_out(records, written):
    (result,) = read_results([written(changed(records, "profile", nodes=[["conv", "Conv", -1.0, [], []]]))])
    assert result.models[0].nodes == ()
    assert result.notes == ("model w64: its profile holds impossible times and was left out",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", "Z80"),
        ("cpu_flags", "0"),
        ("ort_version", "0"),
        ("provider", "X"),
        ("threads", 9),
        ("batch", 9),
        ("dtype", "q"),
    ],
)
def test_two_devices_are_not_mixed(records, written, key, value):
    paths = [written(records, "a"), written(provenance_changed(records, **{key: value}), "b")]
    with pytest.raises(BadInputError, match=rf"two devices: {key} is .* in .*a, line 1, {value} in .*b, line 1"):
        read_results(paths)


def test_parts_of_one_run_combine(records, written):
    """A run in two files: the second begins with a header of its own."""
    header, end = records[0], records[-1]
    first, second = records[1:8], records[8:-1]
    paths = [written([header, *first], "a"), written([{**header, "part": 2}, *second, end], "b")]
    (result,) = read_results(paths)
    assert summary(result) == summary(read_results([written(records)])[0])
    assert result.notes == ()


def test_results_of_two_networks_are_two_results_of_one_device(tmp_path, records, written, small_plan, fake_clock):
    run(device_plan(small_plan((8,))), tmp_path / "other", Settings(), clock=fake_clock())
    both = read_results([written(records), tmp_path / "other"])
    assert [[m.id for m in result.models] for result in both] == [["w64", "w16", "w32"], ["w64", "w8"]]


def test_what_was_not_measured_is_said(tmp_path, records, written, small_plan, fake_clock):
    few = [r for r in records[:-1] if r.get("model") != "w32"]
    (result,) = read_results([written(few)])
    assert result.models[2].passes == ()
    assert result.models[2].latency_ms is None
    assert result.models[2].graph is None
    assert result.coverage.left_out == ("w32",)
    assert "1 of 3 models were left out for lack of time" in result.notes


def test_models_that_failed_are_named_with_the_reason(records, written):
    few = [r for r in records if r.get("model") != "w32"]
    (result,) = read_results([written([*few, {"kind": "failed", "model": "w32", "reason": "no kernel"}])])
    assert result.coverage.failed == {"w32": "no kernel"}
    assert result.coverage.left_out == ()
    assert result.notes == ("model w32 could not be run: no kernel",)


def test_a_reason_commands_no_terminal(records, written):
    few = [r for r in records if r.get("model") != "w32"]
    reason = "no\x1b[2J\nkernel" + 1000 * "!"
    (result,) = read_results([written([*few, {"kind": "failed", "model": "w32", "reason": reason}])])
    assert result.coverage.failed["w32"].startswith(r"no\x1b[2J kernel!")
    assert len(result.coverage.failed["w32"]) == 400


def test_files_that_cannot_be_used_are_refused(tmp_path, records, written):
    with pytest.raises(BadInputError, match="no result file is given"):
        read_results([])
    with pytest.raises(BadInputError, match=r"cannot read .*missing: No such file"):
        read_results([tmp_path / "missing"])
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(BadInputError, match=r"empty is empty; run the kit"):
        read_results([tmp_path / "empty"])
    (tmp_path / "diary").write_text("dear diary\n")
    with pytest.raises(BadInputError, match="diary, line 1: the line does not match its checksum"):
        read_results([tmp_path / "diary"])
    for refused, message in [
        (records[1:], "holds no header"),
        (changed(records, "header", kit_version=0), "kit version 0, this program reads 1; build a kit"),
        ([*records, {**records[0], "plan_hash": "other"}], "another plan than"),
        (records[:3], "the result holds no time; run the kit again"),
        (changed(records, "timing", model="w7"), "model 'w7' is not in the plan"),
    ]:
        with pytest.raises(BadInputError, match=message):
            read_results([written(refused)])
    with pytest.raises(BadInputError, match=f"result of plan {records[0]['plan_hash'][:12]}, not of 0123; bring"):
        read_results([written(records)], plan_hash="0123")


def test_a_plan_knows_its_results(tmp_path, records, written, small_plan, conv_model):
    """Any change of what is measured is another plan."""
    plan = small_plan()
    assert device_plan(plan).hash == records[0]["plan_hash"]
    others = [
        replace(plan, rounds=3),
        replace(plan, models=plan.models[:-1]),
        replace(plan, models=(*plan.models[:-1], KitModel("w32", conv_model(31), "net", "train", {"hidden": 32}))),
        replace(plan, models=(*plan.models[:-1], KitModel("w32", conv_model(32), "net", "train", {"hidden": 31}))),
    ]
    assert len({device_plan(other).hash for other in [plan, *others]}) == 5
