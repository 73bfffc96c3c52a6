"""Evaluation of a model on labelled examples."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedattn_app.data.examples import Examples
from fedattn_app.metrics import Scores

# Number of examples that pass through the model at once.
EVALUATION_BATCH_SIZE = 64


def evaluate(
    model: nn.Module,
    examples: Examples,
    num_labels: int,
    batches: Sequence[Tensor] | None = None,
) -> Scores:
    """Return the scores of `model` on `examples`.

    `batches` are 1-D indices that cover all examples once; without them, examples of similar size
    form batches of `EVALUATION_BATCH_SIZE`. As many batches are processed at once as torch may use
    threads, each in one thread. The scores do not depend on the number of threads, and no thread
    waits for another, which matters on a busy machine.
    """
    model.eval()
    if batches is None:
        everything = torch.arange(len(examples))
        batches = examples.inputs.split_by_size(everything, EVALUATION_BATCH_SIZE)
    losses, predicted = [], torch.empty_like(examples.labels)
    with _parallel_map() as mapped:
        for index, (loss, answers) in zip(
            batches, mapped(partial(_predict, model, examples), batches), strict=True
        ):
            losses.append(loss)
            predicted[index] = answers
    correct = examples.labels[predicted == examples.labels]
    counts = (
        torch.bincount(labels, minlength=num_labels).numpy()
        for labels in (examples.labels, predicted, correct)
    )
    return Scores(sum(losses) / max(len(examples), 1), *counts)


@torch.no_grad()
def _predict(model: nn.Module, examples: Examples, index: Tensor) -> tuple[float, Tensor]:
    """Return the sum of the losses of the examples at `index`, and their predictions (B,)."""
    batch = examples[index]
    logits = model(batch.inputs)
    return float(F.cross_entropy(logits, batch.labels, reduction="sum")), logits.argmax(1)


@contextmanager
def _parallel_map() -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a function like `map` that runs in as many threads as torch may use.

    Inside each of these threads torch itself uses one thread.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # the last call applies to every thread created later
