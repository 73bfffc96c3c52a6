"""Linear layers by oneDNN against torch's own.

oneDNN is used on AVX-512 processors of other makers than Intel. Most tests force it, so they run on
every machine with AVX-512; the header of the test session says which path applies.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import Config
from fedattn_app.data.examples import Examples
from fedattn_app.models import fast_linear
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.fast_linear import is_faster, is_supported, product, speed_up
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OneByOne
from fedattn_app.privacy.gradients.selection import clipped_gradient_sum

needs_onednn = pytest.mark.skipif(not is_supported(), reason="no AVX-512, or another torch")


@pytest.fixture
def forced(monkeypatch):
    """`speed_up` uses oneDNN wherever it is supported."""
    monkeypatch.setattr(fast_linear, "is_faster", is_supported)


@pytest.fixture
def any_size(forced, monkeypatch):
    """Matrices of any size go to oneDNN."""
    monkeypatch.setattr(fast_linear, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(fast_linear, "MIN_MULTIPLICATIONS_TRANSPOSED", 0)


def layer_pair(inputs=5, outputs=7, bias=True):
    """A linear layer, and a copy of it after `speed_up`."""
    torch.manual_seed(1)
    layer = nn.Linear(inputs, outputs, bias=bias)
    fast = copy.deepcopy(layer)
    speed_up(fast)
    return layer, fast


@needs_onednn
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 1, 4, 5)])
def test_values_and_gradients_equal_those_of_torch(shape, bias):
    results = []
    for layer in layer_pair(bias=bias):
        x = torch.linspace(-1, 1, math.prod(shape)).view(shape).requires_grad_()
        y = layer(x)
        loss = (y * torch.linspace(1, 2, y.numel()).view_as(y)).sum()
        results.append([y, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@needs_onednn
@pytest.mark.usefixtures("any_size")
def test_inputs_may_have_any_memory_layout():
    layer, fast = layer_pair()
    transposed = torch.linspace(-1, 1, 60).view(5, 4, 3).permute(2, 1, 0)
    torch.testing.assert_close(fast(transposed), layer(transposed))
    fast(transposed).sum().backward()  # the gradient of a sum is one number, expanded
    layer(transposed).sum().backward()
    torch.testing.assert_close(fast.weight.grad, layer.weight.grad)
    expected = transposed[0] @ layer.weight.T
    torch.testing.assert_close(product(transposed[0], layer.weight), expected)


@needs_onednn
@pytest.mark.usefixtures("any_size")
def test_a_frozen_weight_gets_no_gradient():
    _, fast = layer_pair()
    fast.weight.requires_grad_(False)
    x = torch.ones(2, 5, requires_grad=True)
    fast(x).sum().backward()
    assert fast.weight.grad is None
    assert x.grad is not None
    with torch.no_grad():
        assert not fast(x).requires_grad


@needs_onednn
@pytest.mark.usefixtures("forced")
def test_only_large_products_go_to_onednn(monkeypatch):
    calls = []

    def record(x, *rest):
        calls.append(x)
        return F.linear(x, *rest)

    monkeypatch.setattr(fast_linear, "product", record)
    _, fast = layer_pair(64, 256)
    fast(torch.zeros(511, 64))
    assert not calls
    fast(torch.zeros(512, 64))
    assert len(calls) == 1


@needs_onednn
@pytest.mark.usefixtures("forced")
def test_a_layer_can_be_copied_and_keeps_its_type():
    _, fast = layer_pair()
    assert type(fast) is nn.Linear
    assert "forward" in vars(fast)
    copied = copy.deepcopy(fast)
    copied.weight.data.zero_()
    copied.bias.data.zero_()
    assert not copied(torch.ones(1, 5)).any()
    assert fast(torch.ones(1, 5)).any()


@pytest.mark.parametrize("faster", [False, True])
def test_a_layer_changes_only_where_onednn_is_faster(monkeypatch, faster):
    monkeypatch.setattr(fast_linear, "is_faster", lambda: faster)
    _, fast = layer_pair()
    assert ("forward" in vars(fast)) == faster


def test_onednn_is_not_faster_where_it_is_not_supported(monkeypatch):
    def missing(*_):
        raise NotImplementedError

    monkeypatch.setattr(fast_linear, "product", missing)
    PROCESS_CACHE.clear()
    try:
        assert not is_supported()
        assert not is_faster()
    finally:
        PROCESS_CACHE.clear()


@needs_onednn
@pytest.mark.usefixtures("any_size", "one_thread")
@pytest.mark.parametrize("kind", ["built-in", "bert", "distilbert"])
def test_clipped_gradients_equal_those_of_torch(pretrained_folder, kind):
    settings = {"model": "tiny", "vocabulary": 100, "max-length": 8}
    if kind != "built-in":
        settings = {"model": str(pretrained_folder(kind)), "max-length": 8}
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 2, 0], [7, 7, 0, 0]], dtype=torch.int32)
    lengths = torch.tensor([4, 3, 2], dtype=torch.int32)
    examples = Examples(TextBatch.of(ids, lengths), torch.tensor([0, 1, 2]))
    fast = build_classifier(Config.from_run_config(settings), "abc").eval()
    plain = copy.deepcopy(fast)
    replaced = [vars(layer).pop("forward", None) for layer in plain.modules()]
    assert any(replaced)
    expected = clipped_gradient_sum(OneByOne, plain, examples, 0.1)
    for got, gradient in zip(
        clipped_gradient_sum(BookKeeping, fast, examples, 0.1), expected, strict=True
    ):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-7)


@needs_onednn
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("frozen", [False, True])
def test_activations_are_kept_only_for_weights_that_train(frozen):
    kept = []
    _, fast = layer_pair()
    fast.weight.requires_grad_(not frozen)
    x = torch.ones(2, 3, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = fast(x)
    assert (x.shape in kept) == (not frozen)
    y.sum().backward()
    torch.testing.assert_close(x.grad, fast.weight.detach().sum(0).expand(2, 3, 5))
