"""What a classifier is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """Token ids in, one score per label out. `family` names its parts: see `scopes.FAMILIES`."""

    family: str

    @abstractmethod
    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Score the labels: (B, T) ids and (B,) lengths, both integer, give (B, K) logits."""

    @property
    def token_embedding(self) -> nn.Module | None:
        """The module that reads the ids of tokens, if that is known."""
        return None

    @abstractmethod
    def attention_maps(self, ids: Tensor, lengths: Tensor) -> Sequence[Tensor]:
        """Return one float32 (B, H, T, T) tensor of attention probabilities per layer.

        Call it in evaluation mode: dropout changes what later layers attend to.
        """


def real_tokens(ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the boolean (B, T) mask that is true for real tokens and false for padding."""
    return torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
