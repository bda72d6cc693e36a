"""Work for devices in a folder: offered once, taken once, the same after a death; agents that lie are refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.measure.agents.received import IDENTIFYING, AgentRefusedError, JobOffer, RecordCheck
from amcsearch.measure.agents.work_list import GapError, UnknownJobError, WorkList
from amcsearch.measure.kit.kit import device_plan, plan_archive
from amcsearch.measure.kit.kit_results import ONE_EACH
from amcsearch.runtime.on_device.plan import DevicePlan
from amcsearch.runtime.on_device.records import encoded
from tests.measured_results import made_up

FIRST, SECOND = "a" * 32, "b" * 32  # two agents under one name
DEVICE = {"cpu": "Cortex-A76", "cpu_flags": "f00"}
LATENCIES = {"w64": 1.0, "w16": 0.4, "w32": 0.6}


class Clock:
    """Seconds, as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def plan(small_plan: Callable[..., Any]) -> DevicePlan:
    return device_plan(small_plan(sample_ms=1.0))


@pytest.fixture(scope="session")
def records(plan: DevicePlan) -> list[dict[str, Any]]:
    """What an honest agent would send of the plan."""
    return made_up(plan, LATENCIES, **DEVICE)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkList]:
    work = WorkList(tmp_path / "work", Clock())
    yield work
    work.close()


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(map(encoded, records))


def taken(work: WorkList, plan: DevicePlan) -> str:
    """A measurement that the agent ``FIRST`` of pi5 has."""
    work.submit("pi5", plan_archive(plan), 1)
    offer = work.next("pi5", FIRST, DEVICE)
    assert offer is not None
    return offer.job


