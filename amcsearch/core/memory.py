"""Memory of the process between passes of a network: kept, not given back and asked for again.

glibc maps every allocation above 32 MiB at most for itself and unmaps it when it is freed. A pass of a batch of large
images does that for each activation, and the system clears each page anew: a third of a search's processor time.
Libraries such as jemalloc and tcmalloc keep what is freed; here glibc is told to. Other C libraries are left alone.

Manual of mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["give_back_freed_memory", "keep_freed_memory", "memory_kept"]

_TRIM_THRESHOLD: Final = -1  # numbers of mallopt's parameters
_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 2**31 - 1  # bytes, the largest number that mallopt takes
_USUAL: Final = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}  # where glibc's own adjustment of both ends
_SET_BY_USER: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, until the process ends; nothing where the user chose otherwise."""
    library = _glibc()
    if library is not None:
        for parameter in _USUAL:
            library.mallopt(parameter, _KEPT)


def give_back_freed_memory() -> None:
    """Give what is free, or held by cycles alone, back to the system: blocks of one phase seldom fit those of the next.

    Statistics of a phase are often in a cycle, and large.
    """
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory for a while, then give it back to the system."""
    keep_freed_memory()
    try:
        yield
    finally:
        library = _glibc()
        if library is not None:
            for parameter, value in _USUAL.items():
                library.mallopt(parameter, value)
        give_back_freed_memory()


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc with settings that nobody chose."""
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _SET_BY_USER):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
