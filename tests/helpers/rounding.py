"""Layers whose inputs and output gradients are chosen, to attack float32 sums with them."""

from functools import partial

import torch
from torch import nn

from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.privacy.gradients.selection import clipped_gradient_sum
from helpers.per_example import flat

# Powers of two and sums of few of them, so that products with them are exact.
DIRECTION = torch.tensor([1.0, -0.5, 0.25, 1.0, 0.5, -1.0])
WIDTH = len(DIRECTION)
ROWS = 4  # of an embedding


class _Given(torch.autograd.Function):
    """Logits of zero, whose loss for label 1 has the gradient `chosen` at `outputs`."""

    @staticmethod
    def forward(ctx, outputs, chosen):
        ctx.save_for_backward(chosen)
        return outputs.new_zeros(len(outputs), 2)

    @staticmethod
    def backward(ctx, gradient):
        (chosen,) = ctx.saved_tensors
        return 2 * gradient[:, 0, None, None] * chosen, None  # the gradient is 1/2


class ChosenFactors(nn.Module):
    """A layer with chosen inputs and output gradients: a row of `a` and of `e` per token."""

    def __init__(self, layer, a, e):
        super().__init__()
        self.layer, self.a, self.e = layer, a, e

    def forward(self, batch):
        ids = batch.ids.long()
        return _Given.apply(self.layer(self.a[ids]), self.e[ids])


def attacked(layer, texts):
    """Return a model and examples in which the t-th term of text i is `texts[i][t]`.

    The gradient of a text is the sum of its terms times a fixed matrix, vector or row.

    Args:
        layer: a key of `LAYERS`.
        texts: the terms of each text, (B, T) float32.
    """
    make, by_input = LAYERS[layer]
    terms = texts.flatten()
    ones = torch.ones_like(terms)
    if layer == "embedding":
        a = torch.ones(len(terms), dtype=torch.long)
    else:
        a = (terms if by_input else ones)[:, None] * DIRECTION
    e = (ones if by_input else terms)[:, None] * DIRECTION
    model = ChosenFactors(make(), a, e).train()
    ids = torch.arange(len(terms)).view(texts.shape).int()
    lengths = torch.full((len(texts),), texts.shape[1])
    return model, Examples(TextBatch.of(ids, lengths), torch.ones(len(texts), dtype=torch.long))


def only_bias(layer):
    layer.weight.requires_grad_(False)
    return layer


# How to make the layer, and whether the terms are in its inputs and not in its output gradients.
LAYERS = {
    "linear": (lambda: nn.Linear(WIDTH, WIDTH, bias=False), False),
    "linear by its input": (lambda: nn.Linear(WIDTH, WIDTH, bias=False), True),
    "linear bias": (lambda: only_bias(nn.Linear(WIDTH, WIDTH)), False),
    "linear with bias": (lambda: nn.Linear(WIDTH, WIDTH), False),
    "layer norm": (lambda: nn.LayerNorm(WIDTH), False),
    "embedding": (lambda: nn.Embedding(ROWS, WIDTH), False),
}


def biased(length, place=0.0, unit=1.0, up=1.2, down=0.8):
    """A large pair around small terms that a float32 sum rounds up.

    Args:
        length: the number of terms.
        place: where the first of the pair is, 0 to 1.
        unit: the large term's last place after clipping, in units of 2⁻²³ of it: 1/2 to 1.
        up: a small positive term in units of half a last place; above 1, it is rounded to 2.
        down: a small negative term; below 1, it is lost.
    """
    small = torch.tensor([up, -down]).repeat((length + 1) // 2) * unit * 2.0**-24
    terms = small[:length].clone()
    terms[int(place * (length - 2))] = 1.0
    terms[-1] = -1.0
    return terms


def lost(length, size=0.9):
    """Small terms that a float32 sum loses behind a large one, which a last one takes away."""
    return biased(length, up=size, down=-size)


def per_block(length):
    """A pair around small terms in every 256 terms."""
    return torch.cat([biased(min(256, length - start)) for start in range(0, length, 256)])


def interleaved(length):
    """Large terms of alternating sign between small ones, which are rounded up."""
    terms = biased(length)
    terms[::4], terms[2::4] = 1.0, -1.0
    return terms


def mixed(length):
    """Terms of all sizes and both signs that cancel almost entirely."""
    generator = torch.Generator().manual_seed(length)
    sizes = 2.0 ** (-30 * torch.rand(length, generator=generator, dtype=torch.float64))
    terms = (sizes * (2 * torch.randint(2, (length,), generator=generator) - 1)).float()
    terms[-1] -= terms.double().sum().float()
    return terms


def plain(length):
    """Terms of a benign text: they do not cancel."""
    generator = torch.Generator().manual_seed(length)
    return torch.rand(length, generator=generator)


ATTACKS = {
    "pair around all": biased,
    **{
        f"pair around all, unit {unit}": partial(biased, unit=unit)
        for unit in (0.5, 0.6, 0.7, 0.85)
    },
    "pair around each block": per_block,
    "pair in the middle": lambda length: biased(length, 0.5),
    "pair at the end": lambda length: biased(length, 1.0),
    "lost": lost,
    "just above half a unit": lambda length: lost(length, 1.1),
    "interleaved": interleaved,
    "mixed": mixed,
}


def difference(engine, layer, texts, index, max_grad_norm=1.0):
    """Return how much the clipped sum changes when the text `index` is left out."""
    model, examples = attacked(layer, texts)
    rest = torch.arange(len(texts)) != index
    both = flat(clipped_gradient_sum(engine, model, examples, max_grad_norm)).double()
    if not rest.any():
        return both
    return both - flat(clipped_gradient_sum(engine, model, examples[rest], max_grad_norm)).double()
