"""What a run prints: our lines as they are, and of Flower's own only what is wrong."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("fedattn")
FLOWER = logging.getLogger("flwr")


class _Writer(logging.Handler):
    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        self.write(record.getMessage())


@contextmanager
def printing(
    write: Callable[[str], object] | None = None,
    level: int = logging.INFO,
    flower_level: int = logging.WARNING,
) -> Iterator[None]:
    """Pass the lines of a run to `write`, or else to standard output, while the context lasts."""
    handler = _Writer(write or _print)
    before = LOGGER.level, LOGGER.propagate, FLOWER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    FLOWER.setLevel(flower_level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.level, LOGGER.propagate, FLOWER.level = before


def _print(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
