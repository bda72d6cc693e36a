"""Whatever code of the user raises is one error with its place; a signal is never taken for one."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FunctionType

import pytest

from amcsearch.core import (
    BadInputError,
    CallersOwn,
    InfeasibleBudgetError,
    Interrupted,
    UserCode,
    check_interrupt,
    described,
    guarded_job,
    printable,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Odd(BaseException):
    """Neither an Exception nor one of Python's."""


class SpeechlessError(ValueError):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def endless() -> None:
    endless()


def ending(error: BaseException) -> Callable[[], None]:
    def raises() -> None:
        raise error

    return raises


FAULTS = {
    "ValueError: bad weights": ending(ValueError("bad\n  weights")),
    "SystemExit: 0": ending(SystemExit(0)),
    "SystemExit": ending(SystemExit()),
    "GeneratorExit": ending(GeneratorExit()),
    "StopIteration": ending(StopIteration()),
    "MemoryError": ending(MemoryError()),
    "Odd: x": ending(Odd("x")),
    "RecursionError": endless,
    "SpeechlessError: its text cannot be made": ending(SpeechlessError()),
    r"ValueError: \x1b[31mred\x1b[0m \x07": ending(ValueError("\x1b[31mred\x1b[0m\n\x07")),
}


@pytest.mark.parametrize("said", FAULTS)
@pytest.mark.parametrize("guard", [lambda: UserCode("model.factory"), lambda: guarded_job(*SIGNALS)])
def test_whatever_is_raised_is_one_line_with_its_place(guard: Callable[[], UserCode], said: str) -> None:
    with pytest.raises(BadInputError) as caught, guard():
        FAULTS[said]()
    line = str(caught.value)
    assert f"raised {said}" in line
    assert f"{__file__}:" in line
    assert line.isprintable()
    assert caught.value.__cause__ is not None


def test_the_place_is_searched_in_causes_where_the_exception_itself_has_none() -> None:
    def items() -> Iterator[int]:
        yield int(next(iter(())))

    with pytest.raises(BadInputError, match=r"generator raised StopIteration \(.*test_user_code\.py:\d+, in items\)"):
        guarded_job(*SIGNALS)(list)(items())


def test_errors_that_name_their_cure_pass() -> None:
    for error in (BadInputError("use 3"), InfeasibleBudgetError("at least 4")):
        for guard in (UserCode("x"), guarded_job(*SIGNALS)):
            with pytest.raises(type(error)) as caught, guard:
                raise error
            assert caught.value is error


def test_a_fault_of_ours_passes_a_job_as_it_is() -> None:
    with pytest.raises(AttributeError):
        guarded_job(*SIGNALS)(printable)(None)  # type: ignore[arg-type]


def test_a_raised_keyboard_interrupt_is_a_fault_where_signals_are_watched() -> None:
    with pytest.raises(BadInputError, match="KeyboardInterrupt"), guarded_job(*SIGNALS):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), UserCode("x"):  # nobody would know a signal here
        raise KeyboardInterrupt


def test_leaving_the_process_is_a_fault_and_works_again_afterwards() -> None:
    real = os._exit
    with pytest.raises(BadInputError, match=r"os\._exit\(0\)"), guarded_job(*SIGNALS):
        os._exit(0)
    assert os._exit is real


MADE_OF_A_SIGNAL = (
    RuntimeError("operator"),
    OSError(28, "disk full"),
    ImportError("multiarray"),
    BadInputError("x"),
    None,
)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("made_of_it", MADE_OF_A_SIGNAL)
def test_a_signal_is_never_renamed_or_dropped(number: signal.Signals, made_of_it: Exception | None) -> None:
    def job() -> None:
        with UserCode("x"):
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                if made_of_it is not None:
                    raise made_of_it from None
        raise AssertionError("it went on")

    with pytest.raises(Interrupted):
        guarded_job(*SIGNALS)(job)()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_named_where_it_comes_and_where_the_guard_ends_after_it_was_dropped(number: signal.Signals) -> None:
    def job() -> None:
        with UserCode("x"), pytest.raises(Interrupted, match=rf"^{number.name}$"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=rf"^{number.name}$"):
        guarded_job(*SIGNALS)(job)()


def test_what_else_is_only_printed_is_still_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    def job() -> None:
        Faulty(KeyboardInterrupt("no signal came"))
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        Faulty(ValueError("no signal"))

    printed: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(str(unraisable.exc_value)))
    guarded_job(*SIGNALS)(job)()
    assert printed == ["no signal came", "no signal"]


