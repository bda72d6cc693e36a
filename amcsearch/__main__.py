"""Run the command line with ``python -m amcsearch``, or as ``amcsearch``."""

import atexit
import os
import signal
import sys

INTERRUPTED = 130


def run() -> None:
    """Run the command line in this process and end it with the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # while libraries load, nothing is lost by ending at once
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs ask for
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    codes: list[int] = []

    def end() -> None:
        if codes:
            os._exit(codes[0])

    # What is registered first runs last. Libraries then take seconds to unload, in which signals have their default
    # action again, and one would replace the exit code of a job that is done.
    atexit.register(end)
    from amcsearch.cli import main

    codes.append(main())
    sys.exit(codes[0])


if __name__ == "__main__":
    run()
