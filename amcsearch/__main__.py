"""Run the command line with ``python -m amcsearch``, or as ``amcsearch``."""

import os
import signal
import sys

INTERRUPTED = 130


def run() -> None:
    """Run the command line in this process and end it with the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # while libraries load, nothing is lost by ending at once
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs ask for
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    from amcsearch.cli import main

    sys.exit(main())


if __name__ == "__main__":
    run()
