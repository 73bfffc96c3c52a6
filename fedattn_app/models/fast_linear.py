"""Faster matrix products for linear layers, by oneDNN.

On x86, torch multiplies float32 matrices with MKL, which does not use AVX-512 on processors of
other makers than Intel. oneDNN, which torch ships for its compiler, does: on those processors it
multiplies large matrices about twice as fast, with the same precision.
"""

import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.cache import PROCESS_CACHE

# Number of multiplications from which oneDNN is faster although it reorders the weights each time.
MIN_MULTIPLICATIONS = 1 << 23
# The same for the gradient of the weights, where two matrices must be transposed.
MIN_MULTIPLICATIONS_TRANSPOSED = 1 << 24


def speed_up(model: nn.Module) -> None:
    """Make the linear layers of `model` use oneDNN if it is faster on this machine."""
    if is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                vars(module)["forward"] = partial(_forward, module)


@PROCESS_CACHE.keep(max_entries=1)
def is_supported() -> bool:
    """Whether this machine and this torch can compute products by oneDNN, with correct results."""
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    x, weight = torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(1, 2, 12).view(4, 3)
    try:
        return torch.allclose(product(x, weight), x @ weight.T)
    except (AttributeError, NotImplementedError, RuntimeError):  # another version of torch
        return False


@PROCESS_CACHE.keep(max_entries=1)
def is_faster() -> bool:
    """Whether oneDNN is supported and faster than torch's own products on this machine."""
    processor = Path("/proc/cpuinfo")
    if not processor.exists() or "GenuineIntel" in processor.read_text():
        return False
    return is_supported()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b, float32 (M, N), without recording a gradient.

    `x` is float32 (M, K), `weight` W is (N, K) and `bias` b is (N,) or None.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.to_mkldnn(), bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """Computes x Wᵀ + b and its gradients, for x (..., K), W (N, K), and b (N,) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The activations serve the gradient of the weight only, so a frozen weight needs none.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(_as_matrix(x), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = _as_matrix(gradients[0])
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = product(g, weight.T).view(*gradients[0].shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            x = _as_matrix(x)
            is_large = len(g) * weight.numel() >= MIN_MULTIPLICATIONS_TRANSPOSED
            weight_gradient = product(g.T, x.T) if is_large else g.T @ x
        if ctx.needs_input_grad[2]:
            bias_gradient = g.sum(0)
        return x_gradient, weight_gradient, bias_gradient


def _as_matrix(x: Tensor) -> Tensor:
    return x.flatten(0, -2).contiguous()


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.numel() * layer.out_features < MIN_MULTIPLICATIONS or x.dtype != torch.float32:
        return F.linear(x, layer.weight, layer.bias)
    result: Tensor = _Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result
