"""Arguments in, exit code out: 0 done, 2 bad input, 3 budget infeasible, 130 interrupted."""

import signal
import sys
from collections.abc import Sequence
from typing import Final

from amcsearch.cli.parser import make_parser
from amcsearch.core import BadInputError, InfeasibleBudgetError, guarded_job, printable
from amcsearch.reporting import ProgressBar

__all__ = ["main"]

BAD_INPUT: Final = 2
INFEASIBLE: Final = 3
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors are one line on stderr (``--debug`` shows the traceback)."""
    args = make_parser().parse_args(arguments)
    console = ProgressBar()
    try:
        with guarded_job(signal.SIGINT, signal.SIGTERM):
            args.run(args, console)
    except (BadInputError, InfeasibleBudgetError) as error:
        console.close()
        if args.debug:
            raise
        print(f"amcsearch: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return INFEASIBLE if isinstance(error, InfeasibleBudgetError) else BAD_INPUT
    except KeyboardInterrupt:
        console.close()
        print("amcsearch: interrupted; run the same command with --resume to go on", file=sys.stderr)
        return INTERRUPTED
    return 0
