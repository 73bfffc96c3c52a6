"""Every engine's sums of clipped gradients, against autograd on one example at a time."""

import pytest
import torch
from helpers.classifiers import classifier, encoded
from helpers.layers import SUPPORTED, WeightedTokens, model_of
from helpers.per_example import (
    LABELS,
    TOKENS,
    TOLERANCE,
    assert_exact,
    clipped_sum,
    flat,
    gradients,
    hooks_and_attributes,
    norm_between,
    norms,
    random_examples,
    relative_error,
    scoped,
    select,
)
from helpers.pretrained_folders import TEXTS

from fedattn_app.data.examples import UNKNOWN_LABEL, Examples
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.scopes import SCOPES
from fedattn_app.privacy.gradients import book_keeping
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import (
    OneByOne,
    OpacusHooks,
    clipping_factors,
    trained_parameters,
)
from fedattn_app.privacy.gradients.selection import clipped_gradient_sum

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

ALL_ENGINES = [BookKeeping, OpacusHooks, OneByOne]
# The norms of a layer come from one formula for the short texts and from another for the long ones.
BATCHES = {"short": [1, 3, 2, 1], "long": [30, 1, 28, 7, 30]}
SHORT_TEXTS = ["a rash", "no fever", "denies chest pain", "a rash"]
# Layers that Opacus' hooks do not support, or compute wrongly.
UNSUPPORTED_BY_OPACUS = {"layer norm without bias", "embedding with padding", "positions"}


@pytest.fixture(params=BATCHES)
def examples(request):
    """Texts with tokens that occur twice in a text and in several texts."""
    examples = random_examples(BATCHES[request.param])
    examples.inputs.ids[0, -1] = examples.inputs.ids[0, 0]
    examples.inputs.ids[2, :2] = 5
    return examples


def built_in(shared="all"):
    """A built-in model with few parameters, which trains `shared`."""
    sizes = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24, "vocabulary": TOKENS}
    return scoped(classifier("tiny", shared=shared, **sizes), shared)


@pytest.mark.parametrize("layer", SUPPORTED)
def test_a_layer_has_the_clipped_gradients_of_autograd(layer, examples):
    model, names = model_of(layer)
    engines = [BookKeeping, OneByOne] if layer in UNSUPPORTED_BY_OPACUS else ALL_ENGINES
    assert_exact(engines, select(model, names), examples)


@pytest.mark.parametrize("shared", [*SCOPES, r".*norm.*|head\.bias", r"embedding\.weight"])
def test_the_built_in_model_has_the_clipped_gradients_of_autograd(shared, examples):
    assert_exact(ALL_ENGINES, built_in(shared), examples)


@pytest.mark.parametrize("texts", [SHORT_TEXTS, TEXTS], ids=["short", "long"])
@pytest.mark.parametrize("shared", ["all", "attention+head", "lora", "head"])
def test_a_pretrained_model_has_the_clipped_gradients_of_autograd(
    family, pretrained_folder, shared, texts
):
    folder = pretrained_folder(family)
    examples = Examples(encoded(folder, texts), torch.arange(len(texts)) % LABELS)
    engines = ALL_ENGINES
    if family == "deberta-v2" and shared != "head":  # its key and query layers are used twice
        engines = [OneByOne]
    elif shared == "all":  # all examples share its positions
        engines = [BookKeeping, OneByOne]
    assert_exact(engines, scoped(classifier(folder, shared=shared), shared), examples)


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_gradients_are_added_to_the_given_sums(engine, examples):
    model = built_in()
    expected = gradients(model, examples)
    max_grad_norm = norm_between(expected)
    sums = [torch.ones_like(parameter) for parameter in model.parameters()]
    used = engine(model)
    for part in torch.arange(len(examples)).split(3):
        used.add(examples[part], max_grad_norm, sums)
    used.close()
    added = [total - 1 for total in sums]
    assert relative_error(added, clipped_sum(expected, max_grad_norm)) <= TOLERANCE


@pytest.mark.parametrize("examples_per_pass", [1, 2, 5, 6])
def test_the_number_of_examples_per_pass_changes_nothing(monkeypatch, examples_per_pass, examples):
    monkeypatch.setattr(book_keeping, "EXAMPLES_PER_PASS", examples_per_pass)
    assert_exact([BookKeeping], built_in(), examples)


def test_buffers_hold_nothing_of_earlier_batches():
    """Buffers are used again for larger, smaller and longer batches."""
    model = built_in()
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    lengths = [[30, 28], [1, 3, 2, 1], [30, 1, 28, 7, 30], [20], [29, 30]]
    batches = [random_examples(of_batch, seed) for seed, of_batch in enumerate(lengths)]
    expected = [gradient for batch in batches for gradient in gradients(model, batch)]
    max_grad_norm = norm_between(expected)
    used = BookKeeping(model)
    for batch in batches:
        used.add(batch, max_grad_norm, sums)
    used.close()
    assert relative_error(sums, clipped_sum(expected, max_grad_norm)) <= TOLERANCE


