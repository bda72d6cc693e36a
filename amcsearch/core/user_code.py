"""The guard around code of the user: whatever it raises is one ``BadInputError`` that says whose it is and where.

Factories, data sets, models and everything else that a configuration names is code that was not written here. It may
raise what ends a process (SystemExit, KeyboardInterrupt) or a loop (StopIteration, GeneratorExit); none of these may
pass for the end of a job.
"""

import logging
import os
import signal
import sysconfig
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn

from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.core.interrupts import (
    Interrupted,
    check_interrupt,
    interrupt_asked,
    interruptible,
    interrupts_are_watched,
)
from amcsearch.core.memory import memory_kept

__all__ = [
    "KEEPERS",
    "CallersOwn",
    "UserCode",
    "described",
    "guarded_job",
    "one_line",
    "place_in_user_code",
    "printable",
    "settings_kept",
]

_log = logging.getLogger(__name__)
_LIBRARIES: Final = frozenset({"amcsearch", "torch", "numpy", "optuna", "onnx", "onnxruntime"})
_STOPS: Final = (int(signal.SIGINT), int(signal.SIGTERM))  # plain numbers are read faster
_PASSES: Final = "_amcsearch_passes"  # attribute of exceptions that no guard changes


Keeper = Callable[[], Callable[[], Iterable[str]]]
"""Notes settings of the process; what it returns puts back those that changed since and names each."""

KEEPERS: Final[list[Keeper]] = []
"""What every guard keeps: rooms that know settings of a library add theirs."""


class UserCode:
    """Context manager around calls of code of the user; ``label`` names it as the user knows it: ``data: train split``.

    Anything raised inside, also what is no ``Exception``, becomes a ``BadInputError`` that names ``label``, the
    exception's type and text, and the place in the user's files. ``BadInputError`` and ``InfeasibleBudgetError`` pass
    as they are. An interruption passes, also one that the code has caught or renamed. Settings of the process that the
    code leaves changed (the folder, handlers of signals, torch's defaults and modes) are put back, and logged.

    Raises:
        BadInputError: the code raised something, which is its cause.
        Interrupted: SIGINT or SIGTERM came.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._settings = settings_kept(label)

    def __enter__(self) -> None:
        """Note the settings."""
        self._settings.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._settings.__exit__(None, None, None)
        if error is None:
            check_interrupt()
        elif not _is_no_fault(error):
            raise BadInputError(f"{self._label} raised {described(error)}") from error


@contextmanager
def settings_kept(label: str) -> Iterator[None]:
    """Put back, and log, the settings of the process that ``label`` leaves changed."""
    noted = [keeper() for keeper in KEEPERS]
    try:
        yield
    finally:
        for changed in (text for put_back in noted for text in put_back()):
            _log.warning("%s changed %s; it is put back", printable(label), printable(changed))


@contextmanager
def guarded_job(*signals: int) -> Iterator[None]:
    """Run a whole job: these signals interrupt it, and only its own end may pass for its end.

    What code of the user raises outside every narrower ``UserCode`` is named as the user's by its place alone; a fault
    without a place in the user's files is ours and passes as it is. ``os._exit``, which would end the process with the
    exit code of a success, raises SystemExit instead.

    Raises:
        BadInputError: code of the user raised something, which is its cause.
        Interrupted: SIGINT or SIGTERM came.
    """
    with interruptible(*signals), _exits_refused(), settings_kept("your code"), memory_kept():
        try:
            yield
        except BaseException as error:
            if _is_no_fault(error):
                raise
            if isinstance(error, Exception) and not place_in_user_code(error):
                if _is_out_of_memory(error):
                    raise BadInputError(
                        f"there is not enough memory ({one_line(error)}); lower batch sizes, workers or samples"
                    ) from error
                raise
            raise BadInputError(f"your code raised {described(error)}") from error


class CallersOwn:
    """Context manager around an observer that the caller of the Python API handed over.

    What it raises is for the caller to catch and passes every guard as it is.
    """

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            vars(error)[_PASSES] = True


def _settings_of_python() -> Callable[[], Iterable[str]]:
    """Keep the current folder, by which relative paths are read, and the handlers of SIGINT and SIGTERM."""
    folder = _current_folder()
    handlers = {number: signal.getsignal(number) for number in _STOPS}

    def put_back() -> Iterator[str]:
        if folder is not None and _current_folder() != folder:
            os.chdir(folder)
            yield "the current folder"
        for number, handler in handlers.items() if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
                yield f"the handler of {signal.Signals(number).name}"

    return put_back


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


KEEPERS.append(_settings_of_python)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in Python or in torch, which says so by RuntimeErrors."""
    message = one_line(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("alloc" in message or "out of memory" in message)
    )


def _is_no_fault(error: BaseException) -> bool:
    """Whether an exception passes as it is.

    Raises:
        Interrupted: a signal came, and this is what other code made of it.
    """
    if isinstance(error, Interrupted) or _PASSES in vars(error):
        return True
    if interrupt_asked():
        raise Interrupted("while a job ran") from error
    if isinstance(error, KeyboardInterrupt):
        return not interrupts_are_watched()  # then nobody can say whether it is a real one
    return isinstance(error, BadInputError | InfeasibleBudgetError)


@contextmanager
def _exits_refused() -> Iterator[None]:
    """Make ``os._exit`` raise in this process; a child that was forked from it ends by it as ever."""
    real, owner = os._exit, os.getpid()

    def refused(status: int) -> NoReturn:
        if os.getpid() != owner:
            real(status)
        raise SystemExit(f"os._exit({status!r})")

    os._exit = refused
    try:
        yield
    finally:
        os._exit = real


def described(error: BaseException) -> str:
    """Type and text of an exception, and the place in files of the user that it came from, on one line."""
    place = place_in_user_code(error)
    return one_line(error) + (f" ({place})" if place else "")


def one_line(error: BaseException, limit: int = 300) -> str:
    """Type and text of an exception on one line of at most ``limit`` characters."""
    try:
        message = str(error)
    except BaseException:  # this is code of the user, too
        check_interrupt()
        message = "its text cannot be made"
    text = printable(" ".join(f"{type(error).__name__}: {message}".split())).rstrip(": ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """Return text with control characters, also those of terminals, and lone surrogates written as escapes.

    Spaces of any width stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def place_in_user_code(error: BaseException) -> str:
    """Return ``file.py:12, in forward``: the innermost place in the user's files that an exception came through.

    Where there is none, one in an installed library that is neither torch nor ours; else nothing.
    """
    fallback = ""
    for link in _chain(error):
        frames = [frame for frame in map(_located, traceback.walk_tb(link.__traceback__)) if frame is not None]
        users = [place for place, is_installed in frames if not is_installed]
        if users:
            return users[-1]
        fallback = fallback or next((place for place, _ in reversed(frames)), "")
    return fallback


def _located(step: tuple[FrameType, int]) -> tuple[str, bool] | None:
    """Place of a frame, and whether it is of an installed library; None for ours, torch's and Python's own."""
    frame, line = step
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    if module.partition(".")[0] in _LIBRARIES or file.startswith(("<frozen", "<string>")):
        return None
    if not is_installed and any(file.startswith(folder + os.sep) for folder in _standard_library()):
        return None
    return printable(f"{file}:{line}, in {frame.f_code.co_name}"), is_installed


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, the first cause last."""
    link: BaseException | None = error
    passed: set[int] = set()
    while link is not None and id(link) not in passed:
        yield link
        passed.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


@cache
def _standard_library() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
