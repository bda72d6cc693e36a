"""The verbs of devices that are not here: ``amcsearch verify`` with its kit, and ``amcsearch device serve``."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.cli.arguments import add_verb, count, path
from amcsearch.cli.service_verbs import RUNS
from amcsearch.cli.verbs import client_of, show
from amcsearch.core import BadInputError, counted

if TYPE_CHECKING:
    from amcsearch.cli.arguments import Commands
    from amcsearch.reporting import ProgressBar

__all__ = ["add_device_verbs", "device_serve", "verify"]

KIT: Final = "kit"


def verify(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write the kit of a run, or take what it measured."""
    if str(args.run_or_kit) == KIT:
        _write_kit(args, args.what)
        return
    from amcsearch import api
    from amcsearch.cli.run_text import run_text

    if args.connect is not None:
        _verify_there(args, console)
        return
    if args.out is not None:
        raise BadInputError(f"-o {args.out} names a kit to write: amcsearch verify kit RUN -o {args.out}")
    result = api.verify(args.run_or_kit, args.what, observer=console)
    console.close()
    show(args, result.summary.to_json(), run_text(result.summary, result.folder), result.folder)


def _verify_there(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Let a service finish the run of one of its jobs, and fetch it."""
    from amcsearch.cli.run_text import run_text

    job = str(args.run_or_kit)
    result = client_of(args.connect).verify(
        job, args.what, folder=args.out or RUNS / f"{job}-verified", observer=console
    )
    console.close()
    show(args, result.summary.to_json(), run_text(result.summary, result.folder), result.folder)


def _write_kit(args: argparse.Namespace, folder: Path) -> None:
    from amcsearch.jobs import write_verify_kit
    from amcsearch.runs import RunFolder

    if args.out is None:
        raise BadInputError(f"say where the kit goes: amcsearch verify kit {folder} -o verify.pyz")
    kit = write_verify_kit(RunFolder.open(folder), args.out)
    size = f"{counted(kit.models, 'model')}, {kit.bytes / 2**20:.1f} MiB"
    text = f"{kit.kit}: {size}; on the device: {kit.run}; then: {kit.then}"
    show(args, {**asdict(kit), "kit": str(kit.kit)}, text, kit.kit)


def device_serve(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Hand out measurements to agents until interrupted."""
    from amcsearch.core import check_interrupt
    from amcsearch.measure import DeviceServer, WorkList
    from amcsearch.runs import expanded
    from amcsearch.runtime import DeviceError, read_token

    try:
        token = None if args.token_file is None else read_token(str(args.token_file))
    except DeviceError as error:
        cure = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE"
        raise BadInputError(f"{error}; make one: {cure}") from error
    work = WorkList(args.folder or expanded("~/.cache/amcsearch/devices"))
    try:
        server = DeviceServer(work, args.host, args.port, token)
        guarded = "with a token" if token is not None else "without a token, for this machine alone"
        console.phase(f"Serving devices at {server.url}, {guarded}; end it with Ctrl-C")
        with server:
            while True:
                server.handle_request()
                check_interrupt()
    finally:
        work.close()


def add_device_verbs(commands: "Commands") -> None:
    """Add the verbs to the parser."""
    example = "amcsearch verify kit runs/mine -o verify.pyz, and with what it wrote on the device: amcsearch verify "
    text = "finish a run of device.location = offline: write the kit that measures it, or take what the kit measured"
    command = add_verb(commands, "verify", verify, text, example + "runs/mine result.jsonl")
    forms = ("kit RUN -o KIT", "RUN RESULT", "JOB RESULT --connect URL [-o FOLDER]")
    command.usage = "\n       ".join(f"%(prog)s [-h] [--json] [--debug] {form}" for form in forms)
    command.add_argument("run_or_kit", type=path, metavar="RUN", help="run folder; the word kit; or the id of a job")
    command.add_argument("--connect", metavar="URL", help="a service, which finishes the run of its job")
    command.add_argument("what", type=path, metavar="RESULT", help="result that the kit wrote; after kit: run folder")
    command.add_argument("-o", "--out", type=path, help="kit to write; with --connect, folder for the files")
    device = commands.add_parser("device", help="agents of devices", description="Devices whose agents measure.")
    parts = device.add_subparsers(title="verbs", metavar="VERB", required=True)
    example = "amcsearch device serve --host 0.0.0.0 --token-file token"
    text = "hand out measurements to the agents of devices (kit.pyz agent), until interrupted"
    command = add_verb(parts, "serve", device_serve, text, example)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1, this machine alone)")
    command.add_argument("--port", type=count, default=8753, help="port; 0 takes a free one (8753)")
    command.add_argument("--token-file", type=path, help="file of the token; needed where others reach the address")
    command.add_argument("--folder", type=path, help="work and records (default: ~/.cache/amcsearch/devices)")
