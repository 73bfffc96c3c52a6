"""DP-SGD: local training whose every step is a sampled Gaussian mechanism.

    θ ← optimizer(θ, (Σ_{i ∈ S} clip(g_i, C) + N(0, σ²C²)) / (q·n)),    S: each example w. p. q

(Abadi et al., "Deep learning with differential privacy", 2016, arXiv 1607.00133, algorithm 1.) The
optimizer sees the noisy gradient only, so any will do: what it makes of it is post-processing.
"""

import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from fedattn_app.config import TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.classifier import Classifier
from fedattn_app.privacy.gradients.engine import Engine, trained
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.loop import TrainingDivergedError, set_trainable
from fedattn_app.training.optimizer import FlatOptimizer, Proximal


@dataclass(frozen=True)
class Sampling:
    """How one round samples: `steps` steps, each with every example at probability `rate`.

    `batch_size` is what the sum over a step's examples is divided by: their expected number, or
    where the number of examples is not public a lower bound of it.
    """

    rate: float
    steps: int
    batch_size: float

    @classmethod
    def of(cls, num_examples: int, config: TrainingConfig, public: bool) -> Self:
        """Sample `num_examples` > 0 so that `local_epochs` pass over them in expectation.

        Rate and steps show in ε and in the noise. Unless the number of examples is `public` they
        are those of the power of two below it, so that no more than that can be told.
        """
        size = num_examples if public else 1 << (num_examples.bit_length() - 1)
        batch_size = min(config.batch_size, size)
        steps = config.local_epochs * math.ceil(size / batch_size)
        return cls(batch_size / size, steps, batch_size)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation `multiplier` × `max_grad_norm` on a clipped sum."""

    multiplier: float
    max_grad_norm: float


def train_privately(
    model: Classifier,
    trainable: Collection[str],
    examples: Examples,
    config: TrainingConfig,
    sampling: Sampling,
    noise: Noise,
    engine: type[Engine],
    random: SecretRandom,
    proximal: Proximal | None = None,
) -> None:
    """Train the `trainable` parameters of `model` in place with a fresh optimizer.

    `random` decides which examples a step sees, and the noise; `proximal` adds to the loss. There
    must be no dropout: what one example adds would depend on which others were drawn. For the same
    reason only texts that are padded alike pass together: a mask hides finite numbers only. Raises
    `TrainingDivergedError` when the parameters are not finite.
    """
    set_trainable(model, trainable)
    model.train()
    flat = FlatOptimizer(trained(model), config, proximal.pull_on(model) if proximal else [])
    with closing(flat), closing(engine(model)) as gradients:
        for _ in range(sampling.steps):
            flat.gradient.zero_()
            chosen = (random.uniform(len(examples)) < sampling.rate).nonzero()[:, 0]
            for part in examples.inputs.split_by_equal_size(chosen, config.physical_batch_size):
                gradients.add(examples[part], noise.max_grad_norm, flat.sums)
            random.add_normal(flat.gradient, noise.multiplier * noise.max_grad_norm)
            flat.gradient.div_(sampling.batch_size)
            flat.step()
    if not flat.values.isfinite().all():
        raise TrainingDivergedError("the trained parameters are not finite; lower learning-rate")
