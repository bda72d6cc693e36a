"""One process at a time: a lock of the kernel's, which dies with its process."""

import fcntl
import os
from pathlib import Path
from typing import IO

from amcsearch.core import BadInputError
from amcsearch.runs.files import writing

__all__ = ["take_lock"]


def take_lock(path: Path) -> IO[str]:
    """Lock the file ``path`` for this process until the returned stream is closed; the file holds its number.

    Raises:
        BadInputError: another process holds it (names that process), or the file cannot be written or locked.
    """
    with writing(path):
        lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BadInputError(
            f"run folder {path.parent} is in use by process {owner}; wait for it to end or name another --out"
        ) from error
    except OSError as error:
        lock.close()
        raise BadInputError(f"cannot lock {path}: {error.strerror}; name another --out") from error
    return lock
