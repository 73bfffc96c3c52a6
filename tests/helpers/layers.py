"""Classifiers with a single trained layer, to compare each kind of layer with autograd."""

import peft
import torch
from torch import nn

from fedattn_app.models.classifier import real_tokens
from helpers.per_example import LABELS, LONGEST, TOKENS


class SingleLayer(nn.Module):
    """A frozen embedding, the trained `layer`, and a fixed readout."""

    def __init__(self, layer, width=6):
        super().__init__()
        self.words = nn.Embedding(TOKENS, width)
        self.layer = layer
        self.readout = torch.randn(100, LABELS)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        features = self.features(ids).tanh() * real_tokens(ids, lengths)[..., None]
        return self.scores(features.sum(1) / lengths[:, None])

    def features(self, ids):
        """Return the features of each token, (B, T, ·)."""
        return self.layer(self.words(ids))

    def scores(self, features):
        return (features.tanh() + features) @ self.readout[: features.shape[1]]


class Pooled(SingleLayer):
    """The layer takes the mean of the tokens."""

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        pooled = self.words(ids) * real_tokens(ids, lengths)[..., None]
        return self.scores(self.layer(pooled.sum(1) / lengths[:, None]))


class PerHalf(SingleLayer):
    """The layer takes each half of a token's features separately."""

    def features(self, ids):
        return self.layer(self.words(ids).unflatten(-1, (2, -1))).flatten(2)


class Twice(SingleLayer):
    """The layer is used twice: it takes its own output."""

    def features(self, ids):
        return self.layer(self.layer(self.words(ids)).tanh())


class Words(SingleLayer):
    """The layer is an embedding of the tokens."""

    def features(self, ids):
        return self.layer(ids)


class Positions(SingleLayer):
    """The layer is an embedding of the positions, which all examples share."""

    def features(self, ids):
        return self.words(ids) + self.layer(torch.arange(ids.shape[1])[None])


class Tied(Words):
    """The layer is an embedding whose weight is also that of a linear layer."""

    def __init__(self, layer):
        super().__init__(layer)
        self.tied_layer = nn.Linear(6, TOKENS, bias=False)
        self.tied_layer.weight = layer.weight

    def features(self, ids):
        return self.tied_layer(self.layer(ids))


class WeightedTokens(nn.Module):
    """Sums another classifier's tokens with weights, of opposite signs so that gradients cancel."""

    def __init__(self, inner, weights):
        super().__init__()
        self.inner = inner
        self.weights = torch.tensor(weights)

    def forward(self, batch):
        return self.inner.scores((self.inner.features(batch.ids) * self.weights[:, None]).sum(1))


class Scale(nn.Module):
    """A layer that no fast engine supports."""

    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.factors


def linear_with_lora():
    model = SingleLayer(nn.Linear(6, 4))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["layer"]), model)
    return model


SUPPORTED = {
    "linear": lambda: SingleLayer(nn.Linear(6, 4)),
    "linear without bias": lambda: SingleLayer(nn.Linear(6, 4, bias=False)),
    "wide linear": lambda: SingleLayer(nn.Linear(24, 40), width=24),
    "wide linear without bias": lambda: SingleLayer(nn.Linear(24, 40, bias=False), width=24),
    "linear of a pooled text": lambda: Pooled(nn.Linear(6, 4)),
    "linear of a pooled text without bias": lambda: Pooled(nn.Linear(6, 4, bias=False)),
    "linear of halves": lambda: PerHalf(nn.Linear(3, 4)),
    "layer norm": lambda: SingleLayer(nn.LayerNorm(6)),
    "layer norm without bias": lambda: SingleLayer(nn.LayerNorm(6, eps=0.3, bias=False)),
    "embedding": lambda: Words(nn.Embedding(TOKENS, 6)),
    "embedding with padding": lambda: Words(nn.Embedding(TOKENS, 6, padding_idx=5)),
    "positions": lambda: Positions(nn.Embedding(LONGEST, 6)),
    "linear with LoRA": linear_with_lora,
}
# Layers for which BookKeeping must not be selected.
UNSUPPORTED = {
    "layer norm of a pooled text": lambda: Pooled(nn.LayerNorm(6)),
    "layer norm over two dimensions": lambda: PerHalf(nn.LayerNorm((2, 3))),
    "normalised embedding": lambda: Words(nn.Embedding(TOKENS, 6, max_norm=1.0)),
    "embedding scaled by frequency": lambda: Words(
        nn.Embedding(TOKENS, 6, scale_grad_by_freq=True)
    ),
    "group norm": lambda: Pooled(nn.GroupNorm(2, 6)),
    "a layer used twice": lambda: Twice(nn.Linear(6, 6)),
    "an embedding tied to a linear layer": lambda: Tied(nn.Embedding(TOKENS, 6)),
    "a layer of its own kind": lambda: SingleLayer(Scale()),
}


def model_of(layer):
    """Return the classifier, with fixed initial values, and the names of the layer's parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = (SUPPORTED | UNSUPPORTED)[layer]()
    names = {name for name, _ in model.named_parameters() if name.startswith("layer")}
    return model, {name for name in names if "base_layer" not in name}
