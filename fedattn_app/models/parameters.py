"""The arrays behind a model's parameter names."""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from fedattn_app.types import NDArray


def get_arrays(model: nn.Module, names: Collection[str] | None = None) -> dict[str, NDArray]:
    """Copy parameters and persistent buffers out of `model`, by name, in its own order.

    With `names`, only those.
    """
    return {
        name: view.copy()
        for name, view in view_arrays(model).items()
        if names is None or name in names
    }


def view_arrays(model: nn.Module) -> dict[str, NDArray]:
    """Return every parameter and persistent buffer of `model` in its own order, without copying.

    A tensor with several names (tied weights) has the first of them only.
    """
    return {name: tensor.detach().numpy() for name, tensor in _state(model).items()}


def set_arrays(model: nn.Module, arrays: Mapping[str, NDArray]) -> None:
    """Copy `arrays` into the parameters and buffers of the same names.

    Raises `ValueError` for an unknown name or another shape.
    """
    state = _state(model)
    for name, array in arrays.items():
        if name not in state:
            raise ValueError(f"parameter {name!r} is not in the model")
        if state[name].shape != array.shape:
            raise ValueError(
                f"parameter {name!r} has shape {array.shape}, the model's has "
                f"{tuple(state[name].shape)}: do the nodes agree on the model and its labels?"
            )
        np.copyto(state[name].detach().numpy(), array)


def fingerprint(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 (hex) of names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def without(arrays: Mapping[str, NDArray], names: Collection[str]) -> dict[str, NDArray]:
    """Return `arrays` less those named."""
    return {name: array for name, array in arrays.items() if name not in names}


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
