"""The arrays that a rule keeps from one round to the next, such as a momentum.

A checkpoint holds them, so that a resumed run continues exactly as one that was never stopped.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import Strategy

Arrays = Mapping[str, npt.NDArray[Any]]


@runtime_checkable
class Stateful(Protocol):
    """A strategy that keeps arrays from one round to the next."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to keep, by names that are unique within the strategy."""

    def load_state(self, arrays: Arrays) -> None:
        """Restore what `state` returned on another instance; an empty mapping changes nothing."""


def state_of(strategy: Strategy) -> dict[str, npt.NDArray[Any]]:
    """Return the state of `strategy`, which is empty unless it is `Stateful`."""
    return strategy.state() if isinstance(strategy, Stateful) else {}


def load_state(strategy: Strategy, arrays: Arrays) -> None:
    """Restore what `state_of` returned for a strategy of the same class; else do nothing."""
    if isinstance(strategy, Stateful):
        strategy.load_state(arrays)


def with_prefix(prefix: str, arrays: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return `arrays` with ``prefix/`` put before each name."""
    return {f"{prefix}/{name}": np.asarray(array) for name, array in arrays.items()}


def without_prefix(prefix: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays whose names begin with ``prefix/``, under their names without it."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)
    }
