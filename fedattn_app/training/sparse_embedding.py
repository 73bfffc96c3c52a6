"""Train an embedding through the rows that a client's texts use.

A client's optimizer starts afresh. A row whose token does not occur in its texts has a gradient of
zero at every step, and so no moments: all that moves it is weight decay. With SGD and AdamW, n
steps of rate η and decay λ bring it to (1 − ηλ)ⁿ of what it was. Adam adds the decay to the
gradient before the moments, which has no such form: there rows are left out only where λ = 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.config import TrainingConfig
from fedattn_app.models.classifier import Classifier

# With more than this share of all rows in use there is nothing to gain.
WORTHWHILE = 0.5


class _Rows(nn.Module):
    """Stands in for an embedding, with the rows `used` only; takes the same ids."""

    def __init__(self, whole: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach()[used])
        places = torch.zeros(whole.num_embeddings, dtype=torch.int64)
        places[used] = torch.arange(len(used))
        self.places = places
        self.padding = None if whole.padding_idx is None else int(places[whole.padding_idx])

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (B, T) ids."""
        return F.embedding(self.places[ids], self.weight, self.padding)


@contextmanager
def compact_embedding(
    model: Classifier, ids: Tensor, steps: int, config: TrainingConfig
) -> Iterator[None]:
    """Let the `model` train the rows for `ids` alone, and move the others when the context ends.

    `steps` are those that the optimizer takes in the context. The parameters come to what training
    all rows makes of them, up to rounding. A model whose embedding is not trained, or is not a
    plain one, is left as it is.
    """
    whole = model.token_embedding
    if not _is_plain(whole) or not _decay_is_known(config) or (place := _place(model)) is None:
        yield
        return
    used = torch.from_numpy(np.unique(ids.numpy())).long()
    if len(used) > WORTHWHILE * whole.num_embeddings or not whole.weight.requires_grad:
        yield
        return
    parent, name = place
    rows = _Rows(whole, used)
    setattr(parent, name, rows)
    try:
        yield
    finally:
        setattr(parent, name, whole)
    with torch.no_grad():
        if config.optimizer != "adam":
            whole.weight.mul_((1 - config.learning_rate * config.weight_decay) ** steps)
        whole.weight[used] = rows.weight


def _is_plain(whole: nn.Module | None) -> TypeGuard[nn.Embedding]:
    """Whether it does no more than look rows up."""
    return type(whole) is nn.Embedding and whole.max_norm is None and not whole.scale_grad_by_freq


def _decay_is_known(config: TrainingConfig) -> bool:
    return config.optimizer != "adam" or not config.weight_decay


@lru_cache(maxsize=1)
def _place(model: Classifier) -> tuple[nn.Module, str] | None:
    """Return the module that has the embedding, and its name there.

    None where the rows are something else in the model too.
    """
    whole = model.token_embedding
    owned = [
        (module, name)
        for module in model.modules()
        for name, part in module.named_children()
        if part is whole
    ]
    weights = [p for m in model.modules() for p in m.parameters(recurse=False)]
    shared = sum(weight is getattr(whole, "weight", None) for weight in weights) > 1
    return owned[0] if len(owned) == 1 and not shared else None
