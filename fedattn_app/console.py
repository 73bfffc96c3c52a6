"""Printing of log lines: all of ours, and only the errors of Flower."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGER = logging.getLogger("fedattn")
FLOWER = logging.getLogger("flwr")


class _Writer(logging.Handler):
    def __init__(self, write: Callable[[str, TextIO], object]) -> None:
        super().__init__()
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        self.write(record.getMessage(), stream)


@contextmanager
def printing(
    write: Callable[[str, TextIO], object] | None = None,
    level: int = logging.INFO,
) -> Iterator[None]:
    """Print the log lines of fedattn inside this context, without their level and time.

    Args:
        write: Called with each line and its stream, which is standard error for warnings and
            errors, else standard output. By default it prints.
        level: Lines below this level are not printed.
    """
    handler = _Writer(write or _print)
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


def _print(line: str, stream: TextIO) -> None:
    print(line, file=stream, flush=True)
