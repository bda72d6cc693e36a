"""An executor on a cluster of dask.distributed: workers on any machine that reach one scheduler.

The evaluator (network, data, statistics) is sent to the scheduler once and to each worker once, as bytes, which a
worker process keeps unpickled. A worker needs amcsearch of the same version and no file of the driver: classes of the
user's own modules travel with the evaluator.

Dask repeats a task whose worker dies, on another worker, and gives up after as many deaths as its scheduler allows
(``distributed.scheduler.allowed-failures``, 3). It counts a death for every task that the worker had, also one that
waited: so no more tasks are sent than there are workers. Dask remembers nothing of a scheduler that is gone; what was
evaluated is in the study.

Rocklin, "Dask: Parallel Computation with Blocked algorithms and Task Scheduling", SciPy 2015.
"""

import math
import pickle
import platform
import sys
import sysconfig
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import torch

from amcsearch.core import RESUME, BadInputError, Evaluation, PruningPolicy, check_interrupt, keep_freed_memory
from amcsearch.evaluation.worker import (
    NO_INCUMBENTS,
    CanEvaluate,
    Deaths,
    Incumbents,
    PolicySource,
    Request,
    answer,
    request_of,
)

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["ClusterExecutor", "check_scheduler"]

CONNECT_S: Final = 30.0
"""How long a scheduler may take to answer."""
_POLL_S: Final = 0.2
_COUNTED_S: Final = 1.0  # between questions after the number of workers
_PATIENCE_S: Final = 30.0  # without a worker, before that is told
_KEPT: Final = 2  # evaluators that a worker process keeps: those of searches that share it


def check_scheduler(address: str) -> None:
    """Refuse what is no address of a Dask scheduler, and an installation without Dask.

    Raises:
        BadInputError: it is one of these.
    """
    protocol, _, place = address.partition("://")
    if protocol not in ("tcp", "tls", "ucx", "ws", "wss") or not place:
        raise BadInputError(
            f"--scheduler {address}: expected the address that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
        )
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"--scheduler needs {error.name}, which is not installed; type: pip install 'amcsearch[cluster]'"
        ) from error


