"""Matrix products of linear layers by oneDNN, where torch's own are slow.

On x86 torch multiplies float32 matrices with MKL, which on processors that are not Intel's leaves
AVX-512 alone. oneDNN, which torch has aboard for its compiler, does not: there it multiplies large
matrices about twice as fast, to the same precision.
"""

import platform
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiplications in a product from which on oneDNN is ahead, with its own order of the weights made
# anew; and from which on in the gradient of the weights, where two matrices have to be turned.
LEAST, LEAST_TURNED = 1 << 23, 1 << 24


def speed_up(model: nn.Module) -> None:
    """Let the linear layers of `model` use the faster products, if this machine has any."""
    if available():
        for module in model.modules():
            if type(module) is nn.Linear:
                vars(module)["forward"] = partial(_forward, module)


@cache
def available() -> bool:
    """Whether oneDNN is the faster here, and right."""
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    processor = Path("/proc/cpuinfo")
    if not processor.exists() or "GenuineIntel" in processor.read_text():
        return False
    x, weight = torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(1, 2, 12).view(4, 3)
    try:
        return torch.allclose(product(x, weight), x @ weight.T)
    except (AttributeError, NotImplementedError, RuntimeError):  # another version of torch
        return False


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b of float32 (M, K), (N, K) and (N,), without a gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.to_mkldnn(), bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """x Wᵀ + b with (..., K), (N, K) and (N,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What is frozen needs no activations kept for its own gradient.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(_rows(x), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = _rows(gradients[0])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = product(g, weight.T).view(*gradients[0].shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            turned = len(g) * weight.numel() >= LEAST_TURNED
            of_weight = product(g.T, _rows(x).T) if turned else g.T @ _rows(x)
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(0)
        return of_x, of_weight, of_bias


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2).contiguous()


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.numel() * layer.out_features < LEAST or x.dtype != torch.float32:
        return F.linear(x, layer.weight, layer.bias)
    result: Tensor = _Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result
