"""Read and write the parameters of a model as numpy arrays by name."""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from fedattn_app.types import NDArray


def get_arrays(model: nn.Module, names: Collection[str] | None = None) -> dict[str, NDArray]:
    """Return copies of the parameters and persistent buffers of `model`, by name, in its order.

    With `names`, return only those.
    """
    return {
        name: view.copy()
        for name, view in view_arrays(model).items()
        if names is None or name in names
    }


def view_arrays(model: nn.Module) -> dict[str, NDArray]:
    """Return every parameter and persistent buffer of `model`, by name, in its order.

    The arrays share the model's memory. A tensor with several names (tied weights) appears once,
    under its first name.
    """
    return {name: tensor.detach().numpy() for name, tensor in _state(model).items()}


def set_arrays(model: nn.Module, arrays: Mapping[str, NDArray]) -> None:
    """Copy `arrays` into the parameters and buffers of the same names.

    Raises `ValueError` for an unknown name or a different shape.
    """
    state = _state(model)
    for name, array in arrays.items():
        if name not in state:
            raise ValueError(f"the model has no parameter {name!r}")
        if state[name].shape != array.shape:
            raise ValueError(
                f"parameter {name!r} has shape {array.shape}, in the model "
                f"{tuple(state[name].shape)}: do the nodes agree on the model and its labels?"
            )
        np.copyto(state[name].detach().numpy(), array)


def fingerprint(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 (hex) over the names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def without(arrays: Mapping[str, NDArray], names: Collection[str]) -> dict[str, NDArray]:
    """Return `arrays` except those called `names`."""
    return {name: array for name, array in arrays.items() if name not in names}


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
