"""The parameters that a scope selects: in the built-in, in pretrained and in unknown models."""

import time

import pytest
import torch
from helpers.classifiers import (
    ADAPTER_SCOPES,
    bits,
    classifier,
    config_of,
    differing,
    encoded,
    head_names,
    selected,
)
from helpers.pretrained_folders import FAMILIES_TESTED, LAYERS, UNKNOWN_FAMILIES
from torch import nn

from fedattn_app import simulate
from fedattn_app.config import ModelConfig, TrainingConfig, as_toml
from fedattn_app.data.examples import Examples
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import view_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

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
def model():
    return build_model(CONFIG, 3, 1)


@pytest.fixture(scope="module")
def names(model):
    return [name for name, _ in model.named_parameters()]


# The built-in model


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
def test_a_scope_selects_whole_names(model, shared, expected):
    assert selected(model, shared).shared == expected


@pytest.mark.parametrize("shared", ["all", ".*"])
def test_all_selects_every_name(model, names, shared):
    assert selected(model, shared).shared == set(names)


@pytest.mark.parametrize("shared", ["attn", "query", "head.weigh", "ead.weight", ""])
def test_a_regex_that_matches_no_whole_name_is_refused_with_the_names(
    refused, model, names, shared
):
    with refused(f"shared = {as_toml(shared)}", "attention+head", *names):
        selected(model, shared)


@pytest.mark.parametrize(
    "shared",
    [
        *("(", "[a-", "*", "x{9999}", "x{2,1}", "(((x{100}){100}){100}){100}"),
        *("(?=head).*", "(?!head).*", "(?<=h)ead", "(?<!h)ead", r"(h)ead\1", "(?P=a)", "(?>a)"),
        *(
            "(?(1)a|b)",
            "(" * 10_000,
            r"(?i)\pL" * 1400,
            "x{900}" * 1000,
            "(?:.{0,1000}){1000}",
            "[é-a]",
        ),
    ],
    ids=lambda shared: shared[:20],
)
def test_an_invalid_regex_is_refused(refused, capfd, model, shared):
    with refused(f"shared = {as_toml(shared)}", "attention+head", "regex", "no lookaround"):
        selected(model, shared)
    assert capfd.readouterr() == ("", "")  # RE2 would print the reason too


# A backtracking engine takes longer than anybody waits, on one of the names or on a longer one.
HOSTILE = (
    *(r"(\w+\.?)+!", r"(\w*)*!", r"(.+)+\d!", r"(\w|\w\w|\.)+!", r"([a-z_]+|[a-z]+|\.)*!"),
    *(r"(.*)*(.*)*!", r"(.*?,?){200}!", r"((a*)*|.)*!", r"(\w?){60}\w{60}(.*)*!"),
    *("(.*.*)*" * 200 + "!", "(.*a?){900}!", "(x|" * 900 + ".*" + ")*" * 900 + "!"),
    *("|" * 9_999 + "!", "(.{0,30}){0,30}!"),
)


@pytest.mark.parametrize("shared", HOSTILE, ids=lambda shared: shared[:20])
def test_a_regex_that_would_backtrack_for_ever_is_answered_at_once(refused, names, shared):
    began = time.perf_counter()
    with refused(f"shared = {as_toml(shared)}", "matches no parameter"):
        scope_of(shared, "frozen", BUILT_IN, names)
    assert time.perf_counter() - began < 1


def test_every_parameter_of_a_deep_model_may_be_named(names):
    names = [f"bert.encoder.layer.{k}.{name}" for k in range(4) for name in names]
    shared = "|".join(names)
    assert scope_of(shared, "frozen", BUILT_IN, names).shared == set(names)


def test_a_regex_longer_than_any_that_somebody_writes_is_refused(refused, names):
    with refused('shared = "xxx', "a regex of at most 10000 characters"):
        scope_of("x" * 10_001, "frozen", BUILT_IN, names)


@pytest.mark.parametrize("shared", [r"(\w+\.?)+!", "(?=x)x", "(" * 50_000])
def test_a_run_with_such_a_regex_ends_in_one_line(refused, tiny, shared):
    began = time.perf_counter()
    with refused("shared = "):
        simulate({**tiny, "shared": shared}, 2, workers=1, quiet=True)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("local", ["frozen", "personal"])
