"""What starting workers and handing them policies costs: our processes beside a local Dask cluster.

    python benchmarks/executors.py [--workers 2] [--evaluations 200] [--rounds 3]

Each round times, one after the other in a shuffled order, with an evaluator of 16 MB whose evaluation does nothing:

- start     wall time from making the executor to its first result; for our processes the server process is started
            first and has imported, as it has in a search; cold: it has not
- driver    processor time of the driver an evaluation
- call      wall time of all evaluations after the first, an evaluation
- memory    of all worker processes (and Dask's nannies): proportional set size, which counts shared pages once

and prints the medians over the rounds. Then NSGA-II spends 96 evaluations, 8 at a time, that each sleep 0.17 s, as long
as one of ResNet-20 on digits takes on a free core: with one worker and with two. The wall times, with the start, tell
how much of the workers is used, also on a machine whose cores are busy.

    python benchmarks/executors.py --simulated 256 [--batch 1024] [--evaluations 4096]

lets NSGA-II search with so many workers that are not there, each of which takes 1 s an evaluation, and prints how much
of their time is used. Time is simulated: the driver's is the processor time that it takes to propose, store and learn,
while the workers work on. So the machine's load does not matter.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import active_children, forkserver
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from amcsearch.core import Evaluation, PruningPolicy
from amcsearch.evaluation import NO_INCUMBENTS, Incumbents, PolicySource
from amcsearch.evaluation.cluster import ClusterExecutor
from amcsearch.evaluation.executors import Executor, ProcessExecutor
from amcsearch.evaluation.worker import prepare_workers

MIB = 2**20
STUB_S = 0.17
SEARCHED = 96


class Nothing:
    """An evaluator that holds data, and evaluates nothing."""

    def __init__(self) -> None:
        self.data = torch.zeros(4 * MIB)

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        """Return a made-up evaluation at once."""
        return Evaluation(metric=0.5, loss=float(policy["g"]), seconds=0.0)


class Sleeping:
    """Evaluates by sleeping."""

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        """Return a made-up evaluation after 0.17 s."""
        time.sleep(STUB_S)
        removed = sum((1 - policy[name] / 32) ** 2 for name in policy) / len(policy)
        return Evaluation(metric=math.exp(-removed), loss=removed, seconds=STUB_S)


def searched(workers: int, folder: str) -> float:
    """Wall time in s of a search, with the start of its workers."""
    from amcsearch.search import AGENTS  # here: workers import what this file does
    from amcsearch.testing import make_study

    prepare_workers()
    begun = time.perf_counter()
    executor = ProcessExecutor(Sleeping(), workers)
    study = make_study(
        "nsga2", widths=[32] * 20, multiple=4, trials=SEARCHED, batch=8, evaluator=lambda _: executor,
        storage=Path(folder, f"{workers}.db"),
    )  # fmt: skip
    AGENTS["nsga2"]().run(study, 0)
    seconds = time.perf_counter() - begun
    executor.close()
    return seconds


class Simulated:
    """Evaluates on workers that are not there: the clock is the driver's processor time and what it waits for them.

    A worker that ends while the driver does something else waits for its next policy until the driver looks.
    """

    def __init__(self, workers: int, evaluation_s: float = 1.0) -> None:
        self.capacity = workers
        self.now_s = self.busy_s = 0.0
        self._evaluation_s = evaluation_s
        self._used_s = time.process_time()

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield made-up evaluations, in order, each once its worker has it."""
        del incumbents
        source = iter(policies)
        under_way: deque[tuple[PruningPolicy, float]] = deque()  # with the time at which each is done
        while True:
            self._pass()
            while self._busy(under_way) < self.capacity and (policy := next(source, None)) is not None:
                self._pass()
                under_way.append((policy, self.now_s + self._evaluation_s))
            if not under_way:
                return
            policy, end_s = under_way.popleft()
            self.now_s = max(self.now_s, end_s)
            self.busy_s += self._evaluation_s
            removed = sum((1 - policy[name] / 32) ** 2 for name in policy) / len(policy)
            yield Evaluation(metric=math.exp(-removed), loss=removed, seconds=self._evaluation_s)

    def _busy(self, under_way: deque[tuple[PruningPolicy, float]]) -> int:
        """Workers that have not ended; they end in the order in which they began, since all take as long."""
        return len(under_way) - bisect_right(under_way, self.now_s, key=itemgetter(1))

    def _pass(self) -> None:
        """Let the driver's processor time since the last look pass."""
        used = time.process_time()
        self.now_s += used - self._used_s
        self._used_s = used

    def close(self) -> None:
        """End the search."""
        self._pass()


