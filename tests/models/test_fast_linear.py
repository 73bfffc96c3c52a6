"""oneDNN's products against torch's own."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedattn_app.config import Config
from fedattn_app.data.examples import Examples
from fedattn_app.models import fast_linear as products
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.fast_linear import available, product, speed_up
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OneByOne
from fedattn_app.privacy.gradients.selection import clipped

needs_them = pytest.mark.skipif(not available(), reason="oneDNN has no faster products here")


@pytest.fixture
def always(monkeypatch):
    """Matrices of any size go to oneDNN."""
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "LEAST_TURNED", 0)


def pair(inputs=5, outputs=7, bias=True):
    """A layer and one like it with the faster products."""
    torch.manual_seed(1)
    layer = nn.Linear(inputs, outputs, bias=bias)
    fast = copy.deepcopy(layer)
    speed_up(fast)
    return layer, fast


@needs_them
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 1, 4, 5)])
def test_values_and_gradients_are_those_of_torch(shape, bias):
    results = []
    for layer in pair(bias=bias):
        x = torch.linspace(-1, 1, math.prod(shape)).view(shape).requires_grad_()
        y = layer(x)
        loss = (y * torch.linspace(1, 2, y.numel()).view_as(y)).sum()
        results.append([y, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@needs_them
@pytest.mark.usefixtures("always")
def test_any_layout_will_do():
    layer, fast = pair()
    across = torch.linspace(-1, 1, 60).view(5, 4, 3).permute(2, 1, 0)
    torch.testing.assert_close(fast(across), layer(across))
    fast(across).sum().backward()  # whose gradient is one number, repeated
    layer(across).sum().backward()
    torch.testing.assert_close(fast.weight.grad, layer.weight.grad)
    torch.testing.assert_close(product(across[0], layer.weight), across[0] @ layer.weight.T)


@needs_them
@pytest.mark.usefixtures("always")
def test_what_needs_no_gradient_gets_none():
    _, fast = pair()
    fast.weight.requires_grad_(False)
    x = torch.ones(2, 5, requires_grad=True)
    fast(x).sum().backward()
    assert fast.weight.grad is None
    assert x.grad is not None
    with torch.no_grad():
        assert not fast(x).requires_grad


@needs_them
def test_large_products_go_to_onednn_and_small_ones_do_not(monkeypatch):
    seen = []
    monkeypatch.setattr(products, "product", lambda x, *rest: seen.append(x) or F.linear(x, *rest))
    _, fast = pair(64, 256)
    fast(torch.zeros(511, 64))
    assert not seen
    fast(torch.zeros(512, 64))
    assert len(seen) == 1


@needs_them
def test_a_layer_stays_what_it_is_for_everyone_else():
    _, fast = pair()
    assert type(fast) is nn.Linear
    copied = copy.deepcopy(fast)
    copied.weight.data.zero_()
    copied.bias.data.zero_()
    assert not copied(torch.ones(1, 5)).any()
    assert fast(torch.ones(1, 5)).any()


def test_where_there_are_none_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "available", lambda: False)
    _, fast = pair()
    assert "forward" not in vars(fast)


def test_a_torch_without_them_is_met(monkeypatch):
    def missing(*_):
        raise NotImplementedError

    monkeypatch.setattr(products, "product", missing)
    available.cache_clear()
    try:
        assert not available()
    finally:
        available.cache_clear()


@needs_them
@pytest.mark.usefixtures("always", "one_thread")
@pytest.mark.parametrize("kind", ["built-in", "bert", "distilbert"])
def test_clipped_gradients_are_those_without_them(pretrained_folder, kind):
    settings = {"model": "tiny", "vocabulary": 100, "max-length": 8}
    if kind != "built-in":
        settings = {"model": str(pretrained_folder(kind)), "max-length": 8}
    batch = Examples(
        torch.tensor([[1, 2, 3, 4], [5, 6, 2, 0], [7, 7, 0, 0]], dtype=torch.int32),
        torch.tensor([4, 3, 2], dtype=torch.int32),
        torch.tensor([0, 1, 2]),
    )
    fast = build_classifier(Config.from_run_config(settings), 3).eval()
    plain = copy.deepcopy(fast)
    for layer in plain.modules():
        vars(layer).pop("forward", None)
    expected = clipped(OneByOne, plain, batch, 0.1)
    for got, gradient in zip(clipped(BookKeeping, fast, batch, 0.1), expected, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-7)


@needs_them
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("frozen", [False, True])
def test_activations_are_kept_only_for_weights_that_train(frozen):
    kept = []
    _, fast = pair()
    fast.weight.requires_grad_(not frozen)
    x = torch.ones(2, 3, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = fast(x)
    assert (x.shape in kept) == (not frozen)
    y.sum().backward()
    torch.testing.assert_close(x.grad, fast.weight.detach().sum(0).expand(2, 3, 5))