@pytest.mark.parametrize("shared", ["attention", "head", "attention+head", r"final_norm\..*"])
def test_every_name_is_shared_personal_or_frozen(model, names, shared, local):
    scope = selected(model, shared, local)
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
def test_adapted_weights_are_frozen_and_the_head_travels(shared, local, travels, personal):
    scope = scope_of(shared, local, BUILT_IN, ADAPTED)
    assert scope.shared == HEAD | {f"a.lora_{part}.default.weight" for part in travels}
    assert scope.personal == {f"a.lora_{part}.default.weight" for part in personal}
    assert "a.base_layer.weight" in scope.frozen


# Pretrained models


def attention_names(model):
    """Weights and biases of every linear layer inside a module whose class is an attention."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    attentions = [
        name for name, module in model.named_modules() if "Attention" in type(module).__name__
    ]
    inside = {name for name in linear if any(name.startswith(f"{a}.") for a in attentions)}
    return {f"{name}.{kind}" for name in inside for kind in ("weight", "bias")}


def test_attention_selects_the_four_projections_of_every_layer(encoder_folder):
    model = classifier(encoder_folder)
    attention = selected(model, "attention").shared
    assert len(attention) == LAYERS * 4 * 2
    assert attention == attention_names(model)


def test_head_selects_the_parameters_after_the_encoder(encoder_folder):
    model = classifier(encoder_folder)
    assert selected(model, "head").shared == head_names(model)


def test_attention_and_head_are_disjoint_and_travel_together(encoder_folder):
    model = classifier(encoder_folder)
    attention, head, both = (
        selected(model, shared).shared for shared in ("attention", "head", "attention+head")
    )
    assert not attention & head
    assert both == attention | head
    assert both < selected(model, "all").shared == set(view_arrays(model))


@pytest.mark.parametrize("shared", ["attention+head", "head", "all", *ADAPTER_SCOPES])
def test_training_changes_only_the_trainable_parameters(encoder_folder, shared):
    model = classifier(encoder_folder, shared=shared)
    local = config_of(encoder_folder, shared=shared).federation.local
    trainable = selected(model, shared, local).trainable
    before = bits(model)
    examples = Examples(encoded(encoder_folder), torch.tensor([0, 1, 2]))
    train(model, trainable, examples, TrainingConfig(learning_rate=0.1, local_epochs=2), seed=1)
    assert differing(before, bits(model)) <= trainable
    unused = {name for name in trainable if "word_emb" in name or "position" in name}
    assert trainable - differing(before, bits(model)) <= unused


# Families without a row in `FAMILIES`


def test_adapters_for_an_unknown_family_are_refused_with_a_list_of_families(refused):
    with refused('shared = "lora"', "'albert'", "bert, deberta-v2, distilbert"):
        scope_of("lora", "frozen", "albert", ["x.weight"])


@pytest.mark.parametrize("shared", ["attention", "attention+head", "head"])
def test_a_named_scope_of_an_unknown_family_is_refused_with_the_parameter_names(refused, shared):
    with refused(f"shared = {as_toml(shared)}", "'albert'", "regex", "x.weight"):
        scope_of(shared, "frozen", "albert", ["x.weight", "y.weight"])


def test_all_and_a_regex_work_for_an_unknown_family():
    assert scope_of("all", "frozen", "albert", ["x", "y"]).shared == {"x", "y"}
    assert scope_of("x", "frozen", "albert", ["x", "y"]).frozen == {"y"}


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_an_unknown_model_supports_all_and_a_regex_only(encoder_folder, family, refused):
    model = classifier(encoder_folder)
    names = set(view_arrays(model))
    assert selected(model, "all").shared == names
    head = {name for name in names if name.startswith("classifier.")}
    assert selected(model, r"classifier\..*").shared == head != set()
    for shared in ("attention", "attention+head", "head"):
        with refused(f"shared = {as_toml(shared)}", repr(family), "regex", *names):
            selected(model, shared)
    for shared in ADAPTER_SCOPES:
        with refused(f"shared = {as_toml(shared)}", repr(family), *FAMILIES_TESTED):
            classifier(encoder_folder, shared=shared)
