"""The verbs of the search service: serve, worker and submit."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.cli.arguments import add_config, add_verb, count, path
from amcsearch.cli.verbs import client_of, show
from amcsearch.core import MIB, BadInputError

if TYPE_CHECKING:
    from amcsearch.cli.arguments import Commands
    from amcsearch.reporting import ProgressBar
    from amcsearch.service import JobEngine, JobLimits, RemoteJob

__all__ = [
    "RUNS",
    "add_database",
    "add_service_verbs",
    "database_address",
    "serve",
    "submit",
    "worker",
]

_STORAGE_VARIABLE: Final = "AMCSEARCH_STORAGE"
_KINDS: Final = ("search", "prune", "sparsify", "front", "compare", "table_measure", "table_check")
_OTHER_KINDS: Final = ("table_build", "verify")
"""Kinds without a configuration, which their own verbs submit with --connect."""
RUNS: Final = Path("runs")
"""Folder of all jobs unless another is named."""


def add_service_verbs(commands: "Commands") -> None:
    """Add the verbs of the service to the parser."""
    example = "amcsearch serve --runs /srv/amcsearch --workers 2"
    command = add_verb(commands, "serve", serve, "serve searches over HTTP, with workers beside it", example)
    command.add_argument("--runs", type=path, default=RUNS, help="folder of all jobs (runs)")
    add_database(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=count, default=8765, help="port to listen on (8765)")
    command.add_argument("--workers", type=count, default=1, help="workers on this machine; 0 for none (1)")
    command.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE:CALLABLE",
        help="code of your own that requests may name, such as my_models:make_*; repeatable",
    )
    command.add_argument(
        "--allow-files",
        action="append",
        default=[],
        type=path,
        metavar="FOLDER",
        help="folder whose files requests may name, such as checkpoints; repeatable",
    )
    command.add_argument("--most-upload", type=count, default=256, metavar="MIB", help="of a file sent; 0: none (256)")
    command.add_argument("--most-uploads", type=count, default=16, metavar="N", help="files that a caller keeps (16)")
    _limits(command)
    _engine(command)
    _worker(commands)
    _submit(commands)


def _worker(commands: "Commands") -> None:
    example = "amcsearch worker --runs /srv/amcsearch --connect postgresql+psycopg://amc@db/amc"
    command = add_verb(commands, "worker", worker, "run jobs of a service on this machine", example)
    command.add_argument("--runs", type=path, default=RUNS, help="folder of all jobs, that of the service (runs)")
    add_database(command)
    command.add_argument("--name", default="", help="of this worker (default: made of the host's name)")
    command.add_argument(
        "--kinds", default=",".join((*_KINDS, *_OTHER_KINDS)), help="kinds of jobs that it runs, with commas between"
    )
    _limits(command)
    _engine(command)


def _submit(commands: "Commands") -> None:
    example = "amcsearch submit configs/searches/digits.yaml --connect http://127.0.0.1:8765 --follow"
    command = add_verb(commands, "submit", submit, "submit a job to a service", example)
    add_config(command)
    command.add_argument("--connect", required=True, metavar="URL", help="address of the service")
    command.add_argument("--kind", choices=_KINDS, default="search", help="what to do (search)")
    command.add_argument(
        "--argument",
        dest="arguments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the verb, such as agents=[random, nsga2] of compare; repeatable",
    )
    command.add_argument(
        "--upload",
        dest="uploads",
        action="append",
        default=[],
        metavar="KEY=FILE",
        help="send a file of yours, and let the key name it, such as model.checkpoint=net.safetensors; repeatable",
    )
    command.add_argument("--key", help="the same key with the same request gives the same job (Idempotency-Key)")
    command.add_argument("--follow", action="store_true", help="show progress, wait for the end, and fetch the files")
    command.add_argument("-o", "--out", type=path, help="with --follow: folder for the files (runs/<name>-<job>)")


def add_database(command: argparse.ArgumentParser) -> None:
    """Add the option for the database of a service."""
    command.add_argument(
        "--connect",
        metavar="DATABASE",
        help="of the jobs: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME (AMCSEARCH_DATABASE, else "
        "service.db in --runs)",
    )


def _limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--most-minutes", type=count, metavar="N", help="that a job may run")
    command.add_argument("--most-memory", type=count, metavar="MIB", help="that a job may take")
    command.add_argument("--most-processes", type=count, metavar="N", help="that a job may start")


def _engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="tcp://HOST:8786 of a Dask scheduler, whose workers evaluate for all jobs",
    )
    command.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna storage of all searches (AMCSEARCH_STORAGE, else study.db in the run of each)",
    )


def _job_engine(args: argparse.Namespace) -> "JobEngine":
    from amcsearch.service import JobEngine

    return JobEngine(args.scheduler, args.storage or os.environ.get(_STORAGE_VARIABLE) or None)


def _job_limits(args: argparse.Namespace) -> "JobLimits":
    from amcsearch.service import JobLimits

    return JobLimits(
        seconds=None if args.most_minutes is None else args.most_minutes * 60.0,
        memory_bytes=None if args.most_memory is None else args.most_memory * MIB,
        processes=args.most_processes,
    )


def database_address(args: argparse.Namespace) -> str:
    """Return the database's address as typed, else as the environment has it, else none."""
    from amcsearch.service import DATABASE_VARIABLE

    return args.connect or os.environ.get(DATABASE_VARIABLE, "")


