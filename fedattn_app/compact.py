"""Train an embedding through the rows that a client's texts use.

A client's optimizer starts afresh. A row whose token does not occur in its texts has a gradient of
zero at every step, and so no moments: all that moves it is weight decay. With SGD and AdamW, n
steps of rate η and decay λ bring it to (1 − ηλ)ⁿ of what it was. Adam adds the decay to the
gradient before the moments, which has no such form: there rows are left out only where λ = 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.config import TrainingConfig
from fedattn_app.model import Classifier

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
    whole, used = model.token_embedding, torch.from_numpy(np.unique(ids.numpy())).long()
    if not _is_plain(whole, model) or not _gains(whole, used, config):
        yield
        return
    path = next(name for name, module in model.named_modules() if module is whole)
    parent = model.get_submodule(path.rpartition(".")[0])
    rows = _Rows(whole, used)
    setattr(parent, path.rpartition(".")[2], rows)
    try:
        yield
    finally:
        setattr(parent, path.rpartition(".")[2], whole)
    with torch.no_grad():
        if config.optimizer != "adam":
            whole.weight.mul_((1 - config.learning_rate * config.weight_decay) ** steps)
        whole.weight[used] = rows.weight


def _is_plain(whole: nn.Module | None, model: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether it only looks rows up, and its rows are nothing else in the model."""
    if type(whole) is not nn.Embedding or whole.max_norm is not None or whole.scale_grad_by_freq:
        return False
    named = (p for m in model.modules() for p in m.parameters(recurse=False))
    return sum(parameter is whole.weight for parameter in named) == 1


def _gains(whole: nn.Embedding, used: Tensor, config: TrainingConfig) -> bool:
    return (
        whole.weight.requires_grad
        and len(used) <= WORTHWHILE * whole.num_embeddings
        and (config.optimizer != "adam" or not config.weight_decay)
    )
