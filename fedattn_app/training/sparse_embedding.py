"""Train only the embedding rows whose tokens occur in a client's examples.

A client starts with a new optimizer. The row of a token that does not occur has a gradient of zero
in every step, so its moments stay zero and only weight decay changes it. With SGD and AdamW, n
steps with learning rate η and decay λ multiply the row by (1 − ηλ)ⁿ. Adam adds the decay to the
gradient, which then enters the moments; there is no such closed form, so with Adam this module
applies only if λ = 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import TrainingConfig
from fedattn_app.models.batch import Batch
from fedattn_app.models.classifier import Classifier

# Above this share of used rows, training them apart saves nothing.
MAX_SHARE_OF_ROWS = 0.5


class _UsedRows(nn.Module):
    """An embedding that stores only the rows of the token ids `used`, int64 (R,).

    It takes the same ids as the full embedding, as long as all of them are in `used`.
    """

    def __init__(self, embedding: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(embedding.weight.detach()[used])
        positions = torch.zeros(embedding.num_embeddings, dtype=torch.int64)
        positions[used] = torch.arange(len(used))
        self.positions = positions  # of each token id in `weight`
        padding = embedding.padding_idx
        self.padding = None if padding is None else int(positions[padding])

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids (B, T), float32 (B, T, D)."""
        return F.embedding(self.positions[ids], self.weight, self.padding)


@contextmanager
def train_used_rows(
    model: Classifier, batch: Batch, steps: int, config: TrainingConfig
) -> Iterator[None]:
    """Replace the embedding of `model` by the rows that `batch` uses, while the context lasts.

    At the end of the context, the trained rows go back and the unused rows get the weight decay of
    the `steps` that the optimizer took. Apart from rounding, the parameters are those of training
    all rows. The context does nothing for a model whose embedding is frozen, shared with another
    layer or of an unusual kind, and where most rows are in use.
    """
    embedding = model.token_embedding
    if (
        not _is_plain(embedding)
        or not _has_closed_form(config)
        or (owner := _owner_of_embedding(model)) is None
    ):
        yield
        return
    used = model.embedding_rows(batch)
    if (
        used is None
        or len(used) > MAX_SHARE_OF_ROWS * embedding.num_embeddings
        or not embedding.weight.requires_grad
    ):
        yield
        return
    parent, name = owner
    rows = _UsedRows(embedding, used)
    setattr(parent, name, rows)
    try:
        yield
    finally:
        setattr(parent, name, embedding)
    with torch.no_grad():
        if config.optimizer != "adam":
            embedding.weight.mul_((1 - config.learning_rate * config.weight_decay) ** steps)
        embedding.weight[used] = rows.weight


def _is_plain(module: nn.Module | None) -> TypeGuard[nn.Embedding]:
    """Whether `module` is an embedding that only looks up rows."""
    return (
        type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq
    )


def _has_closed_form(config: TrainingConfig) -> bool:
    """Whether one formula gives the weight decay of an unused row over all steps."""
    return config.optimizer != "adam" or not config.weight_decay


@PROCESS_CACHE.keep(max_entries=1)
def _owner_of_embedding(model: Classifier) -> tuple[nn.Module, str] | None:
    """Return the module that holds the token embedding, and the attribute's name.

    Return None if the model uses the embedding or its weight in a second place too.
    """
    embedding = model.token_embedding
    owners = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if child is embedding
    ]
    weights = [p for m in model.modules() for p in m.parameters(recurse=False)]
    is_tied = sum(weight is getattr(embedding, "weight", None) for weight in weights) > 1
    return owners[0] if len(owners) == 1 and not is_tied else None