def serve(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Serve until interrupted."""
    from amcsearch.service import ServiceLimits, ServiceSettings
    from amcsearch.service import serve as run

    most = ServiceLimits(upload_bytes=args.most_upload * MIB, uploads=args.most_uploads)
    address, folders = database_address(args), tuple(args.allow_files)
    settings = ServiceSettings(args.runs, address, tuple(args.allow), limits=most, folders=folders)
    limits, engine = _job_limits(args), _job_engine(args)
    console.phase(f"Serving on http://{args.host}:{args.port}, jobs in {args.runs}; Ctrl-C ends")
    run(settings, args.host, args.port, args.workers, limits, engine)
    show(args, {"state": "ended"}, "the service has ended; jobs that ran wait to go on")


def worker(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Run jobs until interrupted."""
    from amcsearch.service import KINDS, WorkerSettings, work

    kinds = tuple(part.strip() for part in args.kinds.split(",") if part.strip())
    unknown = next((kind for kind in kinds if kind not in KINDS), None)
    if unknown is not None:
        raise BadInputError(f"--kinds {unknown}: expected some of {', '.join(KINDS)}")
    limits, engine = _job_limits(args), _job_engine(args)
    console.phase(f"Waiting for jobs in {args.runs}; Ctrl-C gives a running job back")
    work(WorkerSettings(args.runs, database_address(args), args.name, kinds, limits=limits, engine=engine))
    show(args, {"state": "ended"}, "the worker has ended")


def submit(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Submit a job; with ``--follow``, wait for it and fetch what it left."""
    from amcsearch.config import read_unchecked

    client = client_of(args.connect)
    config, files = read_unchecked(args.config, args.overrides), _pairs(args.uploads, "--upload", "KEY=FILE")
    job = client.submit(
        args.kind,
        config,
        settings={key: client.upload(file) for key, file in files.items()},
        arguments=_arguments(args.arguments),
        idempotency_key=args.key,
    )
    if not args.follow:
        if args.out is not None:
            raise BadInputError("--out goes with --follow, which fetches the files")
        show(args, job.record.to_json(), f"job {job.id} is {job.record.state}; {args.connect}/jobs/{job.id}")
        return
    console.phase(f"Following job {job.id}; Ctrl-C leaves it running")
    folder = args.out or RUNS / f"{job.record.name}-{job.id}"
    record = job.wait(console, folder)
    console.close()
    job.fetch(folder)
    text = str(job.record.moved("\n".join([_text(job, folder), *_not_here(job, folder)]), str(folder)))
    show(args, {**record.to_json(), "folder": str(folder)}, text, folder)


def _not_here(job: "RemoteJob", folder: Path) -> list[str]:
    """Which files of the fetched configuration are to be named anew before it is used here."""
    return [
        f"{folder / 'config.yaml'} names a file of the service's machine, {file}; to use it here: --set {key}=FILE"
        for key, file in job.not_here.items()
    ]


def _text(job: "RemoteJob", folder: Path) -> str:
    """What the verb prints when it runs here, or where its files are."""
    from amcsearch.cli.run_text import run_text
    from amcsearch.cli.text import front_text
    from amcsearch.runs import FrontResult, RunFolder

    if job.record.kind == "front":
        return front_text(FrontResult.open(folder))
    if job.record.kind == "table_measure":
        from amcsearch.cli.table_verbs import table_text
        from amcsearch.config import read_latency_table

        return table_text(read_latency_table(folder), folder)
    if job.record.kind not in ("search", "prune", "sparsify"):
        return f"job {job.id} is done; its files are in {folder}"
    return run_text(RunFolder.open(folder).read_summary(), folder)


def _arguments(texts: list[str]) -> dict[str, object]:
    from amcsearch.config import parse_mapping

    values: dict[str, object] = {}
    for name, value in _pairs(texts, "--argument", "NAME=VALUE").items():
        values |= parse_mapping(f"{name}: {value}", f"--argument {name[:60]}")[0]
    return values


def _pairs(texts: list[str], option: str, form: str) -> dict[str, str]:
    """Values of a repeatable option by name.

    Raises:
        BadInputError: one without ``=``, or a name twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in values:
            raise BadInputError(f"{option} {text[:60]}: expected {form}, each name once")
        values[name] = value
    return values
