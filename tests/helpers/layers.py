"""Classifiers with one trained layer, to compare each kind of layer with autograd."""

import peft
import torch
from torch import nn

from fedattn_app.models.classifier import real_tokens
from helpers.per_example import LABELS, LONGEST, TOKENS


class Around(nn.Module):
    """A frozen embedding, the trained `layer`, and a fixed readout."""

    def __init__(self, layer, features=6):
        super().__init__()
        self.words = nn.Embedding(TOKENS, features)
        self.layer = layer
        self.readout = torch.randn(100, LABELS)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        answers = self.answers(ids).tanh() * real_tokens(ids, lengths)[..., None]
        return self.scores(answers.sum(1) / lengths[:, None])

    def answers(self, ids):
        """The features of each token, (B, T, ·)."""
        return self.layer(self.words(ids))

    def scores(self, answers):
        return (answers.tanh() + answers) @ self.readout[: answers.shape[1]]


class Pooled(Around):
    """The input of the layer is the mean over the tokens."""

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        pooled = self.words(ids) * real_tokens(ids, lengths)[..., None]
        return self.scores(self.layer(pooled.sum(1) / lengths[:, None]))


class Halves(Around):
    """The inputs of the layer are the two halves of each token's features."""

    def answers(self, ids):
        return self.layer(self.words(ids).unflatten(-1, (2, -1))).flatten(2)


class Twice(Around):
    """The layer is applied twice."""

    def answers(self, ids):
        return self.layer(self.layer(self.words(ids)).tanh())


class Words(Around):
    """The layer is an embedding of the tokens."""

    def answers(self, ids):
        return self.layer(ids)


class Positions(Around):
    """The layer is an embedding of the positions, which are the same for all examples."""

    def answers(self, ids):
        return self.words(ids) + self.layer(torch.arange(ids.shape[1])[None])


class Tied(Words):
    """The weight of the layer, an embedding, is also the weight of a linear layer."""

    def __init__(self, layer):
        super().__init__(layer)
        self.layer_too = nn.Linear(6, TOKENS, bias=False)
        self.layer_too.weight = layer.weight

    def answers(self, ids):
        return self.layer_too(self.layer(ids))


class Opposed(nn.Module):
    """Adds the tokens of another classifier with weights that almost cancel."""

    def __init__(self, inner, pulls):
        super().__init__()
        self.inner = inner
        self.pulls = torch.tensor(pulls)

    def forward(self, batch):
        return self.inner.scores((self.inner.answers(batch.ids) * self.pulls[:, None]).sum(1))


class Scale(nn.Module):
    """A layer that no engine supports."""

    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.factors


def adapted():
    model = Around(nn.Linear(6, 4))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["layer"]), model)
    return model


KNOWN = {
    "linear": lambda: Around(nn.Linear(6, 4)),
    "linear without bias": lambda: Around(nn.Linear(6, 4, bias=False)),
    "wide linear": lambda: Around(nn.Linear(24, 40), features=24),
    "wide linear without bias": lambda: Around(nn.Linear(24, 40, bias=False), features=24),
    "linear of a pooled text": lambda: Pooled(nn.Linear(6, 4)),
    "linear of a pooled text without bias": lambda: Pooled(nn.Linear(6, 4, bias=False)),
    "linear of halves": lambda: Halves(nn.Linear(3, 4)),
    "layer norm": lambda: Around(nn.LayerNorm(6)),
    "layer norm without bias": lambda: Around(nn.LayerNorm(6, eps=0.3, bias=False)),
    "embedding": lambda: Words(nn.Embedding(TOKENS, 6)),
    "embedding with padding": lambda: Words(nn.Embedding(TOKENS, 6, padding_idx=5)),
    "positions": lambda: Positions(nn.Embedding(LONGEST, 6)),
    "adapted linear": adapted,
}
# Layers that `BookKeeping` does not support.
UNKNOWN = {
    "layer norm of a pooled text": lambda: Pooled(nn.LayerNorm(6)),
    "layer norm over two dimensions": lambda: Halves(nn.LayerNorm((2, 3))),
    "normalised embedding": lambda: Words(nn.Embedding(TOKENS, 6, max_norm=1.0)),
    "embedding scaled by frequency": lambda: Words(
        nn.Embedding(TOKENS, 6, scale_grad_by_freq=True)
    ),
    "group norm": lambda: Pooled(nn.GroupNorm(2, 6)),
    "a layer used twice": lambda: Twice(nn.Linear(6, 6)),
    "an embedding tied to a linear layer": lambda: Tied(nn.Embedding(TOKENS, 6)),
    "a layer of its own kind": lambda: Around(Scale()),
}


def model_of(layer):
    """The classifier with this layer, always the same, and the names of the layer's parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = (KNOWN | UNKNOWN)[layer]()
    names = {name for name, _ in model.named_parameters() if name.startswith("layer")}
    return model, {name for name in names if "base_layer" not in name}
