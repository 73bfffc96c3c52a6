"""One client's local training, and evaluation anywhere."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.config import TrainingConfig
from fedattn_app.data.examples import Examples
from fedattn_app.metrics import Scores
from fedattn_app.models.classifier import Classifier
from fedattn_app.training.optimizer import FlatOptimizer, Proximal
from fedattn_app.training.sparse_embedding import compact_embedding
from fedattn_app.types import NDArray

EVALUATION_BATCH = 64


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite, so there is no update worth sending."""


@dataclass(frozen=True)
class TrainingResult:
    """Means over the examples of the last local epoch, each seen before its own step."""

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
    """Train the `trainable` parameters of `model` in place with a fresh optimizer.

    `seed` decides the order of the examples and the dropout; `proximal` adds to the loss. Each
    step takes the gradient of the mean loss over its batch as a sum over parts of similar length:
    the same gradient with little padding. Raises `TrainingDivergedError` when the loss is not
    finite. `examples` must not be empty.
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
            loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for index in torch.split(torch.randperm(len(examples)), config.batch_size):
                flat.gradient.zero_()
                loss, hits = _pass(model, examples, index, config.physical_batch_size)
                loss_sum += loss
                right += hits
                flat.step()
            if not loss_sum.isfinite():
                raise TrainingDivergedError("the training loss is not finite; lower learning-rate")
        if not flat.values.isfinite().all():
            raise TrainingDivergedError(
                "the trained parameters are not finite; lower learning-rate"
            )
    return TrainingResult(float(loss_sum) / len(examples), int(right) / len(examples))


def gradient(
    model: Classifier,
    trainable: Collection[str],
    examples: Examples,
    config: TrainingConfig,
    seed: int,
    batch: int = 0,
) -> tuple[dict[str, NDArray], TrainingResult]:
    """Return the gradient of the mean loss with respect to the `trainable` parameters, by name.

    It is over all `examples`, which must not be empty, or over `batch` of them that `seed` chooses.
    Raises `TrainingDivergedError` when the loss is not finite.
    """
    set_trainable(model, trainable)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        index = torch.randperm(len(examples))[: batch or len(examples)]
        for parameter in model.parameters():
            parameter.grad = None
        loss, right = _pass(model, examples, index, config.physical_batch_size)
    if not loss.isfinite():
        raise TrainingDivergedError("the training loss is not finite; lower server-learning-rate")
    arrays: dict[str, NDArray] = {}
    for name, parameter in model.named_parameters():
        if name in trainable:
            none = torch.zeros_like(parameter)
            arrays[name] = (none if parameter.grad is None else parameter.grad).numpy()
            parameter.grad = None
    return arrays, TrainingResult(float(loss) / len(index), int(right) / len(index))


def set_trainable(model: nn.Module, trainable: Collection[str]) -> None:
    """Let the `trainable` parameters have gradients, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def _pass(
    model: Classifier, examples: Examples, index: Tensor, physical_batch_size: int
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean loss over `index`; return the sum of losses, and the hits."""
    loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for part in by_length(index, examples.lengths, physical_batch_size):
        batch = examples[part]
        logits = model(batch.ids, batch.lengths)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        (loss / len(index)).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
        right += (logits.argmax(1) == batch.labels).sum()
    return loss_sum, right


def _embedding_rows(
    model: Classifier,
    examples: Examples,
    steps: int,
    config: TrainingConfig,
    proximal: Proximal | None,
) -> AbstractContextManager[None]:
    """Train the rows in use alone, unless a proximal term would hold the others against decay."""
    if proximal and config.weight_decay:
        return nullcontext()
    return compact_embedding(model, examples.ids, steps, config)


def by_length(index: Tensor, lengths: Tensor, size: int) -> Sequence[Tensor]:
    """Split the 1-D `index` of examples into parts of at most `size` of similar length.

    `lengths` are those of all examples.
    """
    if len(index) <= size:
        return [index] if len(index) else []
    return torch.split(index[lengths[index].argsort(stable=True)], size)


def evaluate(
    model: nn.Module,
    examples: Examples,
    num_labels: int,
    batches: Sequence[Tensor] | None = None,
) -> Scores:
    """Score `model` on `examples`, in batches of similar length unless `batches` are given.

    As many batches pass at once as torch may use threads, each in one thread: the scores are the
    same for any number, and no thread ever waits for another that a busy machine holds up.
    """
    model.eval()
    if batches is None:
        batches = by_length(torch.arange(len(examples)), examples.lengths, EVALUATION_BATCH)
    losses, found = [], torch.empty_like(examples.labels)
    with _side_by_side() as mapped:
        for index, (loss, answers) in zip(
            batches, mapped(partial(_answer, model, examples), batches), strict=True
        ):
            losses.append(loss)
            found[index] = answers
    right = examples.labels[found == examples.labels]
    support, predicted, correct = (
        torch.bincount(labels, minlength=num_labels).numpy()
        for labels in (examples.labels, found, right)
    )
    return Scores(sum(losses) / max(len(examples), 1), support, predicted, correct)


@torch.no_grad()
def _answer(model: nn.Module, examples: Examples, index: Tensor) -> tuple[float, Tensor]:
    """Return the sum of the losses on the batch `index`, and the label found for each of it."""
    batch = examples[index]
    logits = model(batch.ids, batch.lengths)
    return float(F.cross_entropy(logits, batch.labels, reduction="sum")), logits.argmax(1)


@contextmanager
def _side_by_side() -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` that runs in as many threads as torch may use, each with one of torch's."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # the last call holds for all threads to come
