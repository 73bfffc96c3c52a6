"""The built-in classifier.

It is a pre-LN encoder (Xiong et al., 2020, arXiv 2002.04745) with rotary positions (Su et al.,
2021, arXiv 2104.09864), mean pooling over real tokens, and one linear head. Query, key, value and
output are four plain `nn.Linear` layers, so that every parameter has the same name with and
without a wrapper around the model. Positions enter queries and keys only: attention learns word
order quickly even when nothing else is trained, and there is no position parameter to send.

Shapes: B examples, T tokens, D features, H heads, K labels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.config import ModelConfig
from fedattn_app.models.batch import Batch
from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.initialise import initialise

# Gives wavelengths of 6 to about 600 tokens. The texts here are tens of tokens long.
ROTARY_BASE = 100.0


class SelfAttention(nn.Module):
    """Multi-head self-attention with H = `heads` on D = `width` features; H divides D."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor, rotation: Tensor, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Attend within each example.

        Args:
            x: Features of the tokens, float32 (B, T, D).
            mask: Boolean (B, 1, 1, T), true for real tokens.
            rotation: The result of `rotary_angles` for T tokens, float32 (2, T, D / 2H).
            maps: If it is a list, this layer appends its probabilities (B, H, T, T).

        Returns:
            Float32 (B, T, D).
        """
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D/H)
            for layer in (self.query, self.key, self.value)
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        if maps is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, T)
            maps.append(scores.masked_fill(~mask, -math.inf).softmax(-1))
            mixed = maps[-1] @ value
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return output


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token separately."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, units)
        self.contract = nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        output: Tensor = self.contract(F.gelu(self.expand(x)))
        return output


class EncoderLayer(nn.Module):
    """Attention, then feed-forward, each applied to a normalised copy and added to its input."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, rotation: Tensor, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, rotation, maps))
        output: Tensor = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return output


class TransformerClassifier(TextClassifier):
    """The built-in Transformer. `build_model` sets its initial values."""

    family = BUILT_IN

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        size = config.size
        self.embedding = nn.Embedding(config.vocabulary, size.width, padding_idx=0)
        self.layers = nn.ModuleList(
            EncoderLayer(size.width, size.heads, size.feedforward, config.dropout)
            for _ in range(size.layers)
        )
        self.final_norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, num_labels)
        self.register_buffer(
            "rotation", rotary_angles(config.max_length, size.width // size.heads), persistent=False
        )

    def forward(self, batch: Batch, maps: list[Tensor] | None = None) -> Tensor:
        """Return the logits (B, K); `SelfAttention.forward` explains `maps`."""
        ids, lengths = batch["ids"], batch["lengths"]
        keep = real_tokens(ids, lengths)
        rotation: Tensor = self.rotation[:, : ids.shape[1]]  # type: ignore[index]
        x = self.embedding(ids)  # (B, T, D)
        for layer in self.layers:
            x = layer(x, keep[:, None, None, :], rotation, maps)
        x = self.final_norm(x) * keep[..., None]
        logits: Tensor = self.head(x.sum(1) / lengths[:, None])
        return logits

    @property
    def token_embedding(self) -> nn.Module:
        """The embedding of the hashed tokens."""
        return self.embedding

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> Sequence[Tensor]:
        """Return the attention probabilities of each layer, float32 (B, H, T, T)."""
        maps: list[Tensor] = []
        self(batch, maps)
        return maps


def rotary_angles(length: int, width: int) -> Tensor:
    """Return the cosines and sines of the rotary angles, float32 (2, length, width / 2)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(ROTARY_BASE) / width))  # (D/2H,)
    angle = torch.arange(length)[:, None] * rate  # (T, D/2H)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each half-split pair of features of `x` (B, H, T, D/H) by its position's angle."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def build_model(config: ModelConfig, num_labels: int, seed: int) -> TransformerClassifier:
    """Build the model. Its parameters depend only on `seed`, so they are the same on every node."""
    with torch.random.fork_rng(devices=[]):
        model = TransformerClassifier(config, num_labels)
    initialise(model, seed)
    return model