class ClusterExecutor:
    """Evaluates on the workers of a Dask scheduler, one policy a worker process at a time, on one torch thread each.

    Workers may join and leave at any time. ``warn`` is told of policies that kill workers, and of a cluster without
    any.

    Raises:
        BadInputError: as ``check_scheduler``, an evaluator that cannot be sent, or a scheduler that does not answer.
    """

    def __init__(self, evaluator: CanEvaluate, scheduler: str, warn: Callable[[str], None]) -> None:
        check_scheduler(scheduler)
        from distributed import Client

        self._scheduler, self._warn, self._deaths = scheduler, warn, Deaths(warn)
        payload = _pickled(evaluator)
        try:
            self._client: Client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise BadInputError(
                f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`, or look at its "
                "address and the network between"
            ) from error
        self._key = uuid4().hex
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large graph: it is sent once, and can be made again, unlike data
            self._payload = self._client.submit(bytes, payload, key=f"evaluator-{self._key}", pure=False)
        self._workers, self._counted_at, self._alone_since = 0, -math.inf, time.monotonic()
        self._sent = 0

    @property
    def capacity(self) -> int:
        """Worker processes of the cluster, at least 1."""
        return max(1, self._count())

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``.

        Raises:
            BadInputError: as ``Deaths.record``, a worker that cannot load the evaluator, or a scheduler that is gone.
            Exception: whatever the evaluation of a policy raised.
        """
        source, sent = iter(policies), 0
        running: deque[tuple[Request, Future]] = deque()
        done = threading.Event()
        try:
            while True:
                done.clear()
                while self._idle(running) and (policy := next(source, None)) is not None:
                    request = request_of(policy, incumbents)
                    running.append((request, self._submit(request, done)))
                    sent += 1
                if not running:
                    return
                if running[0][1].done():
                    request, future = running.popleft()
                    if sent > 1 and self._is_killer(future):
                        future = self._again_alone(request, [other for _, other in running])
                    yield self._taken(request[0], future)
                else:
                    check_interrupt()
                    done.wait(_POLL_S)
        finally:
            with suppress(Exception):  # a client that has lost its scheduler has nothing to cancel
                for _, future in running:
                    future.cancel()

    def close(self) -> None:
        """Leave the cluster; its workers stay."""
        self._payload.release()
        self._client.close(timeout=5.0)  # closed already, it does nothing

    def _idle(self, running: Iterable[tuple[Request, "Future"]]) -> bool:
        """Whether a worker has nothing to do."""
        return sum(not future.done() for _, future in running) < self.capacity

    def _submit(self, request: Request, done: threading.Event) -> "Future":
        self._sent += 1
        future = self._client.submit(
            *(_evaluate, self._payload, self._key, _versions(), pickle.dumps(request)),
            key=f"evaluate-{self._key}-{self._sent}",
            pure=False,
            priority=-self._sent,
        )
        future.add_done_callback(lambda _: done.set())
        return future

    def _is_killer(self, future: "Future") -> bool:
        from distributed import KilledWorker

        return future.status == "error" and isinstance(future.exception(), KilledWorker)

    def _again_alone(self, request: Request, others: Sequence["Future"]) -> "Future":
        """Evaluate a policy again once the others are done: the scheduler blames all that a dead worker held."""
        while not all(other.done() for other in others):
            check_interrupt()
            time.sleep(_POLL_S)
        done = threading.Event()
        future = self._submit(request, done)
        while not future.done():
            check_interrupt()
            done.wait(_POLL_S)
        return future

    def _taken(self, policy: PruningPolicy, future: "Future") -> Evaluation:
        if self._is_killer(future):
            return self._deaths.record(policy, "killed every worker that evaluated it (out of memory, mostly)")
        try:
            result = future.result()
        except BaseException as error:
            if future.status == "error":
                raise
            raise self._gone(error) from error
        if isinstance(result, Exception):
            raise result
        self._deaths.survived()
        assert isinstance(result, Evaluation)
        return result

    def _count(self) -> int:
        """Worker processes now; says where there are none for long."""
        now = time.monotonic()
        if now - self._counted_at > _COUNTED_S:
            try:
                self._workers = len(self._client.nthreads())
            except Exception as error:
                raise self._gone(error) from error
            self._counted_at = now
            self._alone_since = now if self._workers else self._alone_since
            if now - self._alone_since > _PATIENCE_S:
                self._warn(f"the Dask scheduler at {self._scheduler} has no worker; start some with `dask worker`")
                self._alone_since = math.inf  # until one comes
        return self._workers

    def _gone(self, error: BaseException) -> BadInputError:
        return BadInputError(
            f"the Dask scheduler at {self._scheduler} is gone ({type(error).__name__}); what was evaluated is stored: "
            f"start it again, and go on with {RESUME}"
        )


def _pickled(evaluator: CanEvaluate) -> bytes:
    """The evaluator, with the classes of modules that workers may not have."""
    import cloudpickle

    try:
        with _carried(_users_modules(), cloudpickle):
            return bytes(cloudpickle.dumps(evaluator))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInputError(f"the model cannot be sent to workers ({error}); define its classes in a module") from error


def _users_modules() -> list[ModuleType]:
    """Imported modules that are neither Python's nor installed, nor this package."""
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed.append(Path(__file__).resolve().parents[1])
    modules = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and name != "__main__" and getattr(module, "__name__", None) == name:
            path = Path(file).resolve()
            if not any(path.is_relative_to(folder) for folder in installed):
                modules.append(module)
    return modules


@contextmanager
def _carried(modules: Sequence[ModuleType], cloudpickle: Any) -> Iterator[None]:
    known = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in known]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _versions() -> dict[str, str]:
    """What must be the same where an evaluation is asked for and where it is done."""
    from amcsearch import __version__

    python = ".".join(platform.python_version_tuple()[:2])  # pickled code is of one minor version
    return {"amcsearch": __version__, "torch": torch.__version__.partition("+")[0], "python": python}


_evaluators: dict[str, CanEvaluate] = {}
_turn = threading.Lock()  # a worker of several threads takes turns: torch's threads and modes are the process's


def _evaluate(payload: bytes, key: str, versions: dict[str, str], request: bytes) -> Evaluation | Exception:
    """Run in a worker: evaluate a policy, with the evaluator unpickled at its first."""
    with _turn:
        if key not in _evaluators:
            if versions != _versions():
                raise BadInputError(
                    f"a worker of the cluster has {_versions()}, this search {versions}; give both the same image"
                )
            torch.set_num_threads(1)
            keep_freed_memory()
            while len(_evaluators) >= _KEPT:
                del _evaluators[next(iter(_evaluators))]
            try:
                _evaluators[key] = pickle.loads(payload)
            except Exception as error:
                raise BadInputError(
                    f"a worker of the cluster cannot load the network: {type(error).__name__}: {error}; install there "
                    "what it imports"
                ) from error
        return answer(_evaluators[key], pickle.loads(request))
