"""Scopes select names; arrays go in and out of a model bit by bit; fingerprints tell them apart."""

import numpy as np
import pytest

from fedattn_app.config import ModelConfig
from fedattn_app.model import build_model
from fedattn_app.parameters import fingerprint, get_arrays, set_arrays, shared_names, without

CONFIG = ModelConfig(layers=2, width=8, heads=2, feedforward=12, vocabulary=10, max_length=4)
HEAD = {"head.weight", "head.bias"}
ATTENTION = {
    f"layers.{layer}.attention.{part}.{kind}"
    for layer in (0, 1)
    for part in ("query", "key", "value", "output")
    for kind in ("weight", "bias")
}


@pytest.fixture
def model():
    return build_model(CONFIG, num_labels=3, seed=1)


@pytest.fixture(scope="module")
def names():
    return [name for name, _ in build_model(CONFIG, 3, 1).named_parameters()]


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
    assert shared_names(shared, names) == expected


@pytest.mark.parametrize("shared", ["all", ".*"])
def test_all_is_every_name(names, shared):
    assert shared_names(shared, names) == set(names)


@pytest.mark.parametrize("shared", ["attn", "query", "head.weigh", "ead.weight", ""])
def test_a_scope_that_matches_no_whole_name_is_refused_with_the_names(refused, names, shared):
    with refused(f"shared = {shared!r}", "attention+head", *names):
        shared_names(shared, names)


@pytest.mark.parametrize("shared", ["(", "[a-", "*", "x{99999999999999999999}"])
def test_a_scope_that_is_no_regex_is_refused(refused, names, shared):
    with refused(f"shared = {shared!r}", "attention+head", "regex"):
        shared_names(shared, names)


def test_without_leaves_the_others(model):
    arrays = get_arrays(model)
    assert list(without(arrays, ATTENTION | HEAD)) == [
        n for n in arrays if n not in ATTENTION | HEAD
    ]


def test_arrays_go_from_one_model_to_another_bit_by_bit(model):
    other = build_model(CONFIG, num_labels=3, seed=2)
    arrays = get_arrays(model)
    assert fingerprint(get_arrays(other)) != fingerprint(arrays)
    set_arrays(other, arrays)
    assert fingerprint(get_arrays(other)) == fingerprint(arrays)


def test_arrays_that_are_not_given_stay(model):
    before = get_arrays(model)
    set_arrays(model, {"head.bias": np.float32([1, 2, 3])})
    after = get_arrays(model)
    assert after["head.bias"].tolist() == [1, 2, 3]
    assert fingerprint(without(after, ["head.bias"])) == fingerprint(without(before, ["head.bias"]))


def test_arrays_are_copies_both_ways(model):
    given = np.float32([1, 2, 3])
    set_arrays(model, {"head.bias": given})
    given[:] = 7
    assert get_arrays(model)["head.bias"].tolist() == [1, 2, 3]
    get_arrays(model)["head.bias"][:] = 9
    assert get_arrays(model)["head.bias"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"head.bias": np.zeros(4, np.float32)}, "'head.bias' has shape (4,)"),
        ({"head.bias": np.zeros((3, 1), np.float32)}, "'head.bias' has shape (3, 1)"),
        ({"head.bais": np.zeros(3, np.float32)}, "'head.bais' is not in the model"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, arrays, part):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 – the text is checked below
        set_arrays(model, arrays)
    assert part in str(caught.value)


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    "changed",
    [
        {**ARRAYS, "a": np.nextafter(ARRAYS["a"], np.float32(9))},
        {**ARRAYS, "a": ARRAYS["a"].reshape(3, 2)},
        {**ARRAYS, "a": ARRAYS["a"].view(np.int32)},
        {**ARRAYS, "b": -ARRAYS["b"]},
        {**ARRAYS, "b": np.zeros((), np.float32)},
        {"A": ARRAYS["a"], "b": ARRAYS["b"]},
        {"a": ARRAYS["a"]},
        {**ARRAYS, "c": np.zeros(0, np.float32)},
    ],
    ids=["value", "shape", "dtype", "sign of zero", "no dimension", "name", "one less", "one more"],
)
def test_the_fingerprint_tells_any_change(changed):
    assert fingerprint(changed) != fingerprint(ARRAYS)


def test_the_fingerprint_depends_on_neither_order_nor_memory_layout():
    same = {"b": ARRAYS["b"], "a": np.asfortranarray(ARRAYS["a"])}
    assert fingerprint(same) == fingerprint(ARRAYS)
