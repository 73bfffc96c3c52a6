"""What a run prints: our lines as they are, and of Flower's own only its errors."""

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
        wrong = record.levelno >= logging.WARNING
        self.write(record.getMessage(), sys.stderr if wrong else sys.stdout)


@contextmanager
def printing(
    write: Callable[[str, TextIO], object] | None = None,
    level: int = logging.INFO,
) -> Iterator[None]:
    """Print the lines of a run while the context lasts, warnings to standard error.

    `write` takes a line and the stream it is for; by default it prints.
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
