"""Each example's gradients of the parameters of a layer, from its inputs and output gradients.

A layer gives one `ParameterGradients` per parameter: how long each example's gradient is, and how
to add the clipped gradients. It has one of three forms.

- `Formed`: the gradients themselves, (B, *shape of the parameter).
- `Rows`: those rows of an embedding's gradients that are not zero.
- `Factors`: inputs a_i (T, p) and output gradients e_i (T, q) of a linear layer, from which the
  gradients e_iᵀ a_i are not formed.

**Rounding.** `Formed` and `Rows` measure the very numbers that they add. However these were
rounded, a clipped gradient is no longer than its norm allows. For `Factors`, norm and sum are two
computations, and a server may choose a model for which they differ: e_iᵀ a_i has terms that cancel,
the sum loses some of them, and the norm does not. Let b_i = Σ_t ‖a_it‖ ‖e_it‖. A float32 sum of n
terms differs from the exact one by at most n·2⁻²⁴ times the sum of their absolute values (Higham,
"Accuracy and stability of numerical algorithms", 2002, section 4.2). Terms are therefore added in
blocks of m, each from zero, and then the sums of the blocks: m + n / m replaces n. So

- ‖g_i‖² is off by at most `SQUARE_ERROR`·b_i², and in float64 by the square of `GUARD`·b_i;
- the weighted sum is off by at most `sum_error(n)`·Σ_i c_i b_i, for the n = B·T rows of a pass; in
  float64 that is nothing, because c_i b_i is at most C / `GUARD`.

`BookKeeping` compares both with C in every pass, and has computed in float64 what could matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.privacy.gradients.engine import squared_norms

# Number of terms that are added one after the other: of a weighted sum, and of an inner product.
SUM_BLOCK, PRODUCT_BLOCK = 256, 512
# Rounding error of one operation in float32, relative to its result.
FLOAT32_ROUNDING = 2.0**-24
# Bound on the float32 error of a squared norm, relative to b_i². The square is the sum over all
# pairs of positions of the product of two inner products, here of vectors of up to 2¹⁵ numbers.
SQUARE_ERROR = 2 * (PRODUCT_BLOCK + 2**15 / PRODUCT_BLOCK) * FLOAT32_ROUNDING
# Bound on the float64 error of a norm relative to b_i, at least √(SQUARE_ERROR · 2²⁴ · 2⁻⁵³).
GUARD = 2.0**-21
# Norms of factors are raised to this minimum. Squares of shorter factors may underflow in float32,
# while the other factor may be so long that the gradient is not short at all.
MIN_FACTOR_NORM = 1e-12
# Per-example gradients of a weight are computed if they have at most this many times as many
# elements as their factors.
MAX_GRADIENT_SIZE_RATIO = 2


class Buffers:
    """Buffers that are reused in every pass, because allocating memory is slow."""

    def __init__(self) -> None:
        self._buffers: dict[Tensor, Tensor] = {}
        self._block = torch.empty(0)

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

    def block(self, like: Tensor) -> Tensor:
        """Return a buffer of the shape and dtype of `like`, which the next call overwrites."""
        if self._block.numel() < like.numel() or self._block.dtype != like.dtype:
            self._block = like.new_empty(like.numel())
        return self._block[: like.numel()].view_as(like)


class ParameterGradients:
    """The norms of one parameter's gradients for B examples, and how to add the gradients.

    Attributes:
        parameter: the parameter.
        squares: the squared norm of each example's gradient, (B,) float64.
        bounds: b_i² for each example, (B,) float64; 0 if `add` adds what `squares` measure.
        terms: the number of terms of the sums that `bounds` are about.
    """

    def __init__(self, parameter: Tensor, squares: Tensor) -> None:
        self.parameter = parameter
        self.squares = squares
        self.bounds = torch.zeros_like(squares)
        self.terms = 0

    def exact_squares(self, index: Tensor) -> Tensor:
        """Return the squared norms of the examples `index`, computed in float64, (len(index),)."""
        return self.squares[index]

    def add(self, total: Tensor, scale: Tensor) -> None:
        """Add Σ_i scale_i g_i to `total`.

        Args:
            total: a tensor of the parameter's shape.
            scale: a factor for each example, (B,) float64.
        """
        raise NotImplementedError

    def add_exactly(self, total: Tensor, scale: Tensor) -> None:
        """Do the same with a sum that is computed in float64 if rounding could matter."""
        self.add(total, scale)


class Formed(ParameterGradients):
    """The gradients themselves, (B, *shape of the parameter)."""

    def __init__(self, parameter: Tensor, gradients: Tensor) -> None:
        super().__init__(parameter, squared_norms(gradients))
        self.gradients = gradients

    def add(self, total: Tensor, scale: Tensor) -> None:
        """Add the weighted gradients."""
        total.add_((scale.to(total.dtype) @ self.gradients.flatten(1)).view_as(total))


class Rows(ParameterGradients):
    """The rows of an embedding's gradients that are not zero, in float64.

    Args:
        parameter: the weight, (V, D).
        ids: which rows each example uses, (B, …) integers.
        e: the gradients of the layer's outputs, (B, …, D).
    """

    def __init__(self, parameter: Tensor, ids: Tensor, e: Tensor) -> None:
        first = len(parameter) * torch.arange(len(ids), device=ids.device)
        used = ids.reshape(len(ids), -1).long() + first[:, None]
        keys, places = torch.unique(used, return_inverse=True)
        self.example, self.row = keys // len(parameter), keys % len(parameter)
        self.gradients = e.new_zeros(len(keys), e.shape[-1], dtype=torch.float64)
        self.gradients.index_add_(0, places.flatten(), e.flatten(0, -2).double())
        squares = self.gradients.new_zeros(len(ids))
        squares.index_add_(0, self.example, self.gradients.square().sum(1))
        super().__init__(parameter, squares)

    def add(self, total: Tensor, scale: Tensor) -> None:
        """Add the weighted rows."""
        rows = self.gradients * scale[self.example][:, None]
        total.index_add_(0, self.row, rows.to(total.dtype))


class Factors(ParameterGradients):
    """The factors of the gradients eᵀ a of a weight.

    Args:
        parameter: the weight, (q, p).
        a: the inputs of its layer, (B, T, p).
        e: the gradients of the layer's outputs, (B, T, q).
        buffers: where `add` computes.
    """

    def __init__(self, parameter: Tensor, a: Tensor, e: Tensor, buffers: Buffers) -> None:
        super().__init__(parameter, _pair_sums(a, e))
        a_norms, e_norms = (x.norm(dim=2).double().clamp(min=MIN_FACTOR_NORM) for x in (a, e))
        self.bounds = (a_norms * e_norms).sum(1).square()
        self.terms = a_norms.numel()
        self.a, self.e, self.buffers = a, e, buffers

    def exact_squares(self, index: Tensor) -> Tensor:
        """Return the squared norms in float64."""
        return _pair_sums(self.a[index].double(), self.e[index].double())

    def add(self, total: Tensor, scale: Tensor) -> None:
        """Add the weighted sum block by block."""
        e = (self.e * scale.to(self.e.dtype)[:, None, None]).flatten(0, 1)
        a, block = self.a.flatten(0, 1), self.buffers.block(total)
        for of_e, of_a in zip(torch.split(e, SUM_BLOCK), torch.split(a, SUM_BLOCK), strict=True):
            total.add_(torch.mm(of_e.T, of_a, out=block))

    def add_exactly(self, total: Tensor, scale: Tensor) -> None:
        """Add the weighted sum, computed in float64."""
        e = (self.e.double() * scale[:, None, None]).flatten(0, 1)
        total.add_(e.T @ self.a.flatten(0, 1).double())


def sum_error(gradients: Sequence[ParameterGradients]) -> float:
    """Return the bound on the error of the sums that `add` computes, relative to Σ_i c_i b_i."""
    terms = max(of_parameter.terms for of_parameter in gradients)
    return (SUM_BLOCK + terms / SUM_BLOCK + 2) * FLOAT32_ROUNDING


def _pair_sums(a: Tensor, e: Tensor) -> Tensor:
    """Return ‖eᵀ a‖² = Σ_{s,t} ⟨a_s, a_t⟩ ⟨e_s, e_t⟩ for each example, (B,) float64.

    Args:
        a: vectors, (B, T, p).
        e: vectors, (B, T, q).
    """
    return (_products(a).double() * _products(e)).sum((1, 2))


def _products(vectors: Tensor) -> Tensor:
    """Return ⟨x_s, x_t⟩ for all pairs of the `vectors` (B, T, p) of an example, (B, T, T)."""
    first, *others = torch.split(vectors, PRODUCT_BLOCK, dim=2)
    total: Tensor = first @ first.mT
    for block in others:
        total.add_(block @ block.mT)
    return total


def _linear(
    layer: nn.Linear, inputs: Tensor, output_gradient: Tensor, buffers: Buffers
) -> list[ParameterGradients]:
    a, e = (x.flatten(1, -2) if x.dim() > 2 else x[:, None] for x in (inputs, output_gradient))
    length, p, q = a.shape[1], a.shape[2], e.shape[2]  # a: (B, T, p), e: (B, T, q)
    weight: ParameterGradients
    if p * q <= MAX_GRADIENT_SIZE_RATIO * length * (p + q):
        weight = Formed(layer.weight, buffers.product(layer.weight, a, e))
    else:
        weight = Factors(layer.weight, a, e, buffers)
    return [weight] if layer.bias is None else [weight, Formed(layer.bias, e.sum(1))]


def _layer_norm(
    layer: nn.LayerNorm, inputs: Tensor, output_gradient: Tensor, _: Buffers
) -> list[ParameterGradients]:
    if not layer.elementwise_affine or len(layer.normalized_shape) > 1:
        raise TypeError("LayerNorm over several dimensions is not supported")
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    products = (normal * output_gradient, output_gradient)
    weight, bias = (x.flatten(1, -2).sum(1) for x in products)  # (B, D)
    gradients: list[ParameterGradients] = [Formed(layer.weight, weight)]
    return gradients if layer.bias is None else [*gradients, Formed(layer.bias, bias)]


def _embedding(
    layer: nn.Embedding, ids: Tensor, output_gradient: Tensor, _: Buffers
) -> list[ParameterGradients]:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise TypeError("Embedding with max_norm or scale_grad_by_freq is not supported")
    if layer.padding_idx is not None:
        output_gradient = output_gradient * (ids != layer.padding_idx)[..., None]
    return [Rows(layer.weight, ids, output_gradient)]


# By the exact class of a layer: the gradients of all its parameters.
LAYERS: Mapping[
    type[nn.Module], Callable[[Any, Tensor, Tensor, Buffers], list[ParameterGradients]]
] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
