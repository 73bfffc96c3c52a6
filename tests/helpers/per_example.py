"""Reference gradients for DP-SGD, by torch.autograd on one example at a time."""

import torch
from torch.nn import functional as F

from fedattn_app.data.examples import Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.privacy.gradients.selection import clipped_gradient_sum
from helpers.classifiers import selected

TOLERANCE = 1e-5
TOKENS, LONGEST = 40, 30  # in `random_examples`: the limit of the ids, and the longest text
LABELS = 3


def random_examples(lengths, seed=1):
    """Random texts of these lengths in tokens, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, TOKENS, (len(lengths), max(lengths)), generator=generator)
    labels = torch.randint(0, LABELS, (len(lengths),), generator=generator)
    lengths = torch.tensor(lengths)
    ids = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 0)
    return Examples(TextBatch.of(ids.int(), lengths.int()), labels)


def select(model, trainable):
    """Make the parameters named in `trainable` require gradients, and perturb them."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
        if (
            parameter.requires_grad
        ):  # the gradient of a LoRA matrix is zero while the other matrix is
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def scoped(model, shared):
    """Make the parameters of a scope trainable; in training mode, or Opacus skips the layers."""
    local = "personal" if shared == "lora-a" else "frozen"
    return select(model, selected(model, shared, local).trainable).train()


def gradients(model, examples):
    """Each example's gradient of its loss: a list with a tensor per parameter."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    examples_gradients = []
    for index in torch.arange(len(examples))[:, None]:
        example = examples[index]
        loss = F.cross_entropy(model(example.inputs), example.labels)
        examples_gradients.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
    return examples_gradients


def norms(examples_gradients):
    """The norm of each example's gradient over all parameters together."""
    return torch.tensor([flat(gradient).norm() for gradient in examples_gradients])


def clipped_sum(examples_gradients, max_grad_norm):
    """The sum of the gradients, each scaled to at most `max_grad_norm`."""
    total = [torch.zeros_like(part) for part in examples_gradients[0]]
    for gradient in examples_gradients:
        scale = min(1.0, max_grad_norm / max(float(flat(gradient).norm()), 1e-30))
        total = [part + scale * more for part, more in zip(total, gradient, strict=True)]
    return total


def norm_between(examples_gradients):
    """A norm that clips some of the gradients but not all."""
    smallest, *_, largest = norms(examples_gradients).sort().values
    assert smallest < 0.99 * largest
    return float(smallest + largest) / 2


def assert_exact(engines, model, examples):
    """Compare the engines' sums with the reference, with some examples clipped and with none."""
    expected = gradients(model, examples)
    for max_grad_norm in (norm_between(expected), 1e9):
        for engine in engines:
            sums = clipped_gradient_sum(engine, model, examples, max_grad_norm)
            error = relative_error(sums, clipped_sum(expected, max_grad_norm))
            assert error <= TOLERANCE, engine.__name__


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def relative_error(tensors, expected):
    return float((flat(tensors) - flat(expected)).norm() / flat(expected).norm())


def hooks_and_attributes(model):
    """The state that an engine must restore: hooks, gradients, and attributes of parameters."""
    hooks = {
        (name, key): len(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key.endswith(("hooks", "hooks_with_kwargs")) and value is not None
    }
    parameters = {
        name: (parameter.requires_grad, parameter.grad, set(vars(parameter)))
        for name, parameter in model.named_parameters()
    }
    return hooks, parameters
