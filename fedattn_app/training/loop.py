"""The local training of one client: epochs of optimizer steps, or a single gradient."""

import math
from collections.abc import Collection
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.config import TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.models.classifier import Classifier
from fedattn_app.training.optimizer import FlatOptimizer, Proximal
from fedattn_app.training.sparse_embedding import train_used_rows
from fedattn_app.types import NDArray


class TrainingDivergedError(RuntimeError):
    """The loss or a parameter became NaN or infinite, so there is no usable update."""


@dataclass(frozen=True)
class TrainingResult:
    """Mean loss (nats) and accuracy (0 to 1) over the examples of the last local epoch.

    Each example is scored in training, before the optimizer step that uses it.
    """

    loss: float
    accuracy: float


def train(
    model: Classifier,
    trainable: Collection[str],
    examples: Examples,
    config: TrainingConfig,
    seed: int,
    proximal: Proximal | None = None,
) -> TrainingResult:
    """Train the `trainable` parameters of `model` in place with a new optimizer.

    Each step uses the gradient of the mean loss over its batch. Examples of similar size pass
    through the model together, in parts of the batch; this gives the same gradient with little
    padding.

    Args:
        model: The model; its other parameters do not change.
        trainable: The names of the parameters to train.
        examples: At least one example.
        config: Epochs, batch sizes and the optimizer's settings.
        seed: Seed of the order of the examples and of dropout.
        proximal: A term to add to the loss, or None.

    Raises:
        TrainingDivergedError: If the loss or a trained parameter is not finite.
    """
    set_trainable(model, trainable)
    model.train()
    pull = proximal.pull_on(model) if proximal else []
    steps = config.local_epochs * math.ceil(len(examples) / config.batch_size)
    with (
        _embedding_rows(model, examples, steps, config, proximal),
        torch.random.fork_rng(devices=[]),
        closing(
            FlatOptimizer([p for p in model.parameters() if p.requires_grad], config, pull)
        ) as flat,
    ):
        torch.default_generator.manual_seed(seed)
        for _ in range(config.local_epochs):
            loss_sum, num_correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for index in torch.split(torch.randperm(len(examples)), config.batch_size):
                flat.gradient.zero_()
                loss, correct = _add_gradient(model, examples, index, config.physical_batch_size)
                loss_sum += loss
                num_correct += correct
                flat.step()
            if not loss_sum.isfinite():
                raise TrainingDivergedError("the training loss is not finite; lower learning-rate")
        if not flat.values.isfinite().all():
            raise TrainingDivergedError(
                "the trained parameters are not finite; lower learning-rate"
            )
    return TrainingResult(float(loss_sum) / len(examples), int(num_correct) / len(examples))


def gradient(
    model: Classifier,
    trainable: Collection[str],
    examples: Examples,
    config: TrainingConfig,
    seed: int,
    batch: int = 0,
) -> tuple[dict[str, NDArray], TrainingResult]:
    """Return the gradient of the mean loss with respect to the `trainable` parameters, by name.

    Args:
        model: The model, which does not change.
        trainable: The names of the parameters.
        examples: At least one example.
        config: `physical_batch_size` limits how many examples pass through the model at once.
        seed: Seed of dropout and of the choice of `batch` examples.
        batch: The number of examples to use; 0 for all.

    Raises:
        TrainingDivergedError: If the loss is not finite.
    """
    set_trainable(model, trainable)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        index = torch.randperm(len(examples))[: batch or len(examples)]
        for parameter in model.parameters():
            parameter.grad = None
        loss, correct = _add_gradient(model, examples, index, config.physical_batch_size)
    if not loss.isfinite():
        raise TrainingDivergedError("the training loss is not finite; lower server-learning-rate")
    arrays: dict[str, NDArray] = {}
    for name, parameter in model.named_parameters():
        if name in trainable:
            none = torch.zeros_like(parameter)
            arrays[name] = (none if parameter.grad is None else parameter.grad).numpy()
            parameter.grad = None
    return arrays, TrainingResult(float(loss) / len(index), int(correct) / len(index))


def set_trainable(model: nn.Module, trainable: Collection[str]) -> None:
    """Make exactly the parameters named in `trainable` require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def _add_gradient(
    model: Classifier, examples: Examples, index: Tensor, physical_batch_size: int
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean loss over the examples at `index` to the parameters' `grad`.

    Returns the sum of the losses and the number of correct predictions, both scalars.
    """
    loss_sum, num_correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for part in examples.inputs.split_by_size(index, physical_batch_size):
        batch = examples[part]
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        (loss / len(index)).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
        num_correct += (logits.argmax(1) == batch.labels).sum()
    return loss_sum, num_correct


def _embedding_rows(
    model: Classifier,
    examples: Examples,
    steps: int,
    config: TrainingConfig,
    proximal: Proximal | None,
) -> AbstractContextManager[None]:
    """Return a context in which only the embedding rows in use are trained.

    With both weight decay and a proximal term the context does nothing, because the change of an
    unused row then has no closed form.
    """
    if proximal and config.weight_decay:
        return nullcontext()
    return train_used_rows(model, examples.inputs, steps, config)
