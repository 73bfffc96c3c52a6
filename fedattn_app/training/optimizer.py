"""The local optimizers, applied to all parameters at once.

The arithmetic is torch's own. Its optimizer classes are slower: they loop over the parameters in
each step, and creating the first one imports torch's compiler, which takes as long as importing
torch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from fedattn_app.config import TrainingConfig

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Proximal:
    """The term (μ/2)·‖w − w_start‖² in a client's loss, over the parameters `names`, with μ ≥ 0.

    Li et al., "Federated optimization in heterogeneous networks", 2020, arXiv 1812.06127,
    equation 2. With DP-SGD it costs no privacy: its gradient does not depend on the examples.
    """

    mu: float
    names: Collection[str]

    def pull_on(self, model: nn.Module) -> list[float]:
        """Return the μ of each trained parameter of `model`, in its order; 0 outside `names`."""
        return [
            self.mu * (name in self.names)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]


class FlatOptimizer:
    """SGD, Adam or AdamW over one vector that holds all parameters.

    The parameters become views of the vector `values`, and their gradients views of the vector
    `gradient`, which is zero at first. Backward passes add to `gradient`; its user clears it.

    Args:
        parameters: The parameters to train, all float32.
        config: The optimizer, its learning rate and its weight decay. The other constants are
            torch's defaults.
        pull: For each parameter the μ of a proximal term towards its initial value; empty for no
            such term.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: TrainingConfig,
        pull: Sequence[float] = (),
    ) -> None:
        self.parameters = parameters
        self.config = config
        self.values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.gradient = torch.zeros_like(self.values)
        if pull:
            self._start = self.values.clone()
            sizes = torch.tensor([parameter.numel() for parameter in parameters])
            self._pull = torch.tensor(pull).repeat_interleave(sizes)
        self._has_pull = bool(pull)
        if config.optimizer != "sgd":
            self._moments = torch.zeros_like(self.values), torch.zeros_like(self.values)
            self._steps = torch.zeros(())
        views = zip(parameters, self._views(self.values), self._views(self.gradient), strict=True)
        for parameter, values, gradient in views:
            parameter.data = values
            parameter.grad = gradient

    @property
    def sums(self) -> list[Tensor]:
        """Views of `gradient`, one per parameter with its shape, in their order."""
        return self._views(self.gradient)

    @torch.no_grad()
    def step(self) -> None:
        """Update `values` by one step along `gradient` plus the gradient of the proximal term."""
        if self._has_pull:
            self.gradient.addcmul_(self._pull, self.values - self._start)
        rate, decay = self.config.learning_rate, self.config.weight_decay
        if self.config.optimizer == "sgd":
            if decay:
                self.gradient.add_(self.values, alpha=decay)
            self.values.add_(self.gradient, alpha=-rate)
            return
        first, second = self._moments
        rule = adam if self.config.optimizer == "adam" else adamw
        rule(
            [self.values],
            [self.gradient],
            [first],
            [second],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=rate,
            weight_decay=decay,
            eps=EPSILON,
            maximize=False,
        )

    def close(self) -> None:
        """Set the `grad` of all parameters to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [parameter.numel() for parameter in self.parameters])
        return [
            part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)
        ]
