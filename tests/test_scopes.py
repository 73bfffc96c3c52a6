"""Scopes select names: of the built-in model here, of pretrained ones in test_pretrained.py."""

import pytest

from fedattn_app.config import ModelConfig
from fedattn_app.model import build_model
from fedattn_app.scopes import BUILT_IN, scope_of

CONFIG = ModelConfig(layers=2, width=8, heads=2, feedforward=12, vocabulary=10, max_length=4)
HEAD = {"head.weight", "head.bias"}
ATTENTION = {
    f"layers.{layer}.attention.{part}.{kind}"
    for layer in (0, 1)
    for part in ("query", "key", "value", "output")
    for kind in ("weight", "bias")
}
ADAPTED = ["a.lora_A.default.weight", "a.lora_B.default.weight", "a.base_layer.weight", *HEAD]


@pytest.fixture(scope="module")
def names():
    return [name for name, _ in build_model(CONFIG, 3, 1).named_parameters()]


def selected(shared, names):
    return scope_of(shared, "frozen", BUILT_IN, names).shared


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        ("attention", ATTENTION),
        ("head", HEAD),
        ("attention+head", ATTENTION | HEAD),
        ("head.bias", {"head.bias"}),
        (r".*\.1\.attention\.query\.weight", {"layers.1.attention.query.weight"}),
        (r"head\..*|final_norm\.bias", HEAD | {"final_norm.bias"}),
    ],
)
def test_a_scope_selects_whole_names(names, shared, expected):
    assert selected(shared, names) == expected


@pytest.mark.parametrize("shared", ["all", ".*"])
def test_all_is_every_name(names, shared):
    assert selected(shared, names) == set(names)


@pytest.mark.parametrize("shared", ["attn", "query", "head.weigh", "ead.weight", ""])
def test_a_scope_that_matches_no_whole_name_is_refused_with_the_names(refused, names, shared):
    with refused(f"shared = {shared!r}", "attention+head", *names):
        selected(shared, names)


@pytest.mark.parametrize("shared", ["(", "[a-", "*", "x{99999999999999999999}"])
def test_a_scope_that_is_no_regex_is_refused(refused, names, shared):
    with refused(f"shared = {shared!r}", "attention+head", "regex"):
        selected(shared, names)


@pytest.mark.parametrize("local", ["frozen", "personal"])
@pytest.mark.parametrize("shared", ["attention", "head", "attention+head", r"final_norm\..*"])
def test_every_name_is_in_exactly_one_part(names, shared, local):
    scope = scope_of(shared, local, BUILT_IN, names)
    parts = (scope.shared, scope.personal, scope.frozen)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert scope.trainable == scope.shared | scope.personal
    assert not (scope.frozen if local == "personal" else scope.personal)


@pytest.mark.parametrize(
    ("shared", "local", "travels", "personal"),
    [
        ("lora", "frozen", "AB", ""),
        ("lora-b", "frozen", "B", ""),
        ("lora-a", "personal", "A", "B"),
    ],
)
def test_what_adapters_adapt_is_frozen_and_the_head_travels(shared, local, travels, personal):
    scope = scope_of(shared, local, BUILT_IN, ADAPTED)
    assert scope.shared == HEAD | {f"a.lora_{part}.default.weight" for part in travels}
    assert scope.personal == {f"a.lora_{part}.default.weight" for part in personal}
    assert "a.base_layer.weight" in scope.frozen


def test_adapters_for_an_unknown_family_are_refused_with_the_known_ones(refused):
    with refused("shared = 'lora'", "'albert'", "bert, deberta-v2, distilbert"):
        scope_of("lora", "frozen", "albert", ["x.weight"])


@pytest.mark.parametrize("shared", ["attention", "attention+head", "head"])
def test_an_unknown_family_asks_for_a_regex_and_shows_the_names(refused, shared):
    with refused(f"shared = {shared!r}", "'albert'", "regex", "x.weight"):
        scope_of(shared, "frozen", "albert", ["x.weight", "y.weight"])


def test_an_unknown_family_takes_all_and_a_regex():
    assert scope_of("all", "frozen", "albert", ["x", "y"]).shared == {"x", "y"}
    assert scope_of("x", "frozen", "albert", ["x", "y"]).frozen == {"y"}