def test_an_error_of_the_callers_own_observer_passes_every_guard() -> None:
    with UserCode("x"), CallersOwn():
        pass
    error = ValueError("mine")
    with pytest.raises(ValueError, match=r"^mine$") as caught, guarded_job(*SIGNALS), UserCode("x"), CallersOwn():
        raise error
    assert caught.value is error


def test_a_signal_where_exceptions_are_only_printed_comes_again() -> None:
    class Deaf:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def job() -> None:
        Deaf()
        threading.Event().wait(60)

    with pytest.raises(Interrupted):
        guarded_job(*SIGNALS)(job)()


def test_a_job_begins_without_the_signal_of_the_one_before_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted), guarded_job(*SIGNALS):
        os.kill(os.getpid(), signal.SIGTERM)
    with guarded_job(*SIGNALS):
        check_interrupt()
        with pytest.raises(BadInputError, match="KeyboardInterrupt"), guarded_job(signal.SIGINT):
            raise KeyboardInterrupt
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_job_in_a_thread_leaves_handlers_alone() -> None:
    met: list[str] = []

    def job() -> None:
        try:
            with guarded_job(*SIGNALS):
                raise SystemExit(0)
        except BadInputError as error:
            met.append(str(error))

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert "SystemExit: 0" in met[0]


def test_text_is_printable_and_keeps_its_spaces() -> None:
    assert printable("98\u00a0% \u2009é→") == "98\u00a0% \u2009é→"
    assert printable("a\x1b[31m\x07\x9b\u202e\u2028\ud800\n") == r"a\x1b[31m\x07\x9b\u202e\u2028\ud800\n"


def raising(error: BaseException) -> None:
    raise error


def raising_in(module: str, file: str | None = None) -> Callable[[BaseException], None]:
    """``raising`` as if it stood in another module and file."""
    code = raising.__code__.replace(co_filename=file) if file else raising.__code__
    return FunctionType(code, {"__name__": module})


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_where_no_file_of_the_user_is_the_place_is_one_in_an_installed_library(folder: str) -> None:
    installed = raising_in("lib.a", f"/x/{folder}/lib/a.py")
    with pytest.raises(
        BadInputError, match=rf"^your code raised ValueError: x \(/x/{folder}/lib/a\.py:\d+, in raising\)$"
    ):
        guarded_job(*SIGNALS)(installed)(ValueError("x"))

    def users(error: BaseException) -> None:
        installed(error)

    with pytest.raises(BadInputError, match=rf"^your code raised ValueError: x \({__file__}:\d+, in users\)$"):
        guarded_job(*SIGNALS)(users)(ValueError("x"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), RuntimeError("out of memory")])
def test_memory_that_ran_out_in_our_code_is_said_with_its_cure(error: Exception) -> None:
    with pytest.raises(
        BadInputError, match=r"^there is not enough memory \(\w+Error.*\); lower batch sizes, workers or"
    ):
        guarded_job(*SIGNALS)(raising_in("amcsearch.x"))(error)
    for ours in (RuntimeError("no such operator"), ValueError("alloc")):
        with pytest.raises(type(ours)) as caught:
            guarded_job(*SIGNALS)(raising_in("amcsearch.x"))(ours)
        assert caught.value is ours


def in_a_guard(error: BaseException) -> None:
    with UserCode("model.factory"):
        raising(error)


def test_a_guard_names_what_it_guards_and_an_error_without_a_place_has_none() -> None:
    with pytest.raises(BadInputError, match=rf"^model\.factory raised ValueError: x \({__file__}:\d+, in raising\)$"):
        guarded_job(*SIGNALS)(in_a_guard)(ValueError("x"))
    assert described(ValueError("x")) == "ValueError: x"
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert described(one) == "ValueError: one"


def test_a_long_text_is_cut_at_three_hundred_characters() -> None:
    whole = "ValueError: " + "x" * 288
    assert described(ValueError("x" * 288)) == whole
    assert described(ValueError("x" * 289)) == whole[:-1] + "…"
    assert described(ValueError(": ")) == "ValueError"


def test_what_other_code_made_of_a_signal_is_an_interruption_again() -> None:
    def job() -> None:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("operator")

    with pytest.raises(Interrupted, match=r"^while a job ran$"):
        guarded_job(*SIGNALS)(job)()