@pytest.mark.parametrize("shared", ["all", "attention+head", "lora"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_an_example_whose_gradient_is_not_finite_adds_nothing(engine, value, shared, examples):
    model = built_in(shared)
    model.embedding.weight.data[TOKENS - 1] = value
    examples.inputs.ids[examples.inputs.ids == TOKENS - 1] = 1
    examples.inputs.ids[1, 0] = TOKENS - 1
    bad = torch.arange(len(examples)) == 1
    expected = gradients(model, examples[~bad])
    max_grad_norm = norm_between(expected)
    assert not flat(gradients(model, examples[bad])[0]).isfinite().all()
    sums = clipped_gradient_sum(engine, model, examples, max_grad_norm)
    assert relative_error(sums, clipped_sum(expected, max_grad_norm)) <= TOLERANCE
    assert not flat(clipped_gradient_sum(engine, model, examples[bad], max_grad_norm)).any()


@pytest.mark.parametrize("layer", ["linear without bias", "wide linear without bias", "embedding"])
@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_gradients_whose_terms_cancel_are_clipped_by_their_true_norm(engine, layer):
    """The sum of the terms is a millionth of their size."""
    inner, names = model_of(layer)
    model = select(WeightedTokens(inner, [4097.0, -4096.0]), {f"inner.{name}" for name in names})
    examples = Examples(
        TextBatch.of(torch.tensor([[7, 7]]).int(), torch.tensor([2])), torch.tensor([1])
    )
    expected = gradients(model, examples)
    max_grad_norm = float(norms(expected)) / 2
    sums = clipped_gradient_sum(engine, model, examples, max_grad_norm)
    assert relative_error(sums, clipped_sum(expected, max_grad_norm)) <= 1e-2


@pytest.mark.parametrize(
    "layer", ["linear without bias", "wide linear", "wide linear without bias", "embedding"]
)
@pytest.mark.parametrize("size", [1e6, 1e8, 1e9, 1e10])
@pytest.mark.parametrize("token", [5, 6, 7])
def test_the_sum_stays_within_the_clipping_norm_despite_rounding(layer, size, token):
    """Terms that are scaled and added one by one cancel less well than in the norm."""
    inner, names = model_of(layer)
    weights = [3 * size, -size, -2 * size]
    model = select(WeightedTokens(inner, weights), {f"inner.{name}" for name in names})
    examples = Examples(
        TextBatch.of(torch.full((1, 3), token), torch.tensor([3])), torch.tensor([1])
    )
    assert flat(clipped_gradient_sum(BookKeeping, model, examples, 1.0)).norm() <= 1 + 1e-4


@pytest.mark.parametrize(("inputs", "outputs"), [(1e17, 1e-22), (1e12, 1e-26), (1e30, 1e-35)])
@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_gradient_with_a_tiny_factor_is_clipped(engine, inputs, outputs):
    """A malicious server may send a model for which squares of factors underflow in float32."""
    model = built_in(r"layers\.0\.attention\.output\.weight")
    attention = model.layers[0].attention
    attention.output.weight.data.zero_()
    attention.value.weight.data *= inputs
    model.head.weight.data *= outputs
    examples = random_examples(BATCHES["short"])
    max_grad_norm = float(norms(gradients(model, examples)).min()) / 10
    for number in range(len(examples)):
        own = clipped_gradient_sum(engine, model, examples[torch.tensor([number])], max_grad_norm)
        assert flat(own).norm() <= max_grad_norm * (1 + 1e-4)


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_an_example_with_a_gradient_of_zero_adds_nothing(engine, examples):
    model = built_in("head")
    model.head.weight.data[:] = 0
    model.head.bias.data = torch.tensor([1e4, 0, 0])  # so large that the loss of label 0 is 0
    examples.labels[:] = 0
    assert not flat(clipped_gradient_sum(engine, model, examples)).any()


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_an_example_of_unknown_label_adds_nothing(engine, examples):
    model = built_in()
    unknown = torch.arange(len(examples)) == 1
    expected = clipped_gradient_sum(engine, model, examples[~unknown])
    examples.labels[unknown] = UNKNOWN_LABEL
    assert relative_error(clipped_gradient_sum(engine, model, examples), expected) <= TOLERANCE
    assert not flat(clipped_gradient_sum(engine, model, examples[unknown])).any()


# Side effects


@pytest.mark.parametrize("shared", ["all", "attention", "lora"])
@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_closed_engine_leaves_the_model_as_it_was(engine, shared, examples):
    model = built_in(shared)
    before = hooks_and_attributes(model)
    values = flat(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in trained_parameters(model)]
    used = engine(model)
    used.add(examples, 1.0, sums)
    assert all(parameter.grad is None for parameter in model.parameters())
    used.close()
    assert hooks_and_attributes(model) == before
    assert torch.equal(flat(model.parameters()), values)


@pytest.mark.parametrize(("engine", "computes"), [(BookKeeping, False), (OneByOne, True)])
def test_book_keeping_computes_no_gradient_of_a_weight(engine, computes, examples):
    model = built_in()
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(seen.append)
    clipped_gradient_sum(engine, model, examples)
    assert bool(seen) == computes


@pytest.mark.parametrize(
    "layer", ["a layer used twice", "a layer of its own kind", "normalised embedding"]
)
def test_book_keeping_refuses_layers_that_it_does_not_support(layer, examples):
    model, names = model_of(layer)
    before = hooks_and_attributes(select(model, names))
    with pytest.raises(TypeError, match=r"used twice|not supported"):
        clipped_gradient_sum(BookKeeping, model, examples)
    assert hooks_and_attributes(model) == before


def test_clipping_factors_by_hand():
    norms = torch.tensor([0.0, 0.5, 2.0, 8.0])
    assert clipping_factors(norms, 2.0).tolist() == [1, 1, 1, 0.25]
    assert clipping_factors(norms, torch.inf).tolist() == [1, 1, 1, 1]
