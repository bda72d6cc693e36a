"""SIGINT and SIGTERM during a job: remembered, so that nothing which catches exceptions can lose or rename them.

A signal raises ``Interrupted`` wherever the main thread is: inside an import, a database's callback, an operator of
torch. Such code may turn the exception into an error of its own, or drop it. The signal is therefore also remembered;
``check_interrupt`` raises it again, and what a job raises after a signal counts as the interruption.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

__all__ = ["Interrupted", "check_interrupt", "interrupt_asked", "interruptible", "interrupts_are_watched"]

_AGAIN_S: Final = 0.05  # after which a signal that nobody could catch is sent again


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM reached this process; also where other code had caught the first exception."""


class _Watch:
    """What ``interruptible`` has installed: how many are entered, and the signal that came, if one did."""

    depth = 0
    signal: int | None = None


def interrupts_are_watched() -> bool:
    """Whether a signal of this process would be noticed, so that any other KeyboardInterrupt is user code's."""
    return _Watch.depth > 0


def interrupt_asked() -> bool:
    """Whether SIGINT or SIGTERM came since the outermost ``interruptible`` was entered."""
    return _Watch.signal is not None


def check_interrupt() -> None:
    """Raise the interruption that came earlier, if one did.

    Raises:
        Interrupted: a signal came, and what it raised was caught on its way.
    """
    if _Watch.signal is not None:
        raise Interrupted(signal.Signals(_Watch.signal).name)


@contextmanager
def interruptible(*signals: int, replace: bool = False) -> Iterator[None]:
    """Turn these signals into ``Interrupted`` while a job runs; one may stand inside another.

    Handlers belong to the main thread: elsewhere nothing is installed. A signal that is ignored (``nohup``) stays so. A
    handler of SIGINT that is not Python's own stays unless ``replace``, since a program that has one knows why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    if not replace and before.get(signal.SIGINT, _raise) not in (signal.default_int_handler, _raise):
        del before[signal.SIGINT]
    hook: Callable[[sys.UnraisableHookArgs], object] = sys.unraisablehook
    is_outermost = _Watch.depth == 0
    if is_outermost:
        _Watch.signal = None
    _Watch.depth += 1
    try:
        for number in before:
            signal.signal(number, _raise)
        sys.unraisablehook = lambda unraisable: _send_again(unraisable, hook)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _Watch.depth -= 1
        if is_outermost:
            _Watch.signal = None


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    _Watch.signal = number
    raise Interrupted(signal.Signals(number).name)


def _send_again(unraisable: "sys.UnraisableHookArgs", otherwise: Callable[["sys.UnraisableHookArgs"], object]) -> None:
    """Send a signal again that arrived where exceptions are only printed: in ``__del__``, or a C library's callback."""
    number = _Watch.signal
    if number is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
        otherwise(unraisable)
        return
    threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
