"""What a process keeps between messages, so that it is made once: models, tokenised data, engines.

A worker of a simulation answers many messages, of many clients. Each kind of thing is kept by its
key in a bounded number, the least recently used going first. All of it is one object,
`PROCESS_CACHE`, which tests clear in one call.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class ProcessCache:
    """Results of functions, by their arguments, which must be hashable."""

    def __init__(self) -> None:
        self._functions: dict[str, Any] = {}

    def keep(self, max_entries: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function whose last `max_entries` results are kept."""

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            kept = lru_cache(maxsize=max_entries)(function)
            self._functions[f"{function.__module__}.{function.__qualname__}"] = kept
            return kept  # type: ignore[return-value]

        return decorate

    def clear(self) -> None:
        """Forget everything, as a new process would start."""
        for function in self._functions.values():
            function.cache_clear()

    def sizes(self) -> dict[str, int]:
        """Return how many results are kept, by the function's dotted name."""
        return {name: kept.cache_info().currsize for name, kept in self._functions.items()}


PROCESS_CACHE = ProcessCache()
