"""Sums of clipped per-example gradients: the part of DP-SGD that depends on the model.

    s = Σ_i g_i · min(1, C / ‖g_i‖),    g_i = ∂ℓ_i/∂θ over all trained parameters θ together

(Abadi et al., "Deep learning with differential privacy", 2016, arXiv 1607.00133, algorithm 1.)
There are several ways to it, each an `Engine`; `engines.engine_for` chooses one for a model.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.data.examples import UNKNOWN_LABEL, Examples


class Engine(Protocol):
    """Computes sums of clipped gradients of the parameters of a model that require gradients."""

    def __init__(self, model: nn.Module) -> None:
        """Prepare `model`; raises `TypeError` for one that this engine does not know."""

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients of `batch` to `sums`, one tensor per trained parameter.

        An example whose gradient is not finite adds nothing: it must not show in the sum.
        """

    def close(self) -> None:
        """Leave the model as it was before."""


class OneByOne:
    """Takes each example's gradient by itself: right for every model, and slow."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = trained(model)

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients, with a backward pass for each example."""
        for index in torch.arange(len(batch))[:, None]:
            loss = losses(self.model, batch[index]).sum()
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            if norm.isfinite():
                scale = float(factors(norm, max_grad_norm))
                for total, gradient in zip(sums, gradients, strict=True):
                    total.add_(gradient, alpha=scale)

    def close(self) -> None:
        """Do nothing."""


class Hooks:
    """Opacus' hooks, which hold every example's gradient of every trained parameter."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trained(model)
        self.model = GradSampleModule(model, loss_reduction="sum")

    def add(self, batch: Examples, max_grad_norm: float, sums: Sequence[Tensor]) -> None:
        """Add the clipped gradients."""
        for parameter in self.parameters:
            parameter.grad = None  # it may be one of the `sums`, and is not clipped
        losses(self.model, batch).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad_sample for parameter in self.parameters]  # type: ignore[attr-defined]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        finite = norms.isfinite()
        scale = factors(norms[finite], max_grad_norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(torch.einsum("n,n...->...", scale, gradient[finite]))
        for parameter in self.parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]

    def close(self) -> None:
        """Remove the hooks."""
        self.model.to_standard_module()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def losses(model: nn.Module, batch: Examples) -> Tensor:
    """Return the cross-entropy of each example in nats, (B,); 0 for one of unknown label."""
    logits = model(batch.inputs)
    return F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=UNKNOWN_LABEL)


def factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Return what scales gradients of these finite `norms` to at most `max_grad_norm`."""
    return (max_grad_norm / norms).clamp(max=1.0)
