"""Standard streams that never end a job: closed, full, lost, or of an encoding that lacks a character.

Standard output is for the result alone. What anything else prints while a verb runs goes to standard error where the
result is JSON, also what native code writes to the descriptor.
"""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

__all__ = ["Streams", "open_closed_descriptors"]


def open_closed_descriptors() -> None:
    """Open ``/dev/null`` in place of standard streams that are closed.

    Else the next file that is opened, such as a study's database, would get the number, and what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


class _Lossy(io.TextIOBase):
    """Writes to a text stream; what cannot be written is dropped. ``problem`` is the last reason."""

    def __init__(self, stream: IO[str] | None) -> None:
        self.stream = stream
        self.problem: OSError | None = None

    def write(self, text: str) -> int:
        """Write, with escapes for characters that the stream's encoding lacks."""
        encoding = self.encoding
        with self._tried():
            if self.stream is not None:
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what is buffered."""
        with self._tried():
            if self.stream is not None:
                self.stream.flush()

    @contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = error
        except ValueError as error:  # it was closed
            self.problem = OSError(str(error))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        """The stream's own."""
        if self.stream is None:
            raise io.UnsupportedOperation("no stream")
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Whether a person sees it."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """Always."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Anything else, such as ``buffer``, is the stream's own."""
        return getattr(self.__dict__["stream"], name)


class Streams:
    """The standard streams of one call of the command line; ``out`` takes the result, ``err`` everything else."""

    def __init__(self) -> None:
        self.out, self.err = _Lossy(sys.stdout), _Lossy(sys.stderr)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put lossy streams in the place of the standard ones."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self.out, self.err
        try:
            yield
        finally:
            self.out.flush()
            self.err.flush()
            sys.stdout, sys.stderr = before

    @contextmanager
    def out_is_err(self) -> Iterator[None]:
        """Send what is printed to standard error, whichever way it is printed."""
        self.out.flush()
        kept = os.dup(1)
        try:
            os.dup2(2, 1)
            sys.stdout = self.err
            yield
        finally:
            sys.stdout = self.out
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)  # what native code has printed, but not written yet
            os.dup2(kept, 1)
            os.close(kept)

    def show(self, text: str) -> OSError | None:
        """Print the result; return why that could not be done, None where it was or where the reader has gone."""
        self.out.write(f"{text}\n")
        self.out.flush()
        return None if isinstance(self.out.problem, BrokenPipeError) else self.out.problem

    def seal(self) -> None:
        """End the output of a process: nothing follows the result, and what cannot be flushed changes no exit code."""
        for descriptor, stream in ((1, self.out), (2, self.err)):
            stream.flush()
            if stream.problem is not None:
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, descriptor)
                os.close(sink)
        os.dup2(2, 1)
