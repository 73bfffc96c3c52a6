"""What a rule keeps from round to round, so that a run can be carried on as if never stopped."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import Strategy

Arrays = Mapping[str, npt.NDArray[Any]]

# The attributes that hold arrays, of Flower's rules and ours: each a list or a dictionary of them.
KEPT = ("momentum_vector", "m_t", "v_t", "velocity")


def memory_of(rule: Strategy) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that `rule` keeps, by names of their own; nothing for one that does not."""
    return {
        f"{attribute}/{key}": np.asarray(array)
        for attribute in KEPT
        for key, array in _items(getattr(rule, attribute, None) or {})
    }


def remember(rule: Strategy, arrays: Arrays) -> None:
    """Give a new `rule` back what `memory_of` said of one like it."""
    for attribute in KEPT:
        own = {
            name.removeprefix(f"{attribute}/"): array
            for name, array in arrays.items()
            if name.startswith(f"{attribute}/")
        }
        if own and attribute == "momentum_vector":  # Flower's FedAvgM has a list
            setattr(rule, attribute, [own[str(number)] for number in range(len(own))])
        elif own:
            setattr(rule, attribute, own)


def _items(arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return arrays.items()
    return [(str(number), array) for number, array in enumerate(arrays)]
