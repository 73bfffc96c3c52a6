"""Sums of clipped per-example gradients: the part of DP-SGD that depends on the model.

    s = Σ_i g_i · min(1, C / ‖g_i‖),    g_i = ∂ℓ_i/∂θ over all trained parameters θ together

(Abadi et al., "Deep learning with differential privacy", 2016, arXiv 1607.00133, algorithm 1.)
Each way to compute s is a `GradientEngine`; `selection.engine_for` selects one for a model.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.data.examples import UNKNOWN_LABEL, Examples

LONGEST_ROW = 2**14


class GradientEngine(Protocol):
    """Computes sums of clipped gradients of the parameters of a model that require gradients."""

    def __init__(self, model: nn.Module) -> None:
        """Prepare `model`; raises `TypeError` for a model that this engine does not support."""

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients of `batch` to `sums`, in place.

        An example whose gradient is not finite adds nothing.

        Args:
            batch: the examples.
            max_grad_norm: C, the L2 norm to which each example's gradient is clipped, above 0.
            sums: one tensor of the parameter's shape per trained parameter, in the model's order.
        """

    def close(self) -> None:
        """Restore the model to its state before the engine was made."""


class OneByOne:
    """Computes one example's gradient at a time: correct for every model, and slow."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = trained_parameters(model)

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients, with one backward pass per example."""
        for index in torch.arange(len(batch))[:, None]:
            loss = example_losses(self.model, batch[index]).sum()
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            squares = [squared_norms(gradient[None]) for gradient in gradients]
            norm = torch.cat(squares).sum().sqrt()
            if norm.isfinite():
                scale = float(clipping_factors(norm, max_grad_norm))
                for total, gradient in zip(sums, gradients, strict=True):
                    total.add_(gradient, alpha=scale)

    def close(self) -> None:
        """Do nothing."""


class OpacusHooks:
    """Opacus' hooks, which keep each example's gradient of each trained parameter in memory."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trained_parameters(model)
        self.model = GradSampleModule(model, loss_reduction="sum")

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients."""
        for parameter in self.parameters:
            parameter.grad = None  # backward() would add to it, and it may be one of the `sums`
        example_losses(self.model, batch).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad_sample for parameter in self.parameters]  # type: ignore[attr-defined]
        norms = torch.stack([squared_norms(gradient) for gradient in gradients]).sum(0).sqrt()
        finite = norms.isfinite()
        scale = clipping_factors(norms[finite], max_grad_norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(torch.einsum("n,n...->...", scale.to(total.dtype), gradient[finite]))
        for parameter in self.parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]

    def close(self) -> None:
        """Remove the hooks."""
        self.model.to_standard_module()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def example_losses(model: nn.Module, batch: Examples) -> Tensor:
    """Return the cross-entropy of each example in nats, (B,); 0 if its label is unknown."""
    logits = model(batch.inputs)
    return F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=UNKNOWN_LABEL)


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the squared norm of each example's gradient of a parameter, (B,) float64.

    In a long float32 sum, a large square would swallow many small ones. Float32 squares are added
    over at most `LONGEST_ROW` elements, which the norm does not show (by 2⁻¹⁰ at most).

    Args:
        gradients: the gradient of each example, (B, *shape of the parameter).
    """
    rows: Tensor
    if gradients.dim() > 2 and gradients.shape[-1] <= LONGEST_ROW:
        rows = gradients.norm(dim=-1).double()
    else:
        rows = gradients.double()
    return rows.square().view(len(gradients), -1).sum(1)


def clipping_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Return min(1, `max_grad_norm` / norm) for each of the finite `norms`, any shape.

    A factor that float32 cannot hold with full precision is 0: rounded, it could be twice as large.
    """
    factors = (max_grad_norm / norms).clamp(max=1.0)
    return factors.where(factors >= torch.finfo(torch.float32).tiny, 0.0)
