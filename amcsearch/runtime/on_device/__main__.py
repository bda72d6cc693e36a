"""The kit's command line: ``python3 kit.pyz -o result.jsonl``, and ``python3 kit.pyz agent``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Sequence

from amcsearch.runtime.on_device import agent
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import DevicePlan, read_plan
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.session import CPU

__all__ = ["main"]

AGENT = "agent"
BAD_INPUT, INTERRUPTED = 2, 130
REDRAW_S, LINE_S = 0.2, 30.0
WIDTH = 110


class Progress:
    """One line that is drawn again in a terminal; a line now and then in a log."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, share: float, text: str) -> None:
        """Report the share done."""
        now = time.monotonic()
        if now < self._next:
            return
        line = f"{share:4.0%} {text}"
        if self._terminal:
            sys.stderr.write(f"\r{line[:WIDTH]:<{WIDTH}}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        self._next = now + (REDRAW_S if self._terminal else LINE_S)

    def close(self) -> None:
        """End the line."""
        if self._terminal:
            sys.stderr.write("\n")


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kit.pyz",
        description="Measure this kit's models with ONNX Runtime; the same command again goes on with a result. "
        "`kit.pyz agent` measures what a server asks for.",
        epilog="example: python3 kit.pyz -o result.jsonl --threads 1 --minutes 20",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="RESULT.jsonl", help="result file, begun or gone on with")
    parser.add_argument("--threads", type=int, help="threads inside an operator (default: the kit's, or 1)")
    parser.add_argument("--provider", help="execution provider (default: the kit's, or CPU)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes (default: when all is measured)")
    parser.add_argument("--list", action="store_true", help="list the kit's models and stop")
    parsed = parser.parse_args(arguments)
    if parsed.out is None and not parsed.list:
        parser.error("say where the result goes: -o result.jsonl")
    return parsed


def _listed(plan: DevicePlan) -> str:
    lines = []
    for entry, model in zip(plan.entries, plan.plan["models"]):
        work = " ".join(["graph", *["timing"] * entry.timed, *["profile"] * entry.profiled])
        lines.append(f"{entry.id}\t{entry.network}\t{model['role']}\t{plan.model_bytes(entry) / 2**20:.1f} MiB\t{work}")
    return "\n".join(lines) + "\n"


def _summary(end: dict[str, Any], out: Path) -> str:
    coverage, drift = end["coverage"], end["drift"]
    lines = [f"note: {note}" for note in end["notes"]]
    state = "complete" if end["complete"] else "incomplete; run this again to go on"
    timed = "+".join(str(n) for n in coverage["timed"])
    lines.append(f"{out}: {state}: {coverage['models']} models, timed {timed}, profiled {coverage['profiled']}")
    if coverage["left_out"] or coverage["failed"]:
        lines.append(f"left out for lack of time: {len(coverage['left_out'])}; failed: {len(coverage['failed'])}")
    lines.append(f"{drift['disturbed_share']:.0%} of rounds disturbed, largest drift {drift['largest'] - 1:.1%}")
    return "\n".join(lines) + "\n"


def _checked(arguments: argparse.Namespace, plan: DevicePlan) -> Settings:
    """How to run the plan: as it says where the arguments do not."""
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise DeviceError(f"--minutes {arguments.minutes} must be more than 0")
    if arguments.threads is not None and arguments.threads < 1:
        raise DeviceError(f"--threads {arguments.threads} must be at least 1")
    setting = plan.plan.get("setting", {})
    threads, provider = setting.get("threads", 1), setting.get("provider", CPU)
    return Settings(arguments.threads or threads, arguments.provider or provider, arguments.minutes)


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _agent(arguments: Sequence[str]) -> int:
    try:
        return agent.main(arguments, _line)
    except DeviceError as error:
        _line(f"kit.pyz agent: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _line("interrupted; the same command goes on where it stopped")
        return INTERRUPTED


def main(kit: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the kit at ``kit``, or its agent; the exit code is 0, 2 for bad input, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [AGENT]:
        return _agent(given[1:])
    parsed = _arguments(given)
    progress = Progress()
    try:
        plan = read_plan(kit)
        if parsed.list:
            sys.stdout.write(_listed(plan))
            return 0
        end = run(plan, parsed.out, _checked(parsed, plan), progress)
        progress.close()
        sys.stderr.write(_summary(end, parsed.out))
        return 0
    except DeviceError as error:
        progress.close()
        sys.stderr.write(f"kit.pyz: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        progress.close()
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        return INTERRUPTED
