"""Clipped gradient sums in one short backward pass: book-keeping.

A linear layer with inputs a_i (T, p) and output gradients e_i (T, q) of example i has there the
weight gradient g_i = e_iᵀ a_i. Its norm needs no g_i, and the clipped sum is one product:

    ‖g_i‖² = ⟨a_i a_iᵀ, e_i e_iᵀ⟩,    Σ_i c_i g_i = [c_1 e_1; c_2 e_2; …]ᵀ [a_1; a_2; …]

(Goodfellow, 2015, arXiv 1510.01799; Li, Tramèr, Liang and Hashimoto, 2022, arXiv 2110.05679.) The
backward pass stops at the outputs of the trained layers, so that it computes no gradient of a
weight (Bu, Wang, Zha and Karypis, "Differentially private optimization on large model at small
cost", 2023, arXiv 2210.00038); on its way it takes down of each layer what is needed. Where the g_i
of a weight are not much larger than their factors, they are held after all, as in the mixed variant
of that paper: one product does for norm and sum, and what is added is just what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.data.examples import Examples
from fedattn_app.privacy.gradients.engine import factors, losses, trained

# A sum of squares that is a smaller part of its terms' sizes is taken in float64.
LEAST_LEFT = 1e-3
# By how much a sum of float32 terms may be off, in parts of the sizes of its terms.
ROUNDING = 2.0**-21
# A factor of a gradient counts as no shorter than this: the squares of shorter ones may be lost to
# float32, where the other factor can be so long that the gradient is not short at all.
LEAST_FACTOR = 1e-12
# Gradients of weights are held where they are at most so many times as large as their factors.
HELD = 2
# How many examples pass at a time, at most: more take more memory, and longer where the system has
# to give fresh pages in each pass.
TOGETHER = 32

# Adds the sum over examples, each weighted by (B,) factors, to a tensor of the parameter's shape.
Add = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class _Part:
    """One parameter's share: squared norms (B,) of its examples' gradients, and their sum.

    `most` (B,) are the squared norms that they would have, did none of their terms cancel; 0 where
    what is added is the gradient itself.
    """

    parameter: Tensor
    squares: Tensor
    most: Tensor
    add: Add


class _Room:
    """Memory that serves in every pass: to get it from the system anew takes long."""

    def __init__(self) -> None:
        self._kept: dict[Tensor, Tensor] = {}

    def product(self, parameter: Tensor, a: Tensor, e: Tensor) -> Tensor:
        """Return eᵀ a of each example, in the memory that is kept for this `parameter`."""
        kept = self._kept.get(parameter)
        if kept is None or len(kept) < len(a):
            kept = self._kept[parameter] = a.new_empty(len(a), *parameter.shape)
        return torch.bmm(e.mT, a, out=kept[: len(a)])


class BookKeeping:
    """Knows `nn.Linear`, `nn.LayerNorm` and `nn.Embedding`, each used once in a pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = trained(model)
        owners = [
            module
            for module in model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        for module in owners:
            if type(module) not in _LAYERS:
                raise TypeError(f"{type(module).__name__} is not a layer that is known")
        self._place: dict[Tensor, int] = {
            parameter: place for place, parameter in enumerate(self.parameters)
        }
        self._batch = 0
        self._room = _Room()
        self._given: dict[nn.Module, Tensor] = {}
        self._starts: list[Tensor] = []
        self._parts: list[_Part] = []
        self._handles = [module.register_forward_hook(self._pass) for module in owners]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients, of some examples at a time."""
        for index in torch.split(torch.arange(len(batch)), TOGETHER):
            self._add(batch[index], max_grad_norm, sums)

    def _add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients: one forward pass, one short backward pass."""
        self._batch = len(batch)
        self._given, self._starts, self._parts = {}, [], []
        loss = losses(self.model, batch).sum()
        torch.autograd.grad(loss, self._starts, allow_unused=True)  # fills the parts on its way
        squares, most = (
            torch.stack([values.double() for values in of_parts]).sum(0)
            for of_parts in zip(*((part.squares, part.most) for part in self._parts), strict=True)
        )
        # Terms that are added one by one may not cancel as well as they did in the norm.
        norms = squares.clamp(min=0).sqrt() + ROUNDING * most.sqrt()
        norms = norms.to(loss.dtype)
        finite = norms.isfinite()
        if finite.all():
            scale = factors(norms, max_grad_norm)
            for part in self._parts:
                part.add(sums[self._place[part.parameter]], scale)
        self._given, self._starts, self._parts = {}, [], []
        if not finite.all() and finite.any():
            self._add(batch[finite.nonzero()[:, 0]], max_grad_norm, sums)

    def close(self) -> None:
        """Remove the hooks, and let the parameters require gradients again."""
        for handle in self._handles:
            handle.remove()
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def _pass(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Take down what went into `module`, and start gradients where none came from below."""
        if module in self._given:
            raise TypeError(f"{type(module).__name__} is used twice")
        (value,) = given
        if isinstance(module, nn.Embedding) and len(value) == 1:
            # Positions that all examples have in common: each must get its own gradient.
            value, output = (x.expand(self._batch, *x.shape[1:]) for x in (value, output))
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            self._starts.append(output)
        self._given[module] = value.detach()
        back = partial(self._pass_back, module)
        output.register_hook(back)  # type: ignore[no-untyped-call]
        return output

    def _pass_back(self, module: nn.Module, gradient: Tensor) -> None:
        """Make the parts of `module`, and keep nothing else of what went through it."""
        parts = _LAYERS[type(module)](module, self._given.pop(module), gradient, self._room)
        self._parts += (part for part in parts if part.parameter in self._place)


def _linear(layer: nn.Linear, given: Tensor, gradient: Tensor, room: _Room) -> list[_Part]:
    a, e = (x.flatten(1, -2) if x.dim() > 2 else x[:, None] for x in (given, gradient))  # (B, T, ·)
    length, inputs, outputs = a.shape[1], a.shape[2], e.shape[2]
    if inputs * outputs <= HELD * length * (inputs + outputs):
        weight = _held(layer.weight, room.product(layer.weight, a, e))
    else:
        weight = _unheld(layer.weight, a, e)
    return [weight] if layer.bias is None else [weight, _held(layer.bias, e.sum(1))]


def _unheld(parameter: Tensor, a: Tensor, e: Tensor) -> _Part:
    """Return the part of a weight from the factors of its gradients."""
    inputs, outputs = (x.norm(dim=2).clamp(min=LEAST_FACTOR) for x in (a, e))  # (B, T)
    most = (inputs * outputs).sum(1).square()

    def add(total: Tensor, scale: Tensor) -> object:
        return total.addmm_((e * scale[:, None, None]).flatten(0, 1).T, a.flatten(0, 1))

    return _Part(parameter, _product(a, e, most), most, add)


def _product(a: Tensor, e: Tensor, most: Tensor) -> Tensor:
    """Return ⟨a aᵀ, e eᵀ⟩ of each example, float64."""
    return _settled(
        _pairs(a @ a.mT, e),
        most,
        lambda unsure: _pairs(a[unsure].double() @ a[unsure].double().mT, e[unsure].double()),
    )


def _pairs(alike: Tensor, e: Tensor) -> Tensor:
    """Return Σ_{s,t} alike_st ⟨e_s, e_t⟩ of each example."""
    return (alike * (e @ e.mT)).sum((1, 2))


def _settled(squares: Tensor, most: Tensor, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `squares`, float64; `exact` takes again those of examples whose terms cancel.

    `most` is the sum of the terms' absolute values, or more. In float32 what is left of a norm
    could be nothing, and a gradient that is far too long would pass as one to leave alone.
    """
    settled = squares.double()
    unsure = (squares < LEAST_LEFT * most).nonzero()[:, 0]
    if len(unsure):
        settled[unsure] = exact(unsure)
    return settled


def _layer_norm(layer: nn.LayerNorm, given: Tensor, gradient: Tensor, _: _Room) -> list[_Part]:
    if not layer.elementwise_affine or len(layer.normalized_shape) > 1:
        raise TypeError("LayerNorm over several dimensions is not known")
    normal = F.layer_norm(given, layer.normalized_shape, eps=layer.eps)
    weight, bias = (x.flatten(1, -2).sum(1) for x in (normal * gradient, gradient))  # (B, D)
    parts = [_held(layer.weight, weight)]
    return parts if layer.bias is None else [*parts, _held(layer.bias, bias)]


def _embedding(layer: nn.Embedding, ids: Tensor, gradient: Tensor, _: _Room) -> list[_Part]:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise TypeError("Embedding with max_norm or scale_grad_by_freq is not known")
    if layer.padding_idx is not None:
        gradient = gradient * (ids != layer.padding_idx)[..., None]
    same = ids[:, :, None] == ids[:, None, :]  # (B, T, T)
    most = _pairs(same, gradient.norm(dim=2, keepdim=True))
    squares = _settled(
        _pairs(same, gradient),
        most,
        lambda unsure: _pairs(same[unsure], gradient[unsure].double()),
    )

    def add(total: Tensor, scale: Tensor) -> object:
        return total.index_add_(0, ids.flatten(), (gradient * scale[:, None, None]).flatten(0, 1))

    return [_Part(layer.weight, squares, most, add)]


def _held(parameter: Tensor, gradients: Tensor) -> _Part:
    """Return the part of a parameter whose gradients (B, ...) are small enough to be held."""

    def add(total: Tensor, scale: Tensor) -> object:
        return total.add_((scale @ gradients.flatten(1)).view_as(total))

    squares = gradients.norm(dim=-1).double().square().view(len(gradients), -1).sum(1)
    return _Part(parameter, squares, torch.zeros_like(squares), add)


_LAYERS: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor, _Room], list[_Part]]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
