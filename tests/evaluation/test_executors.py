"""Serial and process executors: same results, any deaths survived, nothing left running."""

import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from types import ModuleType

import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Incumbent
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.evaluation.executors import Engine, ProcessExecutor, SerialExecutor
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.ranking import rank_units
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.models.residual import resnet20

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    import spawned_fakes

    return spawned_fakes


def kept(*counts: int) -> list[PruningPolicy]:
    return [PruningPolicy({"g": n}) for n in counts]


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def worker_ids() -> list[int]:
    """Process ids of the workers alive now."""
    return sorted(process.pid for process in active_children() if process.pid is not None)


@pytest.mark.parametrize("workers", [1, 2])
def test_policies_may_be_added_while_others_are_evaluated(workers: int, fakes: ModuleType) -> None:
    policies, losses = deque(kept(5, 6)), []
    executor = Engine(workers).executor(fakes.Echo())
    for evaluation in executor.map(iter(lambda: policies.popleft() if policies else None, 0)):
        losses.append(evaluation.loss)
        policies.extend(kept(*range(7, 10)) if len(losses) == 1 else kept(3) if len(losses) == 5 else [])
    workers_left = len(worker_ids())
    executor.close()
    assert losses == [5, 6, 7, 8, 9, 3]
    assert workers_left == (workers if workers > 1 else 0)  # it ended of itself, with nothing under way


def test_serial_and_process_give_bit_identical_results() -> None:
    torch.manual_seed(0)
    model = resnet20(width=4, depth=8)
    x, y = torch.randn(40, 1, 16, 16), torch.arange(40) % 10
    found = trace(model, x[:1])
    ranking = rank_units(model, found, CRITERIA["taylor"](), HeldBatches.of(x, y, 20), CLASS_IDS)
    evaluator = Evaluator(model, found, ranking, HeldBatches.of(x, y, 16), HeldBatches.of(x, y, 16))
    space = PolicySpace.on_grid(found.network.groups)
    policies = [found.network.policy(space.nearest([r] * len(space.groups))) for r in (0.0, 0.3, 0.6, 0.8)]
    serial = list(SerialExecutor(evaluator).map(policies))
    with ProcessExecutor(evaluator, workers=2) as executor:
        parallel = list(executor.map(policies))
    assert [(e.loss, e.metric) for e in serial] == [(e.loss, e.metric) for e in parallel]
    assert len({e.loss for e in serial}) == 4
    stopping, incumbents = evaluator.stopping(0.9), dict.fromkeys(policies[1:], Incumbent(policies[0], 1.0))
    serial = list(SerialExecutor(stopping).map(policies[1:], incumbents))
    with ProcessExecutor(stopping, workers=2) as executor:
        parallel = list(executor.map(policies[1:], incumbents))
    assert [replace(e, seconds=0.0) for e in serial] == [replace(e, seconds=0.0) for e in parallel]
    assert [e.stopped_after for e in serial] == [32, 32, 32]


def test_results_come_in_order_and_workers_stay_until_close(fakes: ModuleType) -> None:
    executor = ProcessExecutor(fakes.Echo(), workers=2)
    assert worker_ids() == []
    results = list(executor.map(kept(5, 4, 9, 1, 7)))
    assert [e.loss for e in results] == [5, 4, 9, 1, 7]
    workers = worker_ids()
    assert len(workers) == 2
    assert [e.loss for e in executor.map(kept(6, 2))] == [6, 2]
    assert worker_ids() == workers
    assert list(executor.map([])) == []
    results = executor.map(kept(1, 2))
    assert [next(results).loss, next(results).loss] == [1, 2]
    del results  # whoever took all results may ask no more
    assert worker_ids() == workers
    os.kill(workers[0], signal.SIGKILL)  # dies while idle
    assert [e.loss for e in executor.map(kept(3, 8, 2))] == [3, 8, 2]
    executor.close()
    executor.close()
    assert not any(is_alive(worker) for worker in workers)


