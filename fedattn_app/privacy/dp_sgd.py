"""DP-SGD: local training in which every step is a sampled Gaussian mechanism.

    θ ← optimizer(θ, (Σ_{i ∈ S} clip(g_i, C) + N(0, σ²C²)) / (q·n)),    S: each example w. p. q

(Abadi et al., "Deep learning with differential privacy", 2016, arXiv 1607.00133, algorithm 1.) Any
optimizer can be used: it sees only the noisy gradient, so what it computes is post-processing.
"""

import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from fedattn_app.config import TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.classifier import Classifier
from fedattn_app.privacy.gradients.engine import GradientEngine, trained_parameters
from fedattn_app.privacy.randomness import SecretRandom
from fedattn_app.training.loop import TrainingDivergedError, set_trainable
from fedattn_app.training.optimizer import FlatOptimizer, Proximal


@dataclass(frozen=True)
class Sampling:
    """How the steps of one round sample examples.

    Attributes:
        rate: the probability of each example to be in a step, above 0 and at most 1.
        steps: the number of steps.
        batch_size: the divisor of the noisy sum of a step's gradients. It is the expected number
            of examples in a step, or a lower bound of it if the number of examples is not public.
    """

    rate: float
    steps: int
    batch_size: float

    @classmethod
    def of(cls, num_examples: int, config: TrainingConfig, public: bool) -> Self:
        """Return the sampling that passes over `num_examples` > 0 `local_epochs` times on average.

        ε and the noise reveal the rate and the number of steps. Unless the number of examples is
        `public`, both are computed from the largest power of two that does not exceed it, so that
        they reveal no more than that power.
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
    engine: type[GradientEngine],
    random: SecretRandom,
    proximal: Proximal | None = None,
) -> None:
    """Train the `trainable` parameters of `model` in place with a fresh optimizer.

    The model must have no dropout, because the contribution of one example would then depend on
    which others were drawn. For the same reason only texts that are padded to the same length share
    a pass: a mask hides finite numbers only. Raises `TrainingDivergedError` if the parameters are
    not finite at the end.

    Args:
        model: the classifier; it ends in training mode.
        trainable: the names of the parameters to train.
        examples: all examples of the node.
        config: the optimizer's settings and the physical batch size.
        sampling: the sample rate, the number of steps and the divisor.
        noise: the noise multiplier and the clipping norm.
        engine: the class that sums clipped gradients.
        random: the source of both the sampling and the noise.
        proximal: a proximal term to add to the loss.
    """
    set_trainable(model, trainable)
    model.train()
    flat = FlatOptimizer(
        trained_parameters(model), config, proximal.pull_on(model) if proximal else []
    )
    with closing(flat), closing(engine(model)) as gradients:
        for _ in range(sampling.steps):
            flat.gradient.zero_()
            sampled = (random.uniform(len(examples)) < sampling.rate).nonzero()[:, 0]
            for part in examples.inputs.split_by_equal_size(sampled, config.physical_batch_size):
                gradients.add(examples[part], noise.max_grad_norm, flat.sums)
            random.add_normal(flat.gradient, noise.multiplier * noise.max_grad_norm)
            flat.gradient.div_(sampling.batch_size)
            flat.step()
    if not flat.values.isfinite().all():
        raise TrainingDivergedError("the trained parameters are not finite; lower learning-rate")
