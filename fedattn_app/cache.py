"""Keep results in a process from one message to the next: models, tokenised data, engines.

A worker of a simulation answers messages of many clients. Each decorated function keeps a bounded
number of results, by its arguments, and drops the least recently used one first. All of them are in
one object, `PROCESS_CACHE`, which tests clear in one call.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class ProcessCache:
    """A cache of the results of functions, by their arguments, which must be hashable."""

    def __init__(self) -> None:
        self._functions: list[Any] = []

    def keep(self, max_entries: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Return a decorator that keeps the `max_entries` most recently used results."""

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            kept = lru_cache(maxsize=max_entries)(function)
            self._functions.append(kept)
            return kept  # type: ignore[return-value]

        return decorate

    def clear(self) -> None:
        """Remove all results, so that the process is as if it had just started."""
        for function in self._functions:
            function.cache_clear()


PROCESS_CACHE = ProcessCache()
