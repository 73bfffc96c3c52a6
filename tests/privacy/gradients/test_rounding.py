"""Rounding does not let one example add more than C, whatever terms a server makes it have."""

from itertools import product

import pytest
import torch
from helpers.classifiers import classifier
from helpers.per_example import TOKENS, flat, random_examples, scoped
from helpers.rounding import ATTACKS, DIRECTION, LAYERS, attacked, difference, plain

from fedattn_app.privacy.gradients import layers
from fedattn_app.privacy.gradients.book_keeping import BookKeeping
from fedattn_app.privacy.gradients.engine import (
    OneByOne,
    OpacusHooks,
    clipping_factors,
    squared_norms,
)
from fedattn_app.privacy.gradients.selection import clipped_gradient_sum

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

SIZES = (1.0, 1e5, 1e8)  # of the largest term; C is 1
ALLOWED = 1.01
# Weights whose gradients are not formed are wider than four times the length of a text.
FACTOR_LAYERS = ["linear", "linear by its input"]


def texts_of(attack, length, size, num_examples, others):
    terms = ATTACKS[attack](length) * size
    other = {"the same": terms, "opposite": -terms, "plain": plain(length)}[others]
    return torch.stack([terms, *[other] * (num_examples - 1)])


def largest_difference(engine, layer, length, batches, sizes=SIZES):
    """The largest change of the sum by one example, with what gave it."""
    cases = product(ATTACKS, sizes, batches, ("opposite", "plain"))
    return max(
        (float(difference(engine, layer, texts_of(attack, length, *case), 0).norm()), attack, case)
        for attack, *case in cases
        if case[1] > 1 or case[2] == "plain"
    )


@pytest.mark.parametrize("length", [64, 256, 512, 1365, 2730, 8192])
@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks, OneByOne])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_example_changes_the_sum_by_at_most_the_clipping_norm(layer, engine, length):
    batches = [1, 2, 16] if length == 64 else [2]
    sizes = SIZES if engine is BookKeeping else (1e8,)
    assert largest_difference(engine, layer, length, batches, sizes)[0] <= ALLOWED


@pytest.mark.parametrize("length", [64, 256, 512, 1365])
@pytest.mark.parametrize("layer", FACTOR_LAYERS)
def test_it_does_so_where_gradients_are_not_formed(monkeypatch, layer, length):
    monkeypatch.setattr(layers, "MAX_GRADIENT_SIZE_RATIO", 0)
    batches = [1, 2, 16, 32] if length == 64 else [2]
    sizes = SIZES if length < 1000 else (1e8,)
    assert largest_difference(BookKeeping, layer, length, batches, sizes)[0] <= ALLOWED


@pytest.mark.parametrize("size", 2.0 ** torch.arange(0, 24, 2))
def test_no_size_of_the_terms_escapes_the_check(monkeypatch, size):
    """The server may choose terms whose rounding is just small enough to be allowed."""
    monkeypatch.setattr(layers, "MAX_GRADIENT_SIZE_RATIO", 0)
    for attack in ATTACKS:
        texts = texts_of(attack, 256, size, 4, "the same")
        assert difference(BookKeeping, "linear", texts, 0).norm() <= ALLOWED, attack


@pytest.mark.parametrize("index", [0, 20, 39])
def test_an_example_of_one_pass_does_not_change_the_next(monkeypatch, index):
    """40 examples make two passes, and each example after `index` moves by one place."""
    monkeypatch.setattr(layers, "MAX_GRADIENT_SIZE_RATIO", 0)
    texts = texts_of("pair around all", 64, 1e8, 40, "opposite")
    assert difference(BookKeeping, "linear", texts, index).norm() <= ALLOWED


@pytest.mark.parametrize("length", [64, 500])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("layer", [*FACTOR_LAYERS, "embedding"])
def test_the_direction_is_that_of_the_exact_gradient(monkeypatch, layer, attack, length):
    """The sum is a multiple of the gradient in float64, and never a longer one than C allows."""
    monkeypatch.setattr(layers, "MAX_GRADIENT_SIZE_RATIO", 0)
    direction = DIRECTION.double()
    if layer != "embedding":
        direction = torch.outer(direction, direction).flatten()
    for size in SIZES:
        texts = texts_of(attack, length, size, 1, "plain")
        gradient = texts.double().sum() * direction
        added = difference(BookKeeping, layer, texts, 0)
        if layer == "embedding":
            added = added.view(-1, len(direction))[1]
        factor = added @ direction / (direction @ direction) / texts.double().sum()
        assert (added - factor * gradient).norm() <= 0.01
        assert added.norm() <= 1.001
        assert (added - factor.clamp(0, 1) * gradient).norm() <= 0.01


@pytest.mark.parametrize("shared", ["all", "attention", "lora"])
def test_ordinary_texts_are_summed_in_float32(monkeypatch, shared):
    """Float64 takes twice the time."""

    def fail(*_):
        pytest.fail("this text was taken for an attack")

    monkeypatch.setattr(layers, "MAX_GRADIENT_SIZE_RATIO", 0)
    for method in ("exact_squares", "add_exactly"):
        monkeypatch.setattr(layers.Factors, method, fail)
    model = scoped(classifier("tiny", shared=shared, vocabulary=TOKENS, max_length=256), shared)
    sums = clipped_gradient_sum(BookKeeping, model, random_examples([256] * 32))
    assert flat(sums).any()


@pytest.mark.parametrize("shape", [(3000, 3000), (1, 9_000_000), (9_000_000,), (3000, 1000, 3)])
def test_many_small_squares_count_beside_a_large_one(shape):
    gradient = torch.full(shape, 2.0**-12.6)
    gradient.view(-1)[0] = 1.0
    exact = gradient.double().norm().square()
    assert exact > 1.2
    both = squared_norms(torch.stack([gradient, 0 * gradient]))
    torch.testing.assert_close(both, torch.tensor([exact, 0.0]).double(), rtol=1e-3, atol=0)


def test_squared_norms_of_scalars():
    assert squared_norms(torch.tensor([2.0, -3.0])).tolist() == [4, 9]


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks, OneByOne])
@pytest.mark.parametrize("max_grad_norm", [1e-6, 1e-7, 1e-8])
def test_a_factor_that_float32_cannot_hold_is_not_rounded_up(engine, max_grad_norm):
    """The smallest number of float32 is 1.4e-45, and half of it would be rounded to it."""
    texts = torch.full((1, 8), 1e37)
    model, examples = attacked("linear bias", texts)
    sums = flat(clipped_gradient_sum(engine, model, examples, max_grad_norm)).double()
    assert sums.norm() <= max_grad_norm * (1 + 1e-4)


def test_factors_below_the_normal_numbers_of_float32_are_zero():
    norms = torch.tensor([1e38, 1e45, 1e300], dtype=torch.float64)
    assert clipping_factors(norms, 1e-6).tolist() == [0, 0, 0]
    assert clipping_factors(norms, 100.0)[0] == pytest.approx(1e-36)
