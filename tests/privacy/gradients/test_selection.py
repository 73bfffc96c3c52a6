"""Which engine is chosen for a model, and that choosing leaves no trace."""

import math

import pytest
import torch
from helpers.classifiers import classifier, selected
from helpers.per_example import select
from torch import nn

from fedattn_app.models.classifier import TextClassifier, real_tokens
from fedattn_app.privacy.gradients import selection as engines
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import OpacusHooks, OneByOne, trained
from fedattn_app.privacy.gradients.selection import engine_for

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

SCOPES = ["all", "attention", "attention+head", "head", "lora", "lora-a", "lora-b"]
MAX_LENGTH = 32


class Forgetful(OneByOne):
    """Does not clip."""

    def add(self, batch, max_grad_norm, sums):
        super().add(batch, math.inf, sums)


class Mixing(OneByOne):
    """Clips the sum of all examples, as if they were one."""

    def add(self, batch, max_grad_norm, sums):
        own = [torch.zeros_like(total) for total in sums]
        super().add(batch, math.inf, own)
        norm = torch.cat([total.flatten() for total in own]).norm()
        for total, gradient in zip(sums, own, strict=True):
            total.add_(gradient * (max_grad_norm / norm).clamp(max=1))


class PerLayer(OneByOne):
    """Clips each parameter by itself."""

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


class Absent(OneByOne):
    """Adds nothing."""

    def add(self, batch, max_grad_norm, sums):
        pass


class NotFinite(OneByOne):
    """Adds NaN."""

    def add(self, batch, max_grad_norm, sums):
        sums[0].fill_(math.nan)


class Raising(OneByOne):
    """Breaks down on the way."""

    def add(self, batch, max_grad_norm, sums):
        super().add(batch, max_grad_norm, sums)
        raise RuntimeError("out of order")


class Refusing(OneByOne):
    """Knows no model."""

    def __init__(self, model):
        raise TypeError("not a layer that is known")


WRONG = [Forgetful, Mixing, PerLayer, Partial, Absent, NotFinite, Raising, Refusing]


class Odd(TextClassifier):
    """A model that scales by a parameter of its own, which neither engine knows."""

    family = "odd"

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        x = self.embedding(ids) * real_tokens(ids, lengths)[..., None] * self.scale
        return self.head(x.sum(1))


class Normed(Odd):
    """A model with a layer that only the hooks know."""

    def __init__(self):
        super().__init__()
        del self.scale
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, batch):
        ids, lengths = batch.ids, batch.lengths
        x = (self.embedding(ids) * real_tokens(ids, lengths)[..., None]).sum(1)
        return self.head(self.norm(x))


def scoped(model, shared):
    """Let those parameters require gradients that `shared` trains."""
    local = "personal" if shared == "lora-a" else "frozen"
    return select(model, selected(model, shared, local).trainable)


def state_of(model):
    """What must stay as it was beside the values: hooks by module, and the parameters' flags."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = {name: [len(getattr(m, kind)) for kind in kinds] for name, m in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return hooks, flags


@pytest.mark.parametrize("shared", [*SCOPES, r"embedding\..*|.*feedforward.*"])
def test_the_built_in_model_has_its_books_kept(shared):
    model = scoped(classifier("tiny", shared=shared), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


@pytest.mark.parametrize("shared", SCOPES)
def test_every_family_has_its_books_kept_but_for_deberta(encoder_folder, family, shared):
    """DeBERTa projects tokens and relative positions by the same layers."""
    model = scoped(classifier(encoder_folder, shared=shared), shared)
    impossible = family == "deberta-v2" and shared != "head"
    assert engine_for(model, MAX_LENGTH) is (OneByOne if impossible else BookKeeping)


@pytest.mark.parametrize("max_length", [1, 2, 3, 4, 7])
def test_short_texts_are_enough(max_length):
    model = scoped(classifier("tiny"), "all")
    assert engine_for(model, max_length) is BookKeeping


def test_a_layer_that_only_the_hooks_know():
    assert engine_for(Normed(), MAX_LENGTH) is OpacusHooks


def test_a_model_that_no_engine_knows_is_told_to_be_slow(caplog):
    assert engine_for(Odd(), MAX_LENGTH) is OneByOne
    assert "one by one" in caplog.text


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shared", ["all", "attention", "lora-b"])
def test_a_wrong_engine_is_not_chosen(monkeypatch, shared, wrong):
    monkeypatch.setattr(engines, "ENGINES", (wrong, BookKeeping))
    model = scoped(classifier("tiny", shared=shared), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


@pytest.mark.parametrize("shared", [r"head\.bias", r".*norm.*", r".*query\.bias"])
def test_gradients_that_are_small_are_clipped_in_the_proof_too(monkeypatch, shared):
    monkeypatch.setattr(engines, "ENGINES", (Forgetful, BookKeeping))
    model = scoped(classifier("tiny"), shared)
    assert engine_for(model, MAX_LENGTH) is BookKeeping


def test_batch_normalisation_is_refused(refused):
    model = Normed()
    model.norm = nn.BatchNorm1d(6)
    with refused("batch normalisation"):
        engine_for(model, MAX_LENGTH)


def test_of_right_engines_the_first_is_chosen(monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", (OpacusHooks, BookKeeping))
    assert engine_for(scoped(classifier("tiny"), "head"), MAX_LENGTH) is OpacusHooks


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("made", [lambda: classifier("tiny", dropout=0.3), Odd, Normed])
@pytest.mark.parametrize("wrong", [(), *((engine,) for engine in WRONG)])
def test_choosing_leaves_no_trace(monkeypatch, made, wrong):
    monkeypatch.setattr(engines, "ENGINES", (*wrong, BookKeeping, OpacusHooks))
    model = made()
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


def test_choosing_for_deberta_leaves_no_gradients(pretrained_folder):
    model = scoped(classifier(pretrained_folder("deberta-v2"), shared="lora"), "lora")
    before = state_of(model)
    engine_for(model, MAX_LENGTH)
    assert state_of(model) == before
    assert all(parameter.grad is None for parameter in trained(model))
