"""Arguments in, exit code out: 0 done, 2 bad input, 3 budget infeasible, 130 interrupted."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from amcsearch.cli.parser import make_parser
from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.reporting import ProgressBar

__all__ = ["main"]

BAD_INPUT: Final = 2
INFEASIBLE: Final = 3
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors are one line on stderr (``--debug`` shows the traceback)."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    args = make_parser().parse_args(arguments)
    console = ProgressBar()
    try:
        args.run(args, console)
    except (BadInputError, InfeasibleBudgetError) as error:
        console.close()
        if args.debug:
            raise
        print(f"amcsearch: {' '.join(str(error).split())}", file=sys.stderr)
        return INFEASIBLE if isinstance(error, InfeasibleBudgetError) else BAD_INPUT
    except KeyboardInterrupt:
        console.close()
        print("amcsearch: interrupted; run the same command with --resume to go on", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Treat a batch system's stop like Ctrl-C: what is stored stays, the run can be resumed."""
    del signum, frame
    raise KeyboardInterrupt
