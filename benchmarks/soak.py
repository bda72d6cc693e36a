"""A service under random clients, workers and devices, each killed and started again at random moments.

    python benchmarks/soak.py [--minutes 120] [--database sqlite|postgresql] [--workers 2] [--clients 2] [--seed 0]
                              [--pace 1] [--every 4.5]

Clients submit jobs of a few stub evaluations, also twice under one key; list, look, follow, cancel, resume, and send,
name and remove files. A device's agent asks for work, and some jobs wait for it. Every few seconds a process is killed
by SIGKILL (with PostgreSQL also the database) and started again. Then everything runs undisturbed until all jobs have
ended. It fails (exit 1) where a job that was acknowledged is not there or did not end as it should, an evaluation is
stored twice or is missing, an answer was 5xx (503 is right while PostgreSQL is dead), or the service took more than
512 MiB; then it shows how the logs of the processes end. ``--pace 0.2`` makes clients act five times more
rarely, and ``--every`` is the mean of the seconds between two kills: both leave the processor to others. Needs a
checkout: the stub job and the PostgreSQL server are those of the tests.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import httpx

TESTS = Path(__file__).parents[1] / "tests"
STUB = TESTS / "service" / "stub_process.py"
CONFIG = {
    "name": "soak",
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}
ENDS = {"end": "done", "die_once": "done", "lack_device": "done", "refuse": "failed"}
MOST_MIB = 512.0
MOST_WAITING = 40  # jobs that clients let wait
SHOWN = 40  # last lines of a log
PATIENCE_S = 600.0  # that the jobs may take to end once nothing is killed any more
FILE = (2).to_bytes(8, "little") + b"{}"


def module(path: Path) -> ModuleType:
    """A module of the tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def be_server(runs: str, database: str, port: str) -> None:
    """Serve, with the stub job among the kinds."""
    from amcsearch.service import KINDS, ServiceSettings, serve

    KINDS["stub"] = module(STUB).StubRequest  # type: ignore[index]
    serve(ServiceSettings(Path(runs), database), "127.0.0.1", int(port), workers=0)


def be_worker(runs: str, database: str) -> None:
    """Run stub jobs."""
    from amcsearch.service import WorkerSettings, work

    program = (sys.executable, str(STUB))
    work(WorkerSettings(Path(runs), database, kinds=("stub",), lease_s=3.0, poll_s=0.2, program=program))


def be_device(url: str) -> None:
    """Ask for work as the agent of a device does."""
    asked = {"instance": os.urandom(16).hex(), "device": {"cpu": "Cortex-A76", "cpu_flags": "f00"}}
    with httpx.Client(base_url=url, timeout=60.0) as http:
        while True:
            with suppress(httpx.TransportError):
                http.post("/v1/agents/pi5/next", json=asked)
            time.sleep(1.0)


