"""What was measured while the device was slow is measured again: made-up records of a host whose speed is scripted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.config.loading import load
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs import measurements, table_check
from amcsearch.jobs.measurements import Measurements, request_of
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.table_check import check_table
from amcsearch.jobs.tables import subject_of
from amcsearch.measure import KitPlan, KitResult, MeasuredSubject, measurement_plan
from amcsearch.measure.build import measured
from amcsearch.measure.build.measured import measured_variants, slowed_models
from amcsearch.measure.kit.kit import device_plan
from amcsearch.measure.kit.kit_results import TimedPass
from amcsearch.runtime.on_device.records import encoded
from tests.measured_results import made_up, table_of_another_device

WriteConfig = Callable[..., Path]
DENSE, SLOW, QUIET = "net/dense", ("net/003", "net/007"), ("net/001", "net/002", "net/004")
MODELS = 16  # the dense network among them
DENSE_MS, PRUNED_MS = 4.0, 2.0


@pytest.fixture(autouse=True)
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "SLOWED", 1.10)  # other tests measure at any speed


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.warnings: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Host:
    """Writes the records of a run in which it is ``factors[run][model]`` times slower beside a model; keeps plans.

    ``lacking`` models are not timed in runs after the first. A minute passes with each run.
    """

    def __init__(self, *factors: Mapping[str, float], lacking: tuple[str, ...] = ()) -> None:
        self.factors, self.lacking = factors, lacking
        self.plans: list[list[str]] = []
        self.bounds: list[float | None] = []
        self.looked_at: list[str] = []

    def monotonic(self) -> float:
        return 60.0 * len(self.plans)

    def measure(self, minutes: float | None, plan: KitPlan, out: Path) -> None:
        self.looked_at.append(out.name)
        if out.exists():
            return
        factors = self.factors[len(self.plans)]
        self.plans.append([model.id for model in plan.models])
        self.bounds.append(minutes)
        latency_ms = {model.id: DENSE_MS if model.id.endswith("/dense") else PRUNED_MS for model in plan.models}
        records = [self.slowed(record, factors) for record in made_up(device_plan(plan), latency_ms)]
        out.write_bytes(b"".join(encoded(record) for record in records if not self.is_lacking(record)))

    def is_lacking(self, record: Mapping[str, Any]) -> bool:
        return len(self.plans) > 1 and record["kind"] == "timing" and record["model"] in self.lacking

    @staticmethod
    def slowed(record: dict[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
        if record["kind"] != "timing":
            return record
        factor = factors.get(record["model"], factors.get("all", 1.0))
        return {**record, **{key: [factor * ms for ms in record[key]] for key in ("samples_ms", "reference_ms")}}


Settle = Callable[..., list[KitResult]]


@pytest.fixture
def settle(tmp_path: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> Settle:
    """Measure a stage of one network by a host; what is kept lies in one folder."""
    model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 3), nn.Flatten(), nn.Linear(128, 2)).eval()
    x = torch.zeros(1, 1, 8, 8)
    subject = MeasuredSubject("net", model, trace(model, x), x)

    def run(host: Host, observer: Observer, minutes: float | None = None) -> list[KitResult]:
        monkeypatch.setattr(measurements, "time", SimpleNamespace(monotonic=host.monotonic))
        kept = Measurements(tmp_path / "kept", resume=True)
        kept.begin(request_of("measure", load(write_config()), subject, None, 0, 12))

        def make_plan() -> KitPlan:
            return measurement_plan([subject], variants=12, held_out=4)

        return kept.settled(1, make_plan, host.measure, minutes, observer)

    return run


def ids(result: KitResult) -> set[str]:
    return {model.id for model in result.models}


def latencies_ms(results: list[KitResult]) -> list[float]:
    parts = [measured_variants(result, "net") for result in results]
    return [v.latency_ms for part in parts for v in (*part.building, *part.held_out) if v.policy != part.network.dense]


def model(name: str, *passes_ms: list[float], role: str = "building") -> Any:
    passes = tuple(TimedPass(n, np.ones(len(ms)), np.array(ms)) for n, ms in enumerate(passes_ms, 1))
    return SimpleNamespace(id=name, network="net", role=role, passes=passes)


def test_a_model_is_slowed_whose_every_pass_the_reference_was_slow_in() -> None:
    dense = model("dense", [1.0] * 4, [1.0] * 4, role="reference")
    once, always, little = model("once", [1.7] * 4, [1.0] * 4), model("always", [1.66] * 4, [1.7] * 4), [1.09] * 4
    result: Any = SimpleNamespace(models=[dense, once, always, model("little", little), model("graph")])
    assert slowed_models([result]) == {"always": pytest.approx(1.66)}
    again: Any = SimpleNamespace(models=[model("dense", [1.5] * 4, role="reference"), model("always", [1.5] * 4)])
    first: Any = SimpleNamespace(models=[dense, once])
    assert slowed_models([first, again]) == {"always": 1.5}  # throughout, which the first result tells; dense is known


def test_a_quiet_device_is_measured_once(settle: Settle) -> None:
    host, told = Host({}), Told()
    (result,) = settle(host, told)
    assert len(ids(result)) == MODELS
    assert (len(host.plans), told.phases, told.warnings) == (1, [], [])


def test_what_was_slowed_is_measured_again_and_counts_in_its_place(settle: Settle, tmp_path: Path) -> None:
    host, told = Host(dict.fromkeys(SLOW, 1.66), {}), Told()
    first, again = settle(host, told, minutes=9.5)
    assert host.plans[1] == [DENSE, *SLOW]
    assert host.bounds == [9.5, 8.5]
    assert told.phases == [
        "2 of 16 networks were timed only while the device was up to 66% slower than in its quiet moments; "
        "measuring them again (1 of 2, at most 9 minutes)"
    ]
    assert told.warnings == []
    assert ids(again) == {DENSE, *SLOW}
    assert not ids(first) & set(SLOW)
    assert latencies_ms([first, again]) == pytest.approx([PRUNED_MS] * (MODELS - 1), rel=0.01)  # none of 1.66 times
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "request.json",
        "stage-1-again-1.jsonl",
        "stage-1.jsonl",
    ]


def test_a_run_broken_off_goes_on_with_what_was_measured_again(settle: Settle, tmp_path: Path) -> None:
    host = Host(dict.fromkeys(SLOW, 1.66), {SLOW[0]: 1.3}, {})
    before = settle(host, Told())
    assert host.plans[1:] == [[DENSE, *SLOW], [DENSE, SLOW[0]]]
    resumed = Host()
    after = settle(resumed, Told())
    assert resumed.looked_at == ["stage-1-again-2.jsonl"]  # those before it are closed
    assert [ids(result) for result in after] == [ids(result) for result in before]
    (tmp_path / "kept" / "stage-1-again-2.jsonl").unlink()
    (tmp_path / "kept" / "stage-2.jsonl").touch()  # of a run that went on to the next stage
    older, told = Host(), Told()
    assert [ids(result) for result in settle(older, told)] == [ids(before[0]), ids(before[1]) | {SLOW[0]}]
    assert (older.looked_at, len(told.warnings)) == ([], 1)


def test_a_device_that_stays_slow_is_measured_again_twice_and_then_told(settle: Settle) -> None:
    slow = dict.fromkeys(SLOW, 1.5)
    host, told = Host(slow, {"all": 1.5}, {"all": 1.4}), Told()
    results = settle(host, told)
    assert host.plans[1:] == [[DENSE, *SLOW]] * 2
    assert len(results) == 3
    assert [text.partition(";")[2] for text in told.phases] == [
        " measuring them again (1 of 2)",
        " measuring them again (2 of 2)",
    ]
    (warning,) = told.warnings
    assert warning.startswith("2 of 16 networks were timed only while the device was up to 40% slower")
    assert warning.endswith("a table of them may err: measure it again on an idle machine")


def test_where_the_dense_network_was_slowed_all_is_measured_again(settle: Settle) -> None:
    host = Host({"all": 1.4, **dict.fromkeys(QUIET, 1.0)}, {})
    (again,) = settle(host, Told())
    assert host.plans[1] == host.plans[0]
    assert len(ids(again)) == MODELS
    assert latencies_ms([again]) == pytest.approx([PRUNED_MS] * (MODELS - 1), rel=0.01)


def test_what_time_was_too_short_for_stays_as_it_was(settle: Settle) -> None:
    host, told = Host(dict.fromkeys(SLOW, 1.5), {}, {}, lacking=SLOW[:1]), Told()
    results = settle(host, told)
    assert [len(ids(result)) for result in results] == [MODELS - 1, 2, 1]
    assert SLOW[0] in ids(results[0])
    assert len(told.warnings) == 1


def test_no_minutes_left_is_no_second_try(settle: Settle) -> None:
    host, told = Host(dict.fromkeys(SLOW, 1.5)), Told()
    assert len(settle(host, told, minutes=1.2)) == 1  # the first run took one, and 0.2 are too few to time anything
    assert (len(host.plans), told.phases, len(told.warnings)) == (1, [], 1)


def test_an_incomplete_second_run_of_all_replaces_nothing(settle: Settle) -> None:
    host = Host({"all": 1.4, **dict.fromkeys(QUIET, 1.0)}, {}, {}, lacking=QUIET[:1])
    (result,) = settle(host, Told())
    assert len(ids(result)) == MODELS
    assert result.of("reference")[0].passes[0].reference_ms[0] == pytest.approx(1.4 * DENSE_MS, rel=0.01)


def test_a_check_measures_again_what_was_slowed(
    tmp_path: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, told = load(write_config()), Told()
    subject = subject_of(config)
    table = table_of_another_device(subject.trace.network)
    slow = "tiny/002"
    host = Host({slow: 1.66}, {})
    monkeypatch.setattr(table_check, "_measure", lambda config, observer, *given: host.measure(*given))
    kept = Measurements(tmp_path / "kept", resume=False)
    checked = check_table(table, config, told, fresh=4, seed=0, measurements=kept, subject=subject)
    dense, *others = host.plans[0]
    assert host.plans[1] == [dense, slow]
    assert len(others) == 4
    assert any("1 of 5 networks were timed only while the device was up to 66% slower" in text for text in told.phases)
    assert told.warnings == []
    assert checked.before is not None
    assert checked.before.variants == 4  # each once
    again = Host({})
    monkeypatch.setattr(table_check, "_measure", lambda config, observer, *given: again.measure(*given))
    quiet = check_table(table, config, told, fresh=4, seed=0, subject=subject)
    assert quiet.before == checked.before  # nothing is left of what was slow