def test_a_measurement_from_the_plan_to_the_result(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    assert work.next("pi5", FIRST, DEVICE) is None
    submitted = work.submit("pi5", plan_archive(plan), 1)
    assert (submitted.state, submitted.records) == ("waiting", 0)
    assert work.submit("pi5", plan_archive(plan), 1) == submitted  # the same again is the one that is there
    assert work.next("other", SECOND, DEVICE) is None  # it is of another device
    offer = work.next("pi5", FIRST, DEVICE)
    assert offer is not None
    assert (offer.job, offer.plan_hash, offer.threads, offer.have) == (submitted.job, plan.hash, 1, 0)
    assert work.plan("pi5", offer.job, FIRST) == plan_archive(plan)
    assert work.append("pi5", offer.job, FIRST, 0, lines(*records[:3])) == 3
    assert work.state(offer.job).state == "measuring"
    again = work.next("pi5", FIRST, DEVICE)
    assert again is not None
    assert again.have == 3
    assert work.append("pi5", offer.job, FIRST, 3, lines(*records[3:])) == len(records)
    assert work.state(offer.job).state == "done"
    assert work.result(offer.job) == lines(*records)
    assert work.next("pi5", FIRST, DEVICE) is None
    work.forget(offer.job)
    with pytest.raises(UnknownJobError, match="no longer wanted"):
        work.state(offer.job)
    assert not list((work.folder / "jobs").iterdir())


def test_records_sent_twice_count_once_and_a_gap_is_told(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    assert work.append("pi5", job, FIRST, 0, lines(*records[:4])) == 4
    assert work.append("pi5", job, FIRST, 0, lines(*records[:4])) == 4
    assert work.append("pi5", job, FIRST, 2, lines(*records[2:6])) == 6
    with pytest.raises(GapError) as gap:
        work.append("pi5", job, FIRST, 7, lines(records[7]))
    assert gap.value.have == 6
    assert work.result(job) == lines(*records[:6])


def test_a_death_of_the_server_loses_nothing_but_a_torn_line(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    work.append("pi5", job, FIRST, 0, lines(*records[:4]))
    work.close()
    with (work.folder / "jobs" / job / "result.jsonl").open("ab") as file:
        file.write(lines(records[4])[:20])
    (work.folder / "jobs" / ("c" * 32)).mkdir()  # one that was not whole when the server died
    again = WorkList(work.folder)
    offer = again.next("pi5", FIRST, DEVICE)
    assert offer is not None
    assert (offer.job, offer.have) == (job, 4)
    assert again.append("pi5", job, FIRST, 3, lines(*records[3:5])) == 5
    assert [path.name for path in (work.folder / "jobs").iterdir()] == [job]
    with pytest.raises(BadInputError, match="folder of devices' work"):
        WorkList(work.folder)
    again.close()


def test_an_agent_that_lost_its_files_begins_anew(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    work.append("pi5", job, FIRST, 0, lines(*records[:4]))
    work.restart("pi5", job, FIRST)
    assert work.state(job).records == 0
    assert work.append("pi5", job, FIRST, 0, lines(*records)) == len(records)


def test_another_agent_of_the_name_takes_over_where_the_first_is_silent(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job, clock = taken(work, plan), work._clock
    assert isinstance(clock, Clock)
    clock.now = 59.0
    assert work.next("pi5", SECOND, DEVICE) is None  # one measures at a time
    work.append("pi5", job, FIRST, 0, lines(records[0]))
    clock.now = 118.0
    assert work.next("pi5", SECOND, DEVICE) is None
    clock.now = 120.0
    offer = work.next("pi5", SECOND, DEVICE)
    assert offer is not None
    assert offer.have == 1
    with pytest.raises(UnknownJobError, match="no longer this agent's"):
        work.append("pi5", job, FIRST, 1, lines(records[1]))
    state = work.device("pi5")
    assert state is not None
    assert (state.silent_s, state.provenance["cpu"]) == (0.0, "Cortex-A76")


def test_a_measurement_that_fails_says_why(work: WorkList, plan: DevicePlan) -> None:
    job = taken(work, plan)
    work.fail("pi5", job, FIRST, "no such\nprovider")
    assert (work.state(job).state, work.state(job).reason) == ("failed", "no such provider")
    assert work.next("pi5", FIRST, DEVICE) is None
    work.close()
    again = WorkList(work.folder)
    assert again.state(job).reason == "no such provider"
    again.close()


def changed(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**record, **values}


def _lies(records: list[dict[str, Any]]) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """What a hostile agent sends, and what it is told."""
    header, overhead, timing = records[0], records[1], records[2]
    count = len(timing["samples_ms"])
    other = {**header["provenance"], "cpu": "Ryzen"}
    return {
        "no header": ([overhead], "record 0 is no header"),
        "another plan": ([changed(header, plan_hash="0" * 64)], "plan_hash is '0000"),
        "another description": ([changed(header, plan={**header["plan"], "info": {"x": 1}})], "describes another plan"),
        "another device": ([changed(header, provenance=other)], "cpu is 'Ryzen', expected 'Cortex-A76'"),
        "other provider": (
            [changed(header, provenance={**header["provenance"], "provider": "Abacus"})],
            "provider is 'A",
        ),
        "other threads": ([changed(header, provenance={**header["provenance"], "threads": 8})], "threads is 8"),
        "faster than light": ([header, changed(timing, samples_ms=[1e-9] * count)], "must be from 0.0001 to 1e+07"),
        "slower than a year": ([header, changed(overhead, samples_ms=[4e10])], "must be from 0.0001 to 1e+07"),
        "no number": ([header, changed(timing, samples_ms=[float("nan")] * count)], "samples_ms"),
        "an unknown model": ([header, changed(timing, model="../../etc/passwd")], "is not in the plan"),
        "an unknown pass": ([header, changed(timing, **{"pass": 99})], "pass = 99, the plan has 1 to 2"),
        "too many samples": (
            [header, changed(timing, samples_ms=[1.0] * 999, reference_ms=[1.0] * 999)],
            "999 samples",
        ),
        "a replay": ([header, overhead, timing, timing], "which record 2 is already"),
        "no samples": ([header, changed(timing, samples_ms=[], reference_ms=[])], "0 samples beside 0"),
        "another reference": ([header, changed(timing, reference="w16")], "timed beside 'w16', its reference is 'w64'"),
        "an absurd drift": (
            [header, {"kind": "drift", "model": "w64", "pass": 1, "ratio": float("inf")}],
            "ratio = inf, must be more than 0 and at most 10000",
        ),
        "a terminal's commands": (
            [changed(header, provenance={**header["provenance"], "ort_version": "1\x1b[2J"})],
            "ort_version is '1\\x1b[2J', must be at most 400 printable characters",
        ),
        "an unknown kind": ([header, {"kind": "shell", "run": "rm"}], "of kind 'shell', which no kit writes"),
    }


@pytest.mark.parametrize("lie", list(_lies([{"provenance": {}, "plan": {}}, {}, {"samples_ms": []}])))
def test_what_no_honest_agent_sends_is_refused_in_one_line(
    lie: str, work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    sent, told = _lies(records)[lie]
    with pytest.raises(AgentRefusedError) as refused:
        work.append("pi5", job, FIRST, 0, lines(*sent))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert work.state(job).records == 0  # nothing of it was taken


def test_a_record_that_is_here_is_refused_at_another_place(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    graph = {"kind": "graph", "model": "w16", "graph": ""}
    assert work.append("pi5", job, FIRST, 0, lines(*records[:3], graph)) == 4
    for again, told in ((records[2], "timing w64 1 record, which record 2"), (records[1], "overhead 1 record, which")):
        with pytest.raises(AgentRefusedError, match=f"record 4 is a {told}"):
            work.append("pi5", job, FIRST, 4, lines(again))
    for number in (7, [7]):  # a graph has no pass
        with pytest.raises(AgentRefusedError, match="record 5 is a graph w16 record, which record 3 is already"):
            work.append("pi5", job, FIRST, 4, lines(records[3], {**graph, "pass": number}))
    assert work.append("pi5", job, FIRST, 4, lines(records[3])) == 5  # what was refused with it was not taken
    work.restart("pi5", job, FIRST)
    assert work.append("pi5", job, FIRST, 0, lines(*records[:3], graph)) == 4


class _Counted(list[dict[str, Any]]):
    """Counts how often a record is looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1
        return super().__getitem__(at)


def test_a_check_looks_at_each_record_once(plan: DevicePlan, records: list[dict[str, Any]]) -> None:
    assert set(IDENTIFYING) == set(ONE_EACH)
    here = _Counted()
    provenance = records[0]["provenance"]
    offer = JobOffer("0" * 32, "pi5", plan.hash, provenance["threads"], provenance["provider"], None)
    check = RecordCheck(plan, offer, here)
    for record in records:
        check.check(DEVICE, [record])
        here.append(record)
    assert here.looks < 2 * len(records)  # and at the first one, the header, in every check


def test_records_with_another_content_or_cut_off_are_refused(
    work: WorkList, plan: DevicePlan, records: list[dict[str, Any]]
) -> None:
    job = taken(work, plan)
    work.append("pi5", job, FIRST, 0, lines(*records[:4]))
    with pytest.raises(AgentRefusedError, match=r"record 2 of .* was sent before with another content"):
        work.append("pi5", job, FIRST, 2, lines({**records[2], "samples_ms": records[2]["reference_ms"][::-1]}))
    with pytest.raises(AgentRefusedError, match="cut off"):
        work.append("pi5", job, FIRST, 4, lines(records[4])[:-5])
    with pytest.raises(AgentRefusedError, match="checksum"):
        work.append("pi5", job, FIRST, 4, lines(records[4]).replace(b'"pass":1', b'"pass":2'))
    assert work.result(job) == lines(*records[:4])


def test_another_device_under_the_name_is_refused(work: WorkList) -> None:
    work.next("pi5", FIRST, DEVICE)
    with pytest.raises(AgentRefusedError, match="agent pi5 is another device: cpu was 'Cortex-A76', is 'Ryzen'"):
        work.next("pi5", FIRST, {**DEVICE, "cpu": "Ryzen"})
    for name in ("../pi5", "", "a" * 65):
        with pytest.raises(AgentRefusedError, match="no such name is possible"):
            work.next(name, FIRST, DEVICE)
    for cpu in (["x"], "x" * 401, "Cortex\x1b[2J"):
        with pytest.raises(AgentRefusedError, match="what no device is"):
            work.next("pi6", FIRST, {"cpu": cpu})


def test_agents_under_ever_new_names_are_refused(work: WorkList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amcsearch.measure.agents.work_list.MOST_DEVICES", 2)
    for name in ("pi5", "pi6", "pi5"):
        work.next(name, FIRST, DEVICE)
    with pytest.raises(AgentRefusedError, match=r"agent pi7 is new, and 2 devices are known; remove the gone ones of "):
        work.next("pi7", FIRST, DEVICE)
    work.forget_device("pi6")
    assert work.next("pi7", FIRST, DEVICE) is None


def test_only_plans_are_accepted(work: WorkList, plan: DevicePlan, small_plan: Callable[..., Any]) -> None:
    with pytest.raises(BadInputError, match="the plan is refused: it is damaged"):
        work.submit("pi5", b"no archive", 1)
    with pytest.raises(BadInputError, match="threads"):
        work.submit("pi5", plan_archive(plan), 0)
    with pytest.raises(BadInputError, match="minutes = 0"):
        work.submit("pi5", plan_archive(plan), 1, minutes=0.0)
    of_two = plan_archive(device_plan(small_plan(threads=2)))
    with pytest.raises(BadInputError, match="measurement: threads = 1 is asked for, the plan is of threads = 2"):
        work.submit("pi5", of_two, 1)
    assert work.submit("pi5", of_two, 2).state == "waiting"
    assert json.loads(json.dumps(work.submit("pi5", plan_archive(plan), 1).to_json()))["device"] == "pi5"
