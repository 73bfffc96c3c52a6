"""The interface of every model that this app trains."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedattn_app.models.batch import Batch, TextBatch

# The random texts that test a gradient engine have at most this many tokens.
MAX_RANDOM_TOKENS = 7


class Classifier(nn.Module, ABC):
    """A model that scores K labels for each example of a `Batch`.

    `family` is the model's key in `models.families.FAMILIES`, which says where its attention and
    its head are. A family that is not listed there trains with ``shared = "all"`` or a regular
    expression. `load_messages` are what a user should know about how the model was loaded, each
    with its log level.
    """

    family: str
    load_messages: Sequence[tuple[int, str]] = ()

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of B examples, float32 (B, K)."""

    @abstractmethod
    def random_batch(self, count: int, max_length: int) -> Batch:
        """Return `count` random inputs, drawn from torch's global generator.

        They test whether a gradient engine is exact for this model, so they should differ in
        whatever way real inputs differ. `max_length` is the largest number of tokens of a text;
        models of other inputs ignore it.
        """

    @property
    def token_embedding(self) -> nn.Module | None:
        """The module that looks up the embedding of each token; None if there is no such module."""
        return None

    def embedding_rows(self, batch: Batch) -> Tensor | None:
        """Return the rows of `token_embedding` that `batch` uses, int64 (R,), ascending and unique.

        None if the model has no `token_embedding`.
        """
        return None

    def attention_maps(self, batch: Batch) -> Sequence[Tensor]:
        """Return the attention probabilities of each layer, float32 (B, H, T, T).

        Call it in evaluation mode, because dropout changes what later layers attend to. A model
        without attention returns nothing.
        """
        return ()


class TextClassifier(Classifier):
    """A classifier of token ids: its batches have the tensors ``ids`` and ``lengths``."""

    def embedding_rows(self, batch: Batch) -> Tensor | None:
        """Return the token ids that occur in `batch`, padding included."""
        if self.token_embedding is None:
            return None
        return torch.from_numpy(np.unique(batch["ids"].numpy())).long()

    def random_batch(self, count: int, max_length: int) -> TextBatch:
        """Return `count` texts of different lengths. In the longest, one token occurs twice."""
        longest = min(MAX_RANDOM_TOKENS, max_length)
        lengths = (longest - 1 - torch.arange(count)).clamp(min=1)
        lengths[0] = longest
        tokens = self.token_embedding
        tables = [tokens] if isinstance(tokens, nn.Embedding) else self.modules()
        vocabulary = max(m.num_embeddings for m in tables if isinstance(m, nn.Embedding))
        ids = torch.randint(1, vocabulary, (count, longest))
        ids[:, 0] = ids[:, -1]
        return TextBatch.of(ids.int(), lengths.int())


def real_tokens(ids: Tensor, lengths: Tensor) -> Tensor:
    """Return a boolean (B, T) mask: true for real tokens, false for padding."""
    return torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
