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

**What rounding can add.** Take the recorded a_i and e_i as given. Then an example adds at most
(1 + 2⁻⁹)·C, and changes what rounding adds to the sum of its pass by at most 2·2⁻⁸·C: one per cent
in all, whatever model the server sends. `layers` derives the bounds on rounding. This module
computes in float64 what could exceed these tolerances: the squared norm of an example whose error
may be above 2⁻⁸ of its size (or of C², if it is shorter), and the sum of a pass whose error may be
above 2⁻⁸·C. With ordinary models neither happens.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedattn_app.data.examples import Examples
from fedattn_app.privacy.gradients.engine import (
    clipping_factors,
    example_losses,
    trained_parameters,
)
from fedattn_app.privacy.gradients.layers import (
    GUARD,
    LAYERS,
    SQUARE_ERROR,
    Buffers,
    ParameterGradients,
    sum_error,
)

# Errors of squared norms above this fraction, and of sums above this fraction of C, are avoided.
SQUARE_TOLERANCE = 2.0**-8
SUM_TOLERANCE = 2.0**-8
# Maximum number of examples per pass. More need more memory, and take longer if the operating
# system has to map new pages in each pass.
EXAMPLES_PER_PASS = 32


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
            if type(module) not in LAYERS:
                raise TypeError(f"{type(module).__name__} is not supported")
        self._indices: dict[Tensor, int] = {
            parameter: index for index, parameter in enumerate(self.parameters)
        }
        self._batch_size = 0
        self._buffers = Buffers()
        self._inputs: dict[nn.Module, Tensor] = {}
        self._leaves: list[Tensor] = []  # where the backward pass ends
        self._gradients: list[ParameterGradients] = []
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
        norms, bounds = self._norms_and_bounds(max_grad_norm)
        finite = norms.isfinite()
        if finite.all():
            scale = clipping_factors(norms, max_grad_norm)
            error = sum_error(self._gradients) * float((scale * bounds).sum())
            exactly = error > SUM_TOLERANCE * max_grad_norm
            for gradients in self._gradients:
                add = gradients.add_exactly if exactly else gradients.add
                add(sums[self._indices[gradients.parameter]], scale)
        self._clear()
        if not finite.all() and finite.any():
            self._add_in_one_pass(batch[finite.nonzero()[:, 0]], max_grad_norm, sums)

    def _norms_and_bounds(self, max_grad_norm: float) -> tuple[Tensor, Tensor]:
        """Return the norms to clip by and the b_i over all recorded gradients, (B,) float64."""
        squares = torch.stack([g.squares for g in self._gradients]).sum(0)
        bounds = torch.stack([g.bounds for g in self._gradients]).sum(0)
        allowed = SQUARE_TOLERANCE * squares.clamp(min=max_grad_norm * max_grad_norm)
        doubtful = (~(SQUARE_ERROR * bounds <= allowed)).nonzero()[:, 0]  # or not a number
        if len(doubtful):
            exact = [gradients.exact_squares(doubtful) for gradients in self._gradients]
            squares[doubtful] = torch.stack(exact).sum(0)
        bounds = bounds.sqrt()
        return squares.clamp(min=0).sqrt() + GUARD * bounds, bounds

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
        gradients_of = LAYERS[type(module)]
        found = gradients_of(module, self._inputs.pop(module), output_gradient, self._buffers)
        self._gradients += (g for g in found if g.parameter in self._indices)
