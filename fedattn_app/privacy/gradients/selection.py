"""Select the engine that computes a model's clipped gradients: the fastest that is exact."""

import math
from collections.abc import Sequence
from logging import getLogger

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedattn_app.data.examples import Examples
from fedattn_app.errors import UserError
from fedattn_app.models.classifier import Classifier
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import (
    GradientEngine,
    OneByOne,
    OpacusHooks,
    trained_parameters,
)

# Fastest first.
ENGINES: Sequence[type[GradientEngine]] = (BookKeeping, OpacusHooks)
# A sum of gradients with at most this relative error counts as exact.
MAX_RELATIVE_ERROR = 1e-4
NUM_TEST_EXAMPLES = 3

log = getLogger("fedattn")


def engine_for(model: Classifier, max_length: int) -> type[GradientEngine]:
    """Return the fastest engine that is exact for the parameters of `model` that need gradients.

    Each engine is compared with `OneByOne` on random inputs, at parameters near the model's own.
    The model, its flags and torch's random state are restored. Raises `UserError` for a model with
    batch normalisation.

    Args:
        model: the classifier.
        max_length: the maximum length of a text in tokens.
    """
    refuse_batch_normalisation(model)
    values = [parameter.detach().clone() for parameter in trained_parameters(model)]
    training_flags = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            batch = _random_examples(model, max_length)
            _perturb(model)
            whole = _norm(clipped_gradient_sum(OneByOne, model, batch, math.inf))
            max_grad_norm = whole / 10 or 1.0  # small, so that examples are clipped
            expected = clipped_gradient_sum(OneByOne, model, batch, max_grad_norm)
            for engine in ENGINES:
                if _is_exact(engine, model, batch, max_grad_norm, expected):
                    return engine
    finally:
        for parameter, value in zip(trained_parameters(model), values, strict=True):
            parameter.data.copy_(value)
        for module, flag in training_flags.items():
            module.training = flag
    log.warning("the gradients of this model are computed one example at a time, which is slow")
    return OneByOne


def refuse_batch_normalisation(model: nn.Module) -> None:
    """Raise `UserError` for a model with batch normalisation, in which examples mix."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            'privacy = "dp-sgd": the model has batch normalisation, so the contribution of one '
            "example would depend on which others were drawn"
        )


def clipped_gradient_sum(
    engine_class: type[GradientEngine],
    model: nn.Module,
    batch: Examples,
    max_grad_norm: float = 1.0,
) -> list[Tensor]:
    """Return the sum of clipped gradients by one engine, a tensor per trained parameter."""
    parameters = trained_parameters(model)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    engine = engine_class(model)
    try:
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total  # as in training
        engine.add(batch, max_grad_norm, sums)
    finally:
        engine.close()
        for parameter in parameters:
            parameter.grad = None
    return sums


def _is_exact(
    engine: type[GradientEngine],
    model: nn.Module,
    batch: Examples,
    max_grad_norm: float,
    expected: list[Tensor],
) -> bool:
    try:
        sums = clipped_gradient_sum(engine, model, batch, max_grad_norm)
    except Exception as error:  # an engine may fail in any way on a model that it does not support
        log.debug("%s: %s", engine.__name__, error)
        return False
    error_norm = _norm([a - b for a, b in zip(sums, expected, strict=True)])
    return error_norm <= MAX_RELATIVE_ERROR * _norm(expected)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def _random_examples(model: Classifier, max_length: int) -> Examples:
    """Return `NUM_TEST_EXAMPLES` random examples with random labels."""
    inputs = model.random_batch(NUM_TEST_EXAMPLES, max_length)
    with torch.no_grad():
        labels = torch.randint(0, model(inputs).shape[1], (NUM_TEST_EXAMPLES,))
    return Examples(inputs, labels)


def _perturb(model: nn.Module) -> None:
    """Add noise to the parameters, so that no gradient is zero, and turn dropout off."""
    for parameter in trained_parameters(model):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval()
    for module in model.modules():  # Opacus skips layers that are not in training mode
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.training = True
