"""Printing of log lines: all of ours, and only the errors of Flower.

Printing never fails a run. Characters that a stream cannot encode are escaped. A stream that cannot
be written, such as a pipe whose reader has gone, is ignored from then on.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from fedattn_app.errors import RunFailedError, UserError

LOGGER = logging.getLogger("fedattn")
FLOWER = logging.getLogger("flwr")


class SafeStream:
    """A text stream for output whose `write` and `flush` never raise.

    Args:
        stream: where the text goes, or None, which Python has in place of a closed stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        """Return whether the stream is an open terminal."""
        with suppress(OSError, ValueError, AttributeError):
            return self.stream is not None and self.stream.isatty()
        return False

    def write(self, text: str) -> int:
        """Write `text`, as far as that is possible, and return its length."""
        if self.stream is None:
            return len(text)
        try:
            self.stream.write(text)
        except UnicodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            with suppress(UnicodeError, LookupError, OSError, ValueError):
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: it is closed
            self._discard()
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as far as that is possible."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        """Send all that is written to the stream from now on to nowhere.

        Python's own flush at exit would fail too, and change the exit status.
        """
        with suppress(OSError, ValueError, AttributeError):
            assert self.stream
            descriptor = self.stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, descriptor)
            finally:
                os.close(nowhere)
            self.stream.flush()


class _Writer(logging.Handler):
    def __init__(self, write: Callable[[str, SafeStream], object]) -> None:
        super().__init__()
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            self.write(record.getMessage(), SafeStream(stream))
        except Exception:
            with suppress(Exception):  # it prints too
                self.handleError(record)


@contextmanager
def printing(
    write: Callable[[str, SafeStream], object] | None = None,
    level: int = logging.INFO,
) -> Iterator[None]:
    """Print the log lines of fedattn inside this context, without their level and time.

    Args:
        write: Called with each line and its stream, which is standard error for warnings and
            errors, else standard output. By default it prints.
        level: Lines below this level are not printed.
    """
    handler = _Writer(write or print_line)
    before = LOGGER.level, LOGGER.propagate, FLOWER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    FLOWER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.level, LOGGER.propagate, FLOWER.level = before


def print_line(line: str, stream: SafeStream | TextIO | None) -> None:
    """Print `line` to `stream`; never raises."""
    safe = stream if isinstance(stream, SafeStream) else SafeStream(stream)
    safe.write(line + "\n")
    safe.flush()


def exit_status(command: Callable[[], int | None]) -> int:
    """Run the `command` of a user and return the exit status of its process.

    That is what the command returns, or 0 on success, 1 for a failed run, 2 for a user's mistake,
    and 130 when the user interrupts it. A failure is one line on standard error.
    """
    try:
        return command() or 0
    except (UserError, RunFailedError) as error:
        print_line(f"error: {error}", sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        flush_output()


def flush_output() -> None:
    """Flush standard output and standard error before the process ends; never raises."""
    SafeStream(sys.stdout).flush()
    SafeStream(sys.stderr).flush()


def occupy_closed_descriptors() -> None:
    """Open nowhere as standard input, output or error if it is closed.

    A file of the run would get its number otherwise, and with it what libraries print. Processes
    that this one starts inherit what is opened here.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(opened, True)
