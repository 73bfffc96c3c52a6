"""Clipped gradient sums by one short backward pass: book-keeping.

Let a linear layer have the inputs a_i (T, p) and the output gradients e_i (T, q) for example i. Its
weight gradient is g_i = e_iᵀ a_i. Neither the norm nor the clipped sum needs g_i itself:

    ‖g_i‖² = ⟨a_i a_iᵀ, e_i e_iᵀ⟩,    Σ_i c_i g_i = [c_1 e_1; c_2 e_2; …]ᵀ [a_1; a_2; …]

(Goodfellow, 2015, arXiv 1510.01799; Li, Tramèr, Liang and Hashimoto, 2022, arXiv 2110.05679.) The
backward pass stops at the outputs of the trained layers, so it computes no gradient of a weight
(Bu, Wang, Zha and Karypis, "Differentially private optimization on large model at small cost",
2023, arXiv 2210.00038). On its way it records what each layer needs for its norms and sums. Where
the g_i of a weight are not much larger than their factors a_i and e_i, they are computed after all,
as in the mixed variant of that paper: norm and sum then come from the same product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.data.examples import Examples
from fedattn_app.privacy.gradients.engine import (
    clipping_factors,
    example_losses,
    trained_parameters,
)

# A squared norm below this part of the sum of its terms' absolute values is computed in float64.
CANCELLATION_THRESHOLD = 1e-3
# Bound on the rounding error of a float32 sum, relative to the sum of its terms' absolute values.
FLOAT32_SUM_ERROR = 2.0**-21
# Norms of factors are raised to this minimum. Squares of shorter factors may underflow in float32,
# while the other factor may be so long that the gradient is not short at all.
MIN_FACTOR_NORM = 1e-12
# Per-example gradients of a weight are computed if they have at most this many times as many
# elements as their factors.
MAX_GRADIENT_SIZE_RATIO = 2
# Maximum number of examples per pass. More need more memory, and take longer if the operating
# system has to map new pages in each pass.
EXAMPLES_PER_PASS = 32

# Adds Σ_i c_i g_i to a tensor of the parameter's shape; the second argument has the c_i, (B,).
AddWeightedSum = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class _ParameterGradients:
    """The norms of one parameter's gradients for B examples, and how to add the gradients.

    Attributes:
        parameter: the parameter.
        squares: the squared norm of each example's gradient, (B,) float64.
        bounds: upper bounds on the squared norms that there would be if no terms cancelled, (B,).
            They are 0 if `add` adds the same gradients from which `squares` were computed.
        add: adds the weighted sum of the gradients to a tensor.
    """

    parameter: Tensor
    squares: Tensor
    bounds: Tensor
    add: AddWeightedSum


class _Buffers:
    """One buffer per parameter, reused in every pass because allocating memory is slow."""

    def __init__(self) -> None:
        self._buffers: dict[Tensor, Tensor] = {}

    def product(self, parameter: Tensor, a: Tensor, e: Tensor) -> Tensor:
        """Return the product eᵀ a for each of B examples, (B, q, p).

        The result lies in a buffer that the next call for `parameter` overwrites.

        Args:
            parameter: the weight, (q, p).
            a: the inputs of its layer, (B, T, p).
            e: the gradients of the layer's outputs, (B, T, q), of the same dtype.
        """
        buffer = self._buffers.get(parameter)
        if buffer is None or len(buffer) < len(a):
            buffer = self._buffers[parameter] = a.new_empty(len(a), *parameter.shape)
        return torch.bmm(e.mT, a, out=buffer[: len(a)])


class BookKeeping:
    """The `GradientEngine` that computes sums of clipped gradients by book-keeping.

    It supports trained parameters of `nn.Linear`, `nn.LayerNorm` and `nn.Embedding`. Each of these
    layers may be used only once in a pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = trained_parameters(model)
        owners = [
            module
            for module in model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        for module in owners:
            if type(module) not in _LAYERS:
                raise TypeError(f"{type(module).__name__} is not supported")
        self._indices: dict[Tensor, int] = {
            parameter: index for index, parameter in enumerate(self.parameters)
        }
        self._batch_size = 0
        self._buffers = _Buffers()
        self._inputs: dict[nn.Module, Tensor] = {}
        self._leaves: list[Tensor] = []  # where the backward pass ends
        self._gradients: list[_ParameterGradients] = []
        self._handles = [module.register_forward_hook(self._record_input) for module in owners]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients of `batch` to `sums`, `EXAMPLES_PER_PASS` examples at a time.

        An example whose gradient is not finite adds nothing. Raises `TypeError` for a layer that
        is used twice or has an unsupported option.
        """
        for index in torch.split(torch.arange(len(batch)), EXAMPLES_PER_PASS):
            self._add_in_one_pass(batch[index], max_grad_norm, sums)

    def _add_in_one_pass(
        self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]
    ) -> None:
        self._batch_size = len(batch)
        self._clear()
        loss = example_losses(self.model, batch).sum()
        torch.autograd.grad(loss, self._leaves, allow_unused=True)  # its hooks fill `_gradients`
        squares, bounds = (
            torch.stack([values.double() for values in of_parameters]).sum(0)
            for of_parameters in zip(*((g.squares, g.bounds) for g in self._gradients), strict=True)
        )
        # Terms that are scaled and added one by one may cancel less well than in the norm.
        norms = squares.clamp(min=0).sqrt() + FLOAT32_SUM_ERROR * bounds.sqrt()
        norms = norms.to(loss.dtype)
        finite = norms.isfinite()
        if finite.all():
            scale = clipping_factors(norms, max_grad_norm)
            for gradients in self._gradients:
                gradients.add(sums[self._indices[gradients.parameter]], scale)
        self._clear()
        if not finite.all() and finite.any():
            self._add_in_one_pass(batch[finite.nonzero()[:, 0]], max_grad_norm, sums)

    def _clear(self) -> None:
        self._inputs, self._leaves, self._gradients = {}, [], []

    def close(self) -> None:
        """Remove the hooks, and make the trained parameters require gradients again."""
        for handle in self._handles:
            handle.remove()
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def _record_input(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """Forward hook: record the input of `module`, and return an output that requires gradients.

        Raises `TypeError` if `module` is used twice in a pass.
        """
        if module in self._inputs:
            raise TypeError(f"{type(module).__name__} is used twice")
        (value,) = inputs
        if isinstance(module, nn.Embedding) and len(value) == 1:
            # All examples share these positions, but each example needs its own gradient.
            value, output = (x.expand(self._batch_size, *x.shape[1:]) for x in (value, output))
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            self._leaves.append(output)
        self._inputs[module] = value.detach()
        hook = partial(self._record_gradients, module)
        output.register_hook(hook)  # type: ignore[no-untyped-call]
        return output

    def _record_gradients(self, module: nn.Module, output_gradient: Tensor) -> None:
        """Backward hook: record how to add the gradients of `module`, and release its input.

        Only trained parameters are recorded. `output_gradient` has the shape of the output.
        """
        gradients_of = _LAYERS[type(module)]
        found = gradients_of(module, self._inputs.pop(module), output_gradient, self._buffers)
        self._gradients += (g for g in found if g.parameter in self._indices)


def _linear(
    layer: nn.Linear, inputs: Tensor, output_gradient: Tensor, buffers: _Buffers
) -> list[_ParameterGradients]:
    a, e = (x.flatten(1, -2) if x.dim() > 2 else x[:, None] for x in (inputs, output_gradient))
    length, p, q = a.shape[1], a.shape[2], e.shape[2]  # a: (B, T, p), e: (B, T, q)
    if p * q <= MAX_GRADIENT_SIZE_RATIO * length * (p + q):
        weight = _from_gradients(layer.weight, buffers.product(layer.weight, a, e))
    else:
        weight = _from_factors(layer.weight, a, e)
    return [weight] if layer.bias is None else [weight, _from_gradients(layer.bias, e.sum(1))]


def _from_factors(parameter: Tensor, a: Tensor, e: Tensor) -> _ParameterGradients:
    """Return the norms and the weighted sum of the gradients eᵀ a without forming each one.

    Args:
        parameter: the weight, (q, p).
        a: the inputs of its layer, (B, T, p).
        e: the gradients of the layer's outputs, (B, T, q).
    """
    a_norms, e_norms = (x.norm(dim=2).clamp(min=MIN_FACTOR_NORM) for x in (a, e))  # (B, T)
    bounds = (a_norms * e_norms).sum(1).square()
    squares = _recompute_cancelled(
        _pair_sums(a @ a.mT, e),
        bounds,
        lambda index: _pair_sums(a[index].double() @ a[index].double().mT, e[index].double()),
    )

    def add(total: Tensor, scale: Tensor) -> object:
        return total.addmm_((e * scale[:, None, None]).flatten(0, 1).T, a.flatten(0, 1))

    return _ParameterGradients(parameter, squares, bounds, add)


def _pair_sums(products: Tensor, e: Tensor) -> Tensor:
    """Return Σ_{s,t} products_st ⟨e_s, e_t⟩ for each example, (B,).

    Args:
        products: one factor per pair of positions, (B, T, T).
        e: one vector per position, (B, T, q).
    """
    return (products * (e @ e.mT)).sum((1, 2))


def _recompute_cancelled(
    squares: Tensor, bounds: Tensor, exact: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return `squares` in float64, (B,); recompute the values whose terms largely cancel.

    In float32, cancellation could leave nothing of a squared norm, and a gradient that is far too
    long would not be clipped.

    Args:
        squares: squared norms as sums in float32, (B,).
        bounds: the sum of the absolute values of the terms of each square, or more, (B,).
        exact: returns the squares of the examples at the given indices, computed in float64.
    """
    result = squares.double()
    cancelled = (squares < CANCELLATION_THRESHOLD * bounds).nonzero()[:, 0]
    if len(cancelled):
        result[cancelled] = exact(cancelled)
    return result


def _layer_norm(
    layer: nn.LayerNorm, inputs: Tensor, output_gradient: Tensor, _: _Buffers
) -> list[_ParameterGradients]:
    if not layer.elementwise_affine or len(layer.normalized_shape) > 1:
        raise TypeError("LayerNorm over several dimensions is not supported")
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    products = (normal * output_gradient, output_gradient)
    weight, bias = (x.flatten(1, -2).sum(1) for x in products)  # (B, D)
    gradients = [_from_gradients(layer.weight, weight)]
    return gradients if layer.bias is None else [*gradients, _from_gradients(layer.bias, bias)]


def _embedding(
    layer: nn.Embedding, ids: Tensor, output_gradient: Tensor, _: _Buffers
) -> list[_ParameterGradients]:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise TypeError("Embedding with max_norm or scale_grad_by_freq is not supported")
    if layer.padding_idx is not None:
        output_gradient = output_gradient * (ids != layer.padding_idx)[..., None]
    same = ids[:, :, None] == ids[:, None, :]  # (B, T, T)
    bounds = _pair_sums(same, output_gradient.norm(dim=2, keepdim=True))
    squares = _recompute_cancelled(
        _pair_sums(same, output_gradient),
        bounds,
        lambda index: _pair_sums(same[index], output_gradient[index].double()),
    )

    def add(total: Tensor, scale: Tensor) -> object:
        scaled = (output_gradient * scale[:, None, None]).flatten(0, 1)
        return total.index_add_(0, ids.flatten(), scaled)

    return [_ParameterGradients(layer.weight, squares, bounds, add)]


def _from_gradients(parameter: Tensor, gradients: Tensor) -> _ParameterGradients:
    """Return the norms and the weighted sum of `gradients`.

    Args:
        parameter: the parameter.
        gradients: the gradient of each example, (B, *shape of the parameter).
    """

    def add(total: Tensor, scale: Tensor) -> object:
        return total.add_((scale @ gradients.flatten(1)).view_as(total))

    squares = gradients.norm(dim=-1).double().square().view(len(gradients), -1).sum(1)
    return _ParameterGradients(parameter, squares, torch.zeros_like(squares), add)


_LAYERS: Mapping[
    type[nn.Module], Callable[[Any, Tensor, Tensor, _Buffers], list[_ParameterGradients]]
] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
