"""Every kind of job that a service takes, submitted as over HTTP and run as a worker runs it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from amcsearch.config import read_unchecked
from amcsearch.jobs.observer import Observer
from amcsearch.service.job_kinds import KINDS, read_request, request_of
from tests.measured_results import measure_small, write_result


class Silent(Observer):
    """Shows nothing."""


@pytest.mark.slow
def test_every_kind_runs(write_config: Callable[..., Path], tmp_path: Path) -> None:
    values = read_unchecked(write_config())
    quick = {"search.agent": "random", "search.trials": 4, "device.rounds": 4}
    table = str(tmp_path / "runs" / "table_measure" / "run")
    offline = {**quick, "device.location": "offline", "device.table": table, "budget": {"latency_ms": "0.9x"}}
    made: dict[str, Mapping[str, object]] = {}

    def run(kind: str, folder_name: str, settings: Mapping[str, object] | None, **arguments: object) -> Path:
        keys: dict[str, object] = {} if settings is None else {"config": values, "settings": settings}
        _, request = read_request({"kind": kind, **keys, **arguments})
        folder = tmp_path / "runs" / folder_name / "run"
        folder.parent.mkdir(parents=True)
        made[kind] = request_of(kind, request.to_json()).run(folder, Silent())
        return folder

    run("table_measure", "table_measure", quick, variants=12)
    measured = measure_small("small", 32, tmp_path / "small.jsonl")
    run("table_build", "table_build", None, name="board", results=[str(measured)])
    run("table_check", "table_check", quick, table=table, fresh=3)
    run("prune", "prune", {**quick, "prune.target": {"macs": "0.6x"}})
    run("sparsify", "sparsify", quick)
    run("front", "front", quick, evaluations=4)
    run("compare", "compare", quick, agents=["uniform", "random"], seeds=[0])
    job = "0123456789abcdef"
    folder = run("search", job, offline)
    finalists = made["search"]["finalists"]
    assert isinstance(finalists, list)
    latencies = {"dense": 1.0, **{f"trial-{each['trial']}": 0.4 for each in finalists}}
    result = write_result(folder / "verify.pyz", tmp_path / "result.jsonl", latencies, cpu="Cortex-A76")
    run("verify", "verify", {}, job=job, result=str(result))
    assert made["verify"]["device"]["name"] == "Cortex-A76"
    assert set(made) == set(KINDS)