def test_a_killed_worker_is_replaced_and_its_policy_tried_again(fakes: ModuleType, tmp_path: Path) -> None:
    with ProcessExecutor(fakes.Deadly(tmp_path, times=2), workers=2) as executor:
        assert [e.loss for e in executor.map(kept(3, 1, 2, 4))] == [3, 1, 2, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_policy_that_kills_three_workers_fails_alone_and_is_named(fakes: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []
    with ProcessExecutor(fakes.Deadly(tmp_path, times=9), workers=1, warn=told.append) as executor:
        losses = [e.loss for e in executor.map(kept(3, 1, 2))]
    assert losses[1] != losses[1]
    assert [losses[0], losses[2]] == [3, 2]
    (line,) = told
    assert line.startswith('policy {"g": 1} killed 3 worker processes in a row (exit code -9')
    assert line.endswith("it is recorded as failed")
    assert len(list(tmp_path.iterdir())) == 3


def test_policies_that_all_kill_their_workers_end_the_search(fakes: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []
    executor = ProcessExecutor(fakes.Deadly(tmp_path, times=99), workers=1, warn=told.append)
    with pytest.raises(
        BadInputError, match=r'policy \{"g": 1\} killed 3 worker .* as 2 before it; use fewer workers or a smaller'
    ):
        list(executor.map(kept(1, 1, 1, 2)))
    assert worker_ids() == []
    assert len(told) == 2
    assert len(list(tmp_path.iterdir())) == 9


def test_what_an_evaluation_raises_is_raised_here_and_the_executor_can_be_used_again(fakes: ModuleType) -> None:
    with ProcessExecutor(fakes.Echo(), workers=1) as executor:
        with pytest.raises(ValueError, match="thirteen is refused"):
            list(executor.map(kept(13, 5)))
        assert worker_ids() == []
        assert [e.loss for e in executor.map(kept(2))] == [2]
        stream = executor.map(kept(3, 4, 5))
        assert next(stream).loss == 3
        stream.close()  # a reader that stops early leaves nothing under way
        assert worker_ids() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("Unloadable", "could not start: RuntimeError: no such weights"), ("DeadOnArrival", "starting killed 3 worker")],
)
def test_an_evaluator_no_worker_can_load_is_an_error(fakes: ModuleType, name: str, message: str) -> None:
    with ProcessExecutor(getattr(fakes, name)(), workers=1) as executor, pytest.raises(BadInputError, match=message):
        list(executor.map(kept(2)))


def test_an_evaluator_that_cannot_be_sent_is_an_error() -> None:
    class Local:
        pass

    with pytest.raises(BadInputError, match="cannot be sent to worker processes"):
        ProcessExecutor(Local(), workers=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_worker_or_thread_is_refused(fakes: ModuleType, count: int) -> None:
    with pytest.raises(BadInputError, match=f"workers = {count}, must be at least 1"):
        ProcessExecutor(fakes.Echo(), workers=count)
    with pytest.raises(BadInputError, match=f"threads = {count}, must be at least 1"):
        SerialExecutor(fakes.Echo(), threads=count)


def test_workers_run_on_the_threads_asked_for(fakes: ModuleType) -> None:
    with ProcessExecutor(fakes.Threads(), workers=1, threads=3) as executor:
        assert [e.loss for e in executor.map(kept(2))] == [3.0]


def test_serial_restores_the_number_of_threads_between_evaluations(fakes: ModuleType) -> None:
    found = torch.get_num_threads()
    for evaluation in SerialExecutor(fakes.Threads(), threads=found + 1).map(kept(2, 3)):
        assert evaluation.loss == found + 1
        assert torch.get_num_threads() == found


@pytest.mark.parametrize(
    ("fake", "to_group", "signal_sent"),
    [("Endless", True, signal.SIGINT), ("Endless", False, signal.SIGINT), ("Reporting", False, signal.SIGKILL)],
)
def test_no_process_outlives_the_parent(fake: str, to_group: bool, signal_sent: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, a service manager only the parent, kill -9 lets nobody clean up."""
    parent = subprocess.Popen(
        [sys.executable, str(HERE / "spawned_fakes.py"), fake],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    (os.killpg if to_group else os.kill)(parent.pid, signal_sent)
    _, errors = parent.communicate(timeout=60)  # ends only when every process that holds the pipes has ended
    assert parent.returncode == -signal_sent
    assert errors.count("KeyboardInterrupt") == (1 if signal_sent is signal.SIGINT else 0)
