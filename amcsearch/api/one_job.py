"""What every function of the Python API runs in."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amcsearch.core import guarded_job
from amcsearch.graph import usual_modes

__all__ = ["one_job"]

_ALONE = threading.RLock()


@contextmanager
def one_job() -> Iterator[None]:
    """Run a whole job of the caller's, beside which nothing changes for the caller.

    Ctrl-C interrupts it. Torch is in its usual modes, whatever the caller's are at the moment; its random numbers go on
    where they were. A job sets settings of the process, so a second thread waits for the first.

    Raises:
        BadInputError, Interrupted: as ``guarded_job``.
    """
    with _ALONE, torch.random.fork_rng(devices=[]), guarded_job(signal.SIGINT), usual_modes():
        yield
