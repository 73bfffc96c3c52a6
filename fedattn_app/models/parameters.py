"""Read and write the parameters of a model as numpy arrays by name."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

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
    present = view_arrays(model)
    for name in arrays:
        if name not in present:
            raise ValueError(f"the model has no parameter {name!r}")
    copy_arrays(list(arrays.values()), [present[name] for name in arrays], list(arrays))


def copy_arrays(
    sources: Sequence[NDArray], targets: Sequence[NDArray], names: Sequence[str]
) -> None:
    """Copy each array of `sources` into the array at the same position of `targets`.

    Raises `ValueError` if the numbers of arrays or the shapes at one position differ; `names` gives
    each position its name for the error text.
    """
    for source, target, name in zip(sources, targets, names, strict=True):
        if target.shape != source.shape:
            raise ValueError(
                f"parameter {name!r} has shape {source.shape}, in the model {target.shape}: do the "
                "nodes agree on the model and its labels?"
            )
        np.copyto(target, source)


def fingerprint(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 (hex) of the names, dtypes, shapes and bytes of `arrays`, by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def non_finite(arrays: Mapping[str, NDArray]) -> list[str]:
    """Return the names of the arrays that hold NaN or an infinite value."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def without(arrays: Mapping[str, NDArray], names: Collection[str]) -> dict[str, NDArray]:
    """Return the entries of `arrays` whose names are not in `names`."""
    return {name: array for name, array in arrays.items() if name not in names}


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
