"""Which parameters travel, and the arrays behind their names.

A scope is a name of `SCOPES` or a regular expression; it selects whole dotted parameter names.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedattn_app.errors import UserError

NDArray = npt.NDArray[np.generic]

_ATTENTION = r".*\.attention\.(query|key|value|output)\.(weight|bias)"
_HEAD = r"head\..*"
SCOPES: Mapping[str, str] = {
    "all": r".*",
    "attention": _ATTENTION,
    "attention+head": f"{_ATTENTION}|{_HEAD}",
    "head": _HEAD,
}


def shared_names(shared: str, names: Iterable[str]) -> frozenset[str]:
    """Return those of `names` that the scope `shared` selects.

    Raises `UserError` for a regular expression that cannot be read or that matches no name.
    """
    try:
        pattern = re.compile(SCOPES.get(shared, shared))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"shared = {shared!r}: neither one of {', '.join(SCOPES)} nor a regex ({error})"
        ) from None
    known = sorted(names)
    selected = frozenset(filter(pattern.fullmatch, known))
    if not selected:
        raise UserError(
            f"shared = {shared!r}: is none of {', '.join(SCOPES)} and matches no parameter; "
            f"the names are {', '.join(known)}"
        )
    return selected


def get_arrays(model: nn.Module) -> dict[str, NDArray]:
    """Copy every parameter and persistent buffer out of `model`, by name, in its own order."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in _state(model)}


@torch.no_grad()
def set_arrays(model: nn.Module, arrays: Mapping[str, NDArray]) -> None:
    """Copy `arrays` into the parameters and buffers of the same names.

    Raises `ValueError` for an unknown name or another shape.
    """
    state = dict(_state(model))
    for name, array in arrays.items():
        if name not in state:
            raise ValueError(f"parameter {name!r} is not in the model")
        if state[name].shape != array.shape:
            raise ValueError(
                f"parameter {name!r} has shape {array.shape}, the model's has "
                f"{tuple(state[name].shape)}: do the nodes agree on the model and its labels?"
            )
        state[name].copy_(torch.from_numpy(np.asarray(array)))


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


def _state(model: nn.Module) -> Sequence[tuple[str, torch.Tensor]]:
    return list(model.state_dict(keep_vars=True).items())