@dataclass
class Client:
    """A client that does anything; ``log`` has a line for each answer, and for each job that was acknowledged."""

    http: httpx.Client
    log: IO[str]
    chance: random.Random
    pace: float
    jobs: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request and note its status."""
        answer = self.http.request(method, path, **content)
        self.note(status=answer.status_code, path=path if answer.status_code >= 500 else None)
        return answer

    def note(self, **values: object) -> None:
        """Add a line to the log."""
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()

    def submit(self) -> None:
        """Submit a job, often twice under one key."""
        if len(self.ask("GET", f"/jobs?state=queued&limit={MOST_WAITING}").json().get("jobs", [])) >= MOST_WAITING:
            return
        does = self.chance.choices(list(ENDS), (8, 1, 1, 1))[0]
        numbers = {"evaluations": self.chance.randint(3, 40), "pause_s": self.chance.uniform(0.0, 0.05)}
        body, key = {"kind": "stub", "config": CONFIG, "does": does, **numbers}, self.chance.randbytes(8).hex()
        for _ in range(self.chance.choice((1, 2))):
            answer = self.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": key})
            if answer.status_code == 201:
                self.jobs.append(answer.json()["id"])
                self.note(job=self.jobs[-1], key=key)

    def look(self) -> None:
        """Read pages and answers of any kind."""
        job = self.chance.choice(self.jobs) if self.jobs else "none"
        paths = ("/", "/jobs", "/workers", "/devices", "/metrics", "/healthz", "/readyz", "/page/new", "/uploads")
        self.ask("GET", self.chance.choice((*paths, f"/jobs/{job}", f"/jobs/{job}/files", f"/page/jobs/{job}")))

    def follow(self) -> None:
        """Follow a job for a few events."""
        if not self.jobs:
            return
        with self.http.stream("GET", f"/jobs/{self.jobs[-1]}/events") as answer:
            self.note(status=answer.status_code)
            for number, _ in enumerate(answer.iter_lines()):
                if number > 20:
                    return

    def change(self) -> None:
        """Cancel a job, and mostly resume it."""
        if not self.jobs:
            return
        job = self.chance.choice(self.jobs[-8:])
        self.note(cancelled=job)
        self.ask("POST", f"/jobs/{job}/cancel")
        if self.chance.random() < 0.8:
            self.ask("POST", f"/jobs/{job}/resume")

    def send(self) -> None:
        """Send a file, and mostly remove it."""
        answer = self.ask("POST", f"/uploads/{self.chance.randbytes(3).hex()}.safetensors", content=FILE)
        if answer.status_code == 201 and self.chance.random() < 0.9:
            self.ask("DELETE", f"/uploads/{answer.json()['id']}")

    def run(self) -> None:
        """Do things until killed."""
        while True:
            with suppress(httpx.TransportError):
                self.chance.choices((self.submit, self.look, self.follow, self.change, self.send), (6, 6, 2, 1, 1))[0]()
            time.sleep(self.chance.uniform(0.1, 1.0) / self.pace)


def be_client(url: str, log: str, seed: str, pace: str) -> None:
    """Run a client."""
    with httpx.Client(base_url=url, timeout=60.0) as http, Path(log).open("a") as stream:
        Client(http, stream, random.Random(f"{seed} {os.getpid()}"), float(pace)).run()


ROLES = {"server": be_server, "worker": be_worker, "device": be_device, "client": be_client}


@dataclass
class Soak:
    """The processes by name, each with its command and its log in a folder; what is killed is started again."""

    commands: Mapping[str, Sequence[str]]
    folder: Path
    database: Any = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    most_mib: dict[str, float] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a process in a session of its own."""
        command = [sys.executable, str(Path(__file__).absolute()), "--role", *self.commands[name]]
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(command, start_new_session=True, stderr=log)

    def log(self, name: str) -> Path:
        """The file that a process of this name writes its errors to."""
        return self.folder / f"{name}.log"

    def kill(self, name: str) -> None:
        """Kill a process, and nothing that it started: that has to notice by itself."""
        self.processes[name].kill()
        self.processes[name].wait()

    def disturb(self, chance: random.Random, seconds: float, every_s: float) -> None:
        """Kill at random for so long."""
        names = [*self.commands, *(["database"] if self.database is not None else [])]
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(chance.uniform(0.2, 1.8) * every_s, left))
            self.watch()
            name = chance.choice(names)
            self.kills[name.partition(" ")[0]] += 1
            if name == "database":
                self.database.stop(signal.SIGKILL)
                time.sleep(chance.uniform(0.0, 1.0))
                self.database.start()
            else:
                self.kill(name)
                time.sleep(chance.uniform(0.0, 1.0))
                self.start(name)

    def watch(self) -> None:
        """Note the most memory of each process, MiB, and start what ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                self.kills[f"{name.partition(' ')[0]} ended by itself"] += 1
                self.start(name)
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                size = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
                kind = name.partition(" ")[0]
                self.most_mib[kind] = round(max(self.most_mib.get(kind, 0.0), size), 1)

    def close(self) -> None:
        """Kill everything."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def database_of(kind: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """The address of a new database, and its server where it has one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/service.db", None
        return
    with module(TESTS / "postgresql.py").running() as server:
        yield server.new_database(), server


def wait_for_jobs(soak: Soak, url: str) -> dict[str, dict[str, Any]]:
    """Wait until every job has ended, and return all by id."""
    deadline = time.monotonic() + PATIENCE_S
    with httpx.Client(base_url=url, timeout=60.0) as http:
        while time.monotonic() < deadline:
            soak.watch()
            with suppress(httpx.TransportError, httpx.HTTPStatusError):
                waiting = sum(len(jobs_of(http, state, most=1)) for state in ("queued", "running"))
                if not waiting:
                    return {job["id"]: job for job in jobs_of(http, None)}
            time.sleep(0.5)
    return {}


