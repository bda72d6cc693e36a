"""The executor on a Dask cluster: the same results as in this process, deaths survived, a lost scheduler told."""

import sys
from collections import deque
from pathlib import Path
from types import ModuleType

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation import cluster
from amcsearch.evaluation.cluster import ClusterExecutor
from amcsearch.evaluation.executors import Engine

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    import spawned_fakes

    return spawned_fakes


@pytest.fixture
def address(dask_cluster) -> str:
    return dask_cluster.address


def kept(*counts: int) -> list[PruningPolicy]:
    return [PruningPolicy({"g": n}) for n in counts]


@pytest.fixture
def warnings() -> list[str]:
    return []


def executor(address: str, evaluator: object, warnings: list[str]) -> ClusterExecutor:
    return ClusterExecutor(evaluator, address, warnings.append)


def test_results_come_in_order_from_workers_that_lack_the_evaluators_module(address, fakes, warnings) -> None:
    on_cluster = executor(address, fakes.Echo(), warnings)
    assert [e.loss for e in on_cluster.map(kept(5, 4, 9, 1, 7))] == [5, 4, 9, 1, 7]
    assert [e.loss for e in on_cluster.map(kept(6))] == [6]
    assert list(on_cluster.map([])) == []
    with pytest.raises(ValueError, match="thirteen is refused"):
        list(on_cluster.map(kept(13, 5)))
    assert [e.loss for e in on_cluster.map(kept(2))] == [2]
    assert on_cluster.capacity == 2
    on_cluster.close()
    on_cluster.close()
    assert warnings == []


def test_policies_may_be_added_while_others_are_evaluated(address, fakes, warnings) -> None:
    on_cluster = executor(address, fakes.Echo(), warnings)
    policies, losses = deque(kept(5, 6)), []
    for evaluation in on_cluster.map(iter(lambda: policies.popleft() if policies else None, 0)):
        losses.append(evaluation.loss)
        policies.extend(kept(*range(7, 10)) if len(losses) == 1 else kept(3) if len(losses) == 5 else [])
    on_cluster.close()
    assert losses == [5, 6, 7, 8, 9, 3]


def test_each_worker_gets_the_evaluator_once(address, fakes, warnings, tmp_path) -> None:
    on_cluster = executor(address, fakes.Loaded(tmp_path), warnings)
    assert len(list(on_cluster.map(kept(*range(1, 9))))) == 8
    on_cluster.close()
    loads = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert 1 <= len(loads) <= 2
    assert len(set(loads)) == len(loads)


def test_a_killed_worker_costs_one_run_more(address, fakes, warnings, tmp_path) -> None:
    on_cluster = executor(address, fakes.Deadly(tmp_path, times=1), warnings)
    assert [e.loss for e in on_cluster.map(kept(3, 1, 2, 4))] == [3, 1, 2, 4]
    assert len(list(tmp_path.iterdir())) == 1
    on_cluster.close()
    assert warnings == []


def test_a_policy_that_kills_workers_fails_alone(address, fakes, warnings, tmp_path) -> None:
    on_cluster = executor(address, fakes.Deadly(tmp_path, times=9), warnings)
    losses = [e.loss for e in on_cluster.map(kept(3, 1, 2, 4))]
    on_cluster.close()
    assert losses[1] != losses[1]
    assert [losses[0], *losses[2:]] == [3, 2, 4]
    slow = "has no worker"  # a machine under load starts the next one late
    assert [warning for warning in warnings if slow not in warning] == [
        'policy {"g": 1} killed every worker that evaluated it (out of memory, mostly); it is recorded as failed'
    ]
    assert len(list(tmp_path.iterdir())) == 4  # twice as many deaths as this scheduler allows: once beside others


def test_a_worker_that_cannot_load_the_evaluator_is_told(address, fakes, warnings) -> None:
    on_cluster = executor(address, fakes.Unloadable(), warnings)
    with pytest.raises(BadInputError, match="cannot load the network: RuntimeError: no such weights; install there"):
        list(on_cluster.map(kept(2)))
    on_cluster.close()


def test_a_worker_of_another_version_is_refused(address, fakes, warnings, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_versions", lambda: {"amcsearch": "0.0.1"})
    on_cluster = executor(address, fakes.Echo(), warnings)
    with pytest.raises(BadInputError, match=r"has \{'amcsearch'.*this search \{'amcsearch': '0.0.1'\}; give both"):
        list(on_cluster.map(kept(2)))
    on_cluster.close()


def test_a_lost_scheduler_is_one_line(dask_cluster, fakes, warnings, tmp_path) -> None:
    own = type(dask_cluster)(tmp_path)
    on_cluster = executor(own.address, fakes.Echo(), warnings)
    results = on_cluster.map(kept(1, 2, 3, 4, 5, 6))
    assert next(results).loss == 1
    own.close()
    with pytest.raises(
        BadInputError, match=r"scheduler at tcp://.* is gone \(\w+\); what was evaluated is stored: .* --resume"
    ):
        list(results)
    on_cluster.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.0.0.1:8786", "expected the address that `dask scheduler` prints"),
        ("http://host:8786", "expected the address"),
        ("tcp://", "expected the address"),
    ],
)
def test_what_is_no_address_is_refused(address: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        Engine(scheduler=address)


def test_a_scheduler_that_does_not_answer_is_one_line(fakes, warnings, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    with pytest.raises(BadInputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        executor("tcp://127.0.0.1:9", fakes.Echo(), warnings)


def test_workers_and_a_scheduler_are_one_too_many() -> None:
    with pytest.raises(BadInputError, match="workers = 2 and scheduler = tcp://a:1: a scheduler has its own"):
        Engine(2, "tcp://a:1")


def test_without_dask_the_error_says_what_to_type(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        BadInputError, match=r"distributed, which is not installed; type: pip install 'amcsearch\[cluster"
    ):
        Engine(scheduler="tcp://a:1")