def simulated(workers: int, batch: int, evaluations: int, folder: str) -> dict[str, float]:
    """How much of so many simulated workers' time NSGA-II uses, and the driver's processor time an evaluation."""
    from amcsearch.search import AGENTS
    from amcsearch.testing import make_study

    executor, used = Simulated(workers), time.process_time()
    study = make_study(
        "nsga2", widths=[32] * 20, multiple=4, trials=evaluations, batch=batch, evaluator=lambda _: executor,
        storage=Path(folder, "simulated.db"),
    )  # fmt: skip
    AGENTS["nsga2"]().run(study, 0)
    executor.close()
    driver_ms = 1e3 * (time.process_time() - used) / evaluations
    share = executor.busy_s / (workers * executor.now_s)
    return {"workers": workers, "batch": batch, "evaluations": evaluations, "used": share, "driver_ms": driver_ms}


def descendants(process: int) -> list[int]:
    """Numbers of all processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    below, waiting = [], [process]
    while waiting:
        below += children.get(waiting[-1], [])
        waiting += children.get(waiting.pop(), [])
    return below


def memory_mib() -> float:
    """Proportional set size of all processes below this one."""
    total = 0
    for number in descendants(os.getpid()):
        try:
            rows = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return total / 1024


def measured(make: Callable[[], tuple[Executor, Callable[[], object]]], evaluations: int) -> dict[str, float]:
    """Start, driver, call and memory of one executor."""
    policies = [PruningPolicy({"g": n}) for n in range(1, evaluations + 2)]
    begun = time.perf_counter()
    executor, end = make()
    next(iter(executor.map(policies[:1])))
    start = time.perf_counter() - begun
    list(executor.map(policies[:8]))  # every worker has the evaluator
    begun, processor = time.perf_counter(), time.process_time()
    assert [e.loss for e in executor.map(policies)] == [policy["g"] for policy in policies]
    result = {
        "start_s": start,
        "driver_ms": 1e3 * (time.process_time() - processor) / len(policies),
        "call_ms": 1e3 * (time.perf_counter() - begun) / len(policies),
        "memory_mib": memory_mib(),
    }
    executor.close()
    end()
    return result


def main() -> None:
    """Measure and print one line of JSON after a small table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simulated", type=int, metavar="WORKERS")
    parser.add_argument("--batch", type=int, default=1024)
    args = parser.parse_args()
    if args.simulated:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(simulated(args.simulated, args.batch, args.evaluations, folder)))
        return

    def processes() -> tuple[Executor, Callable[[], object]]:
        return ProcessExecutor(Nothing(), args.workers), active_children

    def dask() -> tuple[Executor, Callable[[], object]]:
        from distributed import LocalCluster

        cluster = LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=None)
        return ClusterExecutor(Nothing(), cluster.scheduler_address, print), cluster.close

    rows: dict[str, list[dict[str, float]]] = {"processes, cold": [measured(processes, args.evaluations)]}
    prepare_workers()
    rng = np.random.default_rng(0)
    ways = {"processes": processes, "dask": dask}
    for _ in range(args.rounds):
        for name in rng.permutation(list(ways)):
            rows.setdefault(str(name), []).append(measured(ways[str(name)], args.evaluations))
    with tempfile.TemporaryDirectory() as folder:
        seconds = {workers: round(searched(workers, folder), 2) for workers in (1, 2)}
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    medians = {
        name: {key: round(statistics.median(row[key] for row in values), 3) for key in values[0]}
        for name, values in rows.items()
    }
    for name, values in medians.items():
        print(f"{name:16s}", "  ".join(f"{key} {value:9.3f}" for key, value in values.items()))
    for workers, wall in seconds.items():
        used = SEARCHED * STUB_S / workers / wall
        print(f"{SEARCHED} evaluations of {STUB_S} s, {workers} worker(s): {wall} s, {used:.1%} of the workers used")
    print(
        json.dumps(
            {
                **medians,
                "search_s": seconds,
                "workers": args.workers,
                "evaluations": args.evaluations,
                "rounds": args.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
