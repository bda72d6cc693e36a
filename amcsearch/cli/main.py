"""Arguments in, exit code out: 0 done, 2 bad input, 3 budget infeasible, 4 budget not met, 130 interrupted."""

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

from amcsearch.cli.parser import make_parser
from amcsearch.cli.streams import Streams, open_closed_descriptors
from amcsearch.core import BadInputError, InfeasibleBudgetError, guarded_job, interruptible, printable
from amcsearch.reporting import ProgressBar

__all__ = ["main"]

DONE: Final = 0
BAD_INPUT: Final = 2
INFEASIBLE: Final = 3
NOT_MET: Final = 4
INTERRUPTED: Final = 130
_ERRORS: Final = {BAD_INPUT: "bad_input", INFEASIBLE: "infeasible", INTERRUPTED: "interrupted"}
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors are one line on stderr (``--debug`` shows the traceback).

    ``arguments`` None takes those of the process, which is to end with the exit code: signals that come later no longer
    change it.
    """
    is_process = arguments is None
    open_closed_descriptors()
    streams = Streams()
    with streams.in_place():
        try:
            code = _run(arguments, streams)
            if is_process:
                for number in _STOPS:
                    signal.signal(number, lambda *_: os._exit(code))
        except (BadInputError, InfeasibleBudgetError) as error:  # --debug
            if not is_process:
                raise
            traceback.print_exc()
            code = _exit_code(error)
        finally:
            if is_process:
                streams.seal()
    return code


def _run(arguments: Sequence[str] | None, streams: Streams) -> int:
    console = ProgressBar()
    args = argparse.Namespace(debug=False, json=False)
    try:
        with interruptible(*_STOPS, replace=True):
            args = make_parser().parse_args(arguments)
            with streams.out_is_err() if args.json else nullcontext(), guarded_job(*_STOPS):
                args.run(args, console)
    except KeyboardInterrupt:
        console.close()
        return _ended(args, streams, INTERRUPTED, f"interrupted{_cure(args)}")
    except (BadInputError, InfeasibleBudgetError) as error:
        console.close()
        if args.debug:
            raise
        return _ended(args, streams, _exit_code(error), str(error))
    problem = streams.show(args.shown)
    if problem is None:
        return _verdict_code(args)
    where = "" if args.kept is None else f"; it is in {args.kept}"
    _say(f"the result cannot be printed: {problem.strerror or problem}{where}")
    return BAD_INPUT if args.kept is None else _verdict_code(args)


def _cure(args: argparse.Namespace) -> str:
    """How to go on after an interruption, as far as the verb can."""
    if hasattr(args, "resume"):
        return "; run the same command with --resume to go on"
    return "; a job that was submitted goes on" if hasattr(args, "follow") else ""


def _ended(args: argparse.Namespace, streams: Streams, code: int, text: str) -> int:
    """Say why there is no result, with ``--json`` also as an object on standard output; return the exit code."""
    message = " ".join(text.split())
    if args.json:
        error = {"exit_code": code, "kind": _ERRORS[code], "message": printable(message)}
        streams.show(json.dumps({"error": error}, indent=2))
    _say(message)
    return code


def _verdict_code(args: argparse.Namespace) -> int:
    if args.not_met is None:
        return DONE
    _say(args.not_met)
    return NOT_MET


def _exit_code(error: BadInputError | InfeasibleBudgetError) -> int:
    return INFEASIBLE if isinstance(error, InfeasibleBudgetError) else BAD_INPUT


def _say(text: str) -> None:
    print(f"amcsearch: {printable(text)}", file=sys.stderr)
