"""How a service keeps up: claims, a long search on its page, status requests a second, and followers of one run.

    python benchmarks/service.py [--jobs 10000] [--claims 1000] [--trials 100000] [--followers 200] [--seconds 20]
                                 [--database postgresql+psycopg://…]

Without --database on a new SQLite file. A claim is one transaction with its commit. The service runs in a process of
its own, the clients in this one; both share the machine's cores. Every line bears the load of the machine as it ended.
Targets: 99 of 100 claims within 10 ms; the page and the list of a job of 100,000 trials within 1 s, the service within
300 MiB; 200 status requests a second with 99 of 100 within 100 ms; 200 followers of one run.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import event, insert, text

from amcsearch.core import Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.runs import MetricRecord
from amcsearch.service.database import JOBS, Database
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import BestSoFar, Claim, JobProgress
from amcsearch.service.trial_points import TrialPoints

LEASE_S = 600.0
RATE = 200.0  # status requests a second
SERVER = (
    "import sys; from pathlib import Path; from amcsearch.service import ServiceSettings, serve; "
    "serve(ServiceSettings(Path(sys.argv[1]), sys.argv[2]), '127.0.0.1', int(sys.argv[3]), workers=0)"
)


def told(name: str, figures: Mapping[str, object]) -> None:
    """Print a figure with the load beside it."""
    sys.stdout.write(json.dumps({"what": name, **figures, "load": round(os.getloadavg()[0], 1)}) + "\n")
    sys.stdout.flush()


def filled(database: Database, jobs: int) -> JobTable:
    """A table with so many jobs that wait."""
    now = time.time()
    values = {
        "kind": "search",
        "name": "mine",
        "owner": "ada",
        "request": {"config": {"name": "mine", "search": {"trials": 100}}},
        "state": "queued",
        "is_cancel_asked": False,
        "attempt": 0,
        "lost": 0,
        "revision": 1,
        "created_s": now,
        "changed_s": now,
        "progress": JobProgress().to_json(),
    }
    with database.writing() as connection:
        connection.execute(insert(JOBS), [{**values, "id": f"{number:016x}"} for number in range(jobs)])
    with database.reading() as connection:
        connection.execute(text("ANALYZE"))
    return JobTable(database)


def percentiles(taken_s: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    values = 1e3 * np.array(taken_s)
    return {"median_ms": round(float(np.median(values)), 3), "p99_ms": round(float(np.percentile(values, 99)), 3)}


def milliseconds(call: Callable[[], object], count: int) -> dict[str, float]:
    """Wall time of so many calls, and the processor time of this process (the database's own, on SQLite)."""
    wall, processor = [], []
    for _ in range(count):
        begun, used = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    return {**percentiles(wall), "processor_p99_ms": percentiles(processor)["p99_ms"]}


def statements(database: Database, call: Callable[[], object]) -> int:
    """How many statements a call sends, the beginning of its transaction included, not its commit."""
    sent: list[str] = []

    def note(*arguments: object) -> None:
        sent.append(str(arguments[2]))

    event.listen(database.engine, "before_cursor_execute", note)
    call()
    event.remove(database.engine, "before_cursor_execute", note)
    return len(sent)


def claims(database: Database, jobs: int, count: int) -> JobTable:
    """Measure the queue."""
    table = filled(database, jobs)
    held = [table.claim("worker", ("search",), LEASE_S) for _ in range(3)]  # connections are open
    sent = statements(database, lambda: table.claim("worker", ("search", "prune"), LEASE_S))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "claim": (lambda: table.claim("worker", ("search", "prune"), LEASE_S), count),
        "claim of another kind, which none is": (lambda: table.claim("worker", ("table_check",), LEASE_S), count // 10),
        "renew": (lambda: table.renew(held[0]), count) if held[0] else (table.counts, 1),
        "page of 50": (lambda: table.page(limit=50), count // 10),
        "counts": (table.counts, count // 10),
    }
    for name, (call, calls_count) in calls.items():
        extra = {"statements": sent} if name == "claim" else {}
        told(name, {"database": database.kind, "jobs": jobs, **milliseconds(call, max(calls_count, 1)), **extra})
    return table


def long_search(table: JobTable, runs: Path, trials: int) -> Claim:
    """A job that runs and has so many trials, written as its process writes them."""
    job = table.submit("search", "long", {"config": {"name": "long"}}, "loopback")
    claim = None
    while claim is None or claim.job.id != job.id:
        claim = table.claim("worker", ("search",), LEASE_S)
        assert claim is not None
    chance, points = np.random.default_rng(0), TrialPoints()
    points.network(Cost(macs=1e6), {"macs": 5e5})
    begun = time.perf_counter()
    policy, best = PruningPolicy({f"layer{i}": 8 for i in range(30)}), 0.0
    for number, (share, luck) in enumerate(chance.random((trials, 2))):
        metric = float(share * (0.5 + 0.5 * luck))
        best = max(best, metric)
        state = TrialState.COMPLETE if share < 0.5 else TrialState.PROBE
        points.add(Trial(number, "random", 0, state, policy, Evaluation(metric, 1.0, 0.0), Cost(macs=1e6 * share), 0.0))
    taken = time.perf_counter() - begun
    (runs / job.id).mkdir(parents=True)
    points.write(runs / job.id)
    size = (runs / job.id / "points.json").stat().st_size
    told("points of a trial", {"trials": trials, "microseconds": round(1e6 * taken / trials, 1), "file_bytes": size})
    judged = BestSoFar(1, best, MetricRecord("accuracy", "%", True), {"macs": 4e5}, dict(policy))
    table.renew(claim, JobProgress("Searching", "", trials, 2 * trials, None, 9.0, judged, ((1.0, best),)))
    return claim


@contextmanager
def service(runs: Path, url: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A service as a process."""
    with subprocess.Popen([sys.executable, "-c", SERVER, str(runs), url, str(port)]) as process:
        try:
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/healthz").is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def resident_mib(process: subprocess.Popen[bytes], what: str = "VmHWM") -> float:
    """Resident memory of a process, the most it had by default, MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) / 1024, 1)


def processor_s(process: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has used, s."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def at_a_rate(http: httpx.AsyncClient, path: str, seconds: float) -> list[float]:
    """Send ``RATE`` requests a second, whether or not the earlier ones were answered; the times of the answers."""
    taken: list[float] = []

    async def ask(due_s: float) -> None:
        (await http.get(path)).raise_for_status()
        taken.append(time.perf_counter() - due_s)  # since it was due: a service that falls behind shows it

    begun, waiting = time.perf_counter(), []
    for number in range(int(RATE * seconds)):
        due_s = begun + number / RATE
        await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
        waiting.append(asyncio.ensure_future(ask(due_s)))
    await asyncio.gather(*waiting)
    return taken


async def followed(http: httpx.AsyncClient, table: JobTable, claim: Claim, followers: int) -> dict[str, object]:
    """Let so many follow a job while its progress is written 20 times, then ends; how late each heard of each."""
    written: dict[int, float] = {}
    late: list[float] = []
    ready = asyncio.Semaphore(0)

    async def follow() -> bool:
        async with http.stream("GET", f"/page/jobs/{claim.job.id}/events", timeout=None) as answer:
            ready.release()
            async for line in answer.aiter_lines():
                if line.startswith("id: ") and int(line[4:]) in written:
                    late.append(time.perf_counter() - written[int(line[4:])])
                if line == "event: ended":
                    return True
        return False

    tasks = [asyncio.ensure_future(follow()) for _ in range(followers)]
    for _ in tasks:
        await ready.acquire()
    progress = table.get(claim.job.id).progress
    for _ in range(20):
        record = await asyncio.to_thread(table.renew, claim, progress)
        written[record.revision] = time.perf_counter()
        await asyncio.sleep(0.75)
    await asyncio.to_thread(table.finish, claim, {})
    whole = sum(await asyncio.gather(*tasks))
    return {"followers": followers, "heard_the_end": whole, "heard": len(late), "late": percentiles(late)}


async def requests(
    process: subprocess.Popen[bytes], url: str, table: JobTable, claim: Claim, followers: int, seconds: float
) -> None:
    """Measure the service from outside."""
    limits = httpx.Limits(max_connections=followers + 64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60.0) as http:
        for name, path in (("page of the job", f"/page/jobs/{claim.job.id}"), ("list of jobs", "/jobs")):
            taken = []
            for _ in range(10):
                begun = time.perf_counter()
                (await http.get(path)).raise_for_status()
                taken.append(time.perf_counter() - begun)
            told(name, percentiles(taken))
        used = processor_s(process)
        taken = await at_a_rate(http, f"/jobs/{claim.job.id}", seconds)
        each = round(1e3 * (processor_s(process) - used) / len(taken), 2)
        told("status requests", {"a_second": RATE, "answered": len(taken), **percentiles(taken), "processor_ms": each})
        used = processor_s(process)
        figures = await followed(http, table, claim, followers)
        told("followers", {**figures, "processor_s": round(processor_s(process) - used, 2)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures, one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=8799)
    parser.add_argument("--database")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        url, runs = args.database or f"sqlite:///{folder}/service.db", Path(folder)
        database = Database(url)
        claims(database, args.jobs, args.claims)
        database.close()
        (runs / "service.db").unlink(missing_ok=True)
        database = Database(url)
        table = JobTable(database)
        with database.writing() as connection:
            connection.execute(JOBS.delete())
        claim = long_search(table, runs, args.trials)
        with service(runs, url, args.port) as process:
            address = f"http://127.0.0.1:{args.port}"
            asyncio.run(requests(process, address, table, claim, args.followers, args.seconds))
            told("memory of the service", {"most_mib": resident_mib(process)})
        database.close()


if __name__ == "__main__":
    main()
