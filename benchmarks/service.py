"""How long a worker takes to claim a job while 10,000 wait, and a page of jobs to be listed.

    python benchmarks/service.py [--jobs 10000] [--claims 1000] [--database postgresql+psycopg://…]

Without --database on a new SQLite file. A claim is one transaction with its commit; each also renews its lease once.
Target: 99 of 100 claims within 10 ms.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from sqlalchemy import insert, text

from amcsearch.service.database import JOBS, Database
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobProgress

LEASE_S = 600.0


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


def milliseconds(call: Callable[[], object], count: int) -> dict[str, float]:
    """Median and 99th percentile of so many calls."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begun))
    return {"median_ms": round(float(np.median(taken)), 3), "p99_ms": round(float(np.percentile(taken, 99)), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the durations as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--database")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        database = Database(args.database or f"sqlite:///{folder}/service.db")
        table = filled(database, args.jobs)
        claims = [table.claim("worker", ("search",), LEASE_S) for _ in range(3)]  # connections are open
        print(
            json.dumps(
                {
                    "database": database.kind,
                    "jobs": args.jobs,
                    "claim": milliseconds(lambda: table.claim("worker", ("search", "prune"), LEASE_S), args.claims),
                    "renew": milliseconds(lambda: table.renew(claims[0]), args.claims),
                    "page of 50": milliseconds(lambda: table.page(limit=50), args.claims // 10),
                    "counts": milliseconds(table.counts, args.claims // 10),
                },
                indent=2,
            )
        )
        database.close()


if __name__ == "__main__":
    main()
