"""The engine that is selected for a model, and that the selection has no side effects."""

import math

import pytest
import torch
from helpers.classifiers import classifier, selected
from helpers.per_example import select
from torch import nn

from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.privacy.gradients import selection
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OneByOne, OpacusHooks, trained_parameters
from fedattn_app.privacy.gradients.selection import engine_for

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

SCOPES = ["all", "attention", "attention+head", "head", "lora", "lora-a", "lora-b"]
MAX_LENGTH = 32


class Unclipped(OneByOne):
    """Does not clip."""

    def add(self, batch, max_grad_norm, sums):
        super().add(batch, math.inf, sums)


class ClippedBatch(OneByOne):
    """Clips the sum of all examples, as if they were one."""

    def add(self, batch, max_grad_norm, sums):
        own = [torch.zeros_like(total) for total in sums]
        super().add(batch, math.inf, own)
        norm = torch.cat([total.flatten() for total in own]).norm()
        for total, gradient in zip(sums, own, strict=True):
            total.add_(gradient * (max_grad_norm / norm).clamp(max=1))


class PerLayer(OneByOne):
    """Clips the gradient of each parameter separately."""

    def add(self, batch, max_grad_norm, sums):
        for index in torch.arange(len(batch))[:, None]:
            own = [torch.zeros_like(total) for total in sums]
            super().add(batch[index], math.inf, own)
            for total, gradient in zip(sums, own, strict=True):
                total.add_(gradient * (max_grad_norm / gradient.norm()).clamp(max=1))


class Partial(OneByOne):
    """Leaves out the first parameter."""

    def add(self, batch, max_grad_norm, sums):
        super().add(batch, max_grad_norm, [torch.zeros_like(sums[0]), *sums[1:]])


class Idle(OneByOne):
    """Adds nothing."""

    def add(self, batch, max_grad_norm, sums):
        pass


class NotFinite(OneByOne):
    """Adds NaN."""

    def add(self, batch, max_grad_norm, sums):
        sums[0].fill_(math.nan)


class Raising(OneByOne):
    """Raises an error after it has added the gradients."""

    def add(self, batch, max_grad_norm, sums):
        super().add(batch, max_grad_norm, sums)
        raise RuntimeError("out of order")


class Refusing(OneByOne):
    """Supports no model."""

    def __init__(self, model):
        raise TypeError("not supported")


WRONG = [Unclipped, ClippedBatch, PerLayer, Partial, Idle, NotFinite, Raising, Refusing]


class WithOwnScale(TextClassifier):
    """A model with a parameter outside any layer, which no fast engine supports."""

    family = "test"

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        x = self.embedding(ids) * real_tokens(ids, lengths)[..., None] * self.scale
        return self.head(x.sum(1))


class WithGroupNorm(WithOwnScale):
    """A model with a layer that only Opacus' hooks support."""

    def __init__(self):
        super().__init__()
        del self.scale
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        x = (self.embedding(ids) * real_tokens(ids, lengths)[..., None]).sum(1)
        return self.head(self.norm(x))


def scoped(model, shared):
    """Make the parameters of the scope `shared` require gradients."""
    local = "personal" if shared == "lora-a" else "frozen"
    return select(model, selected(model, shared, local).trainable)


def state_of(model):
    """The number of hooks per module, and the flag `requires_grad` per parameter."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = {name: [len(getattr(m, kind)) for kind in kinds] for name, m in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return hooks, flags


@pytest.mark.parametrize("shared", [*SCOPES, r"embedding\..*|.*feedforward.*"])
def test_book_keeping_is_selected_for_the_built_in_model(shared):
    model = scoped(classifier("tiny", shared=shared), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


@pytest.mark.parametrize("shared", SCOPES)
def test_book_keeping_is_selected_for_every_family_except_deberta(encoder_folder, family, shared):
    """DeBERTa projects tokens and relative positions with the same layers."""
    model = scoped(classifier(encoder_folder, shared=shared), shared)
    impossible = family == "deberta-v2" and shared != "head"
    assert engine_for(model, MAX_LENGTH) is (OneByOne if impossible else BookKeeping)


@pytest.mark.parametrize("max_length", [1, 2, 3, 4, 7])
def test_short_texts_suffice_for_the_selection(max_length):
    model = scoped(classifier("tiny"), "all")
    assert engine_for(model, max_length) is BookKeeping


def test_opacus_hooks_are_selected_for_a_layer_that_book_keeping_does_not_support():
    assert engine_for(WithGroupNorm(), MAX_LENGTH) is OpacusHooks


def test_a_model_that_no_fast_engine_supports_gets_a_warning(caplog):
    assert engine_for(WithOwnScale(), MAX_LENGTH) is OneByOne
    assert "one example at a time" in caplog.text


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shared", ["all", "attention", "lora-b"])
def test_a_wrong_engine_is_not_selected(monkeypatch, shared, wrong):
    monkeypatch.setattr(selection, "ENGINES", (wrong, BookKeeping))
    model = scoped(classifier("tiny", shared=shared), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


@pytest.mark.parametrize("shared", [r"head\.bias", r".*norm.*", r".*query\.bias"])
def test_the_comparison_clips_small_gradients_too(monkeypatch, shared):
    monkeypatch.setattr(selection, "ENGINES", (Unclipped, BookKeeping))
    model = scoped(classifier("tiny"), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


def test_batch_normalisation_is_refused(refused):
    model = WithGroupNorm()
    model.norm = nn.BatchNorm1d(6)
    with refused("batch normalisation"):
        engine_for(model, MAX_LENGTH)


def test_the_first_exact_engine_is_selected(monkeypatch):
    monkeypatch.setattr(selection, "ENGINES", (OpacusHooks, BookKeeping))
    assert engine_for(scoped(classifier("tiny"), "head"), MAX_LENGTH) is OpacusHooks


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "make_model", [lambda: classifier("tiny", dropout=0.3), WithOwnScale, WithGroupNorm]
)
@pytest.mark.parametrize("wrong", [(), *((engine,) for engine in WRONG)])
def test_the_selection_has_no_side_effects(monkeypatch, make_model, wrong):
    monkeypatch.setattr(selection, "ENGINES", (*wrong, BookKeeping, OpacusHooks))
    model = make_model()
    next(model.parameters()).requires_grad_(False)
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    before, values = state_of(model), bits(model)
    training = [module.training for module in model.modules()]
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    engine_for(model, MAX_LENGTH)
    assert torch.equal(torch.get_rng_state(), generator)
    assert state_of(model) == before
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(values[name], value) for name, value in bits(model).items())
    assert values.keys() == bits(model).keys()


def test_the_selection_for_deberta_leaves_no_gradients(pretrained_folder):
    model = scoped(classifier(pretrained_folder("deberta-v2"), shared="lora"), "lora")
    before = state_of(model)
    engine_for(model, MAX_LENGTH)
    assert state_of(model) == before
    assert all(parameter.grad is None for parameter in trained_parameters(model))