def jobs_of(http: httpx.Client, state: str | None, most: int = 10**9) -> list[dict[str, Any]]:
    """Jobs of a state, of any for None."""
    found: list[dict[str, Any]] = []
    parameters = {"limit": str(min(most, 500)), **({} if state is None else {"state": state})}
    while True:
        page = http.get("/jobs", params=parameters).raise_for_status().json()
        found += page["jobs"]
        if page["next_cursor"] is None or len(found) >= most:
            return found
        parameters["cursor"] = page["next_cursor"]


def faults_of(
    jobs: Mapping[str, Mapping[str, Any]], notes: Sequence[Mapping[str, Any]], runs: Path, has_server: bool
) -> list[str]:
    """What should not be, a line each."""
    faults = [] if jobs else [f"jobs had not ended after {PATIENCE_S:.0f} s"]
    cancelled = {note["cancelled"] for note in notes if "cancelled" in note}
    keys: dict[str, str] = {}
    for note in notes:
        if "job" in note:
            if note["job"] not in jobs:
                faults.append(f"job {note['job']} was acknowledged and is not there")
            if keys.setdefault(note["key"], note["job"]) != note["job"]:
                faults.append(f"key {note['key']} made two jobs")
        status = note.get("status", 200)
        if status >= 500 and not (status == 503 and has_server):
            faults.append(f"{note['path']} answered {status}")
    for name, job in jobs.items():
        wanted = {ENDS[job["request"]["does"]], *(["cancelled"] if name in cancelled else [])}
        if job["state"] not in wanted:
            faults.append(f"job {name} is {job['state']} ({job['problem']}), expected {' or '.join(wanted)}")
        file = runs / name / "run" / "evaluations.txt"
        stored = file.read_text().split() if file.exists() else []
        if stored != [str(number) for number in range(len(stored))]:
            faults.append(
                f"job {name} stored {len(stored)} evaluations, {len(stored) - len(set(stored))} of them twice"
            )
        if job["state"] == "done" and len(stored) != job["request"]["evaluations"]:
            faults.append(f"job {name} is done with {len(stored)} of {job['request']['evaluations']} evaluations")
    return faults


def soaked(args: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Run it, and return the figures."""
    url, server = stack.enter_context(database_of(args.database, folder))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / "clients.jsonl"
    commands = {
        "server": ["server", str(folder), url, str(port)],
        "device": ["device", address],
        **{f"worker {i}": ["worker", str(folder), url] for i in range(args.workers)},
        **{f"client {i}": ["client", address, str(log), str(args.seed), str(args.pace)] for i in range(args.clients)},
    }
    soak = Soak(commands, folder, server)
    stack.callback(soak.close)
    begun = time.monotonic()
    for name in commands:
        soak.start(name)
    soak.disturb(random.Random(args.seed), 60.0 * args.minutes, args.every)
    for name in [name for name in soak.processes if name.startswith("client")]:
        soak.kill(name)
        del soak.processes[name]
    jobs = wait_for_jobs(soak, address)
    whole = [line for line in log.read_text().splitlines() if line.endswith("}")]  # a client is killed as it writes
    notes = [json.loads(line) for line in whole]
    faults = faults_of(jobs, notes, folder, server is not None)
    if soak.most_mib.get("server", 0.0) > MOST_MIB:
        faults.append(f"the service took {soak.most_mib['server']} MiB, at most {MOST_MIB:g}")
    if faults:
        show_ends([soak.log(name) for name in commands])
    evaluations = sum(job["progress"]["evaluations"] for job in jobs.values())
    return {
        "database": args.database,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "kills": dict(soak.kills),
        "jobs": dict(Counter(job["state"] for job in jobs.values())),
        "attempts": sum(job["attempt"] for job in jobs.values()),
        "evaluations": evaluations,
        "answers": dict(sorted(Counter(str(note["status"]) for note in notes if "status" in note).items())),
        "most_mib": soak.most_mib,
        "load": round(os.getloadavg()[0], 1),
        "faults": faults,
    }


def show_ends(logs: Sequence[Path]) -> None:
    """Print how logs end."""
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        sys.stderr.write("\n".join([f"-- {log.name}", *lines[-SHOWN:], ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=1.0, help="of clients")
    parser.add_argument("--every", type=float, default=4.5, help="seconds between two kills, in the mean")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.role:
        ROLES[args.role[0]](*args.role[1:])
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process is left behind
    with ExitStack() as stack:
        figures = soaked(args, Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
