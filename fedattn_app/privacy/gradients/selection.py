"""Which engine computes a model's clipped gradients: the first that proves to be exact."""

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
from fedattn_app.privacy.gradients.engine import Engine, Hooks, OneByOne, trained

ENGINES: Sequence[type[Engine]] = (BookKeeping, Hooks)
# Largest relative error of a sum of gradients that counts as exact.
TOLERANCE = 1e-4
NUM_TEST_EXAMPLES = 3

log = getLogger("fedattn")


def engine_for(model: Classifier, max_length: int) -> type[Engine]:
    """Return the fastest engine that is exact for the parameters of `model` that need gradients.

    Each is held against gradients taken one by one, on random tokens and near the parameters that
    the model has. `max_length` is the longest text that it takes. Raises `UserError` for a model
    that normalises over a batch.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            'privacy = "dp-sgd": the model has batch normalisation, so that what one example adds '
            "would depend on which others were drawn"
        )
    kept = [parameter.detach().clone() for parameter in trained(model)]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            batch = _random_examples(model, max_length)
            _stir(model)
            limit = _norm(clipped(OneByOne, model, batch, math.inf)) / 10 or 1.0  # clips them all
            exact = clipped(OneByOne, model, batch, limit)
            for kind in ENGINES:
                if _agrees(kind, model, batch, limit, exact):
                    return kind
    finally:
        for parameter, values in zip(trained(model), kept, strict=True):
            parameter.data.copy_(values)
        for module, was in training.items():
            module.training = was
    log.warning("the gradients of this model are taken one by one, which is slow")
    return OneByOne


def clipped(
    kind: type[Engine], model: nn.Module, batch: Examples, max_grad_norm: float = 1.0
) -> list[Tensor]:
    """Return the sum of clipped gradients by an engine of this `kind`."""
    parameters = trained(model)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    engine = kind(model)
    try:
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total  # as in training
        engine.add(batch, max_grad_norm, sums)
    finally:
        engine.close()
        for parameter in parameters:
            parameter.grad = None
    return sums


def _agrees(
    kind: type[Engine], model: nn.Module, batch: Examples, limit: float, exact: list[Tensor]
) -> bool:
    try:
        sums = clipped(kind, model, batch, limit)
    except Exception as error:  # an engine may meet any obstacle in a model that it does not know
        log.debug("%s: %s", kind.__name__, error)
        return False
    off = _norm([a - b for a, b in zip(sums, exact, strict=True)])
    return off <= TOLERANCE * _norm(exact)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def _random_examples(model: Classifier, max_length: int) -> Examples:
    """Return `NUM_TEST_EXAMPLES` random examples with random labels."""
    inputs = model.random_batch(NUM_TEST_EXAMPLES, max_length)
    with torch.no_grad():
        labels = torch.randint(0, model(inputs).shape[1], (NUM_TEST_EXAMPLES,))
    return Examples(inputs, labels)


def _stir(model: nn.Module) -> None:
    """Move the parameters, so that none has a gradient of zero, and turn dropout off."""
    for parameter in trained(model):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval()
    for module in model.modules():  # Opacus passes over layers that are not in training
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.training = True
