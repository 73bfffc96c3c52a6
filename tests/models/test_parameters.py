"""Reading and writing parameters keeps every bit, and fingerprints detect every change."""

import numpy as np
import pytest
import torch
from torch import nn

from fedattn_app.config import ModelConfig
from fedattn_app.models.parameters import fingerprint, get_arrays, set_arrays, view_arrays, without
from fedattn_app.models.transformer import build_model

CONFIG = ModelConfig(layers=2, width=8, heads=2, feedforward=12, vocabulary=10, max_length=4)
HEAD = {"head.weight", "head.bias"}


@pytest.fixture
def model():
    return build_model(CONFIG, num_labels=3, seed=1)


def test_without_removes_only_the_given_names(model):
    arrays = get_arrays(model)
    assert list(without(arrays, HEAD)) == [name for name in arrays if name not in HEAD]


def test_arrays_copy_one_model_to_another_bit_by_bit(model):
    other = build_model(CONFIG, num_labels=3, seed=2)
    arrays = get_arrays(model)
    assert fingerprint(get_arrays(other)) != fingerprint(arrays)
    set_arrays(other, arrays)
    assert fingerprint(get_arrays(other)) == fingerprint(arrays)


def test_set_arrays_changes_only_the_given_names(model):
    before = get_arrays(model)
    set_arrays(model, {"head.bias": np.float32([1, 2, 3])})
    after = get_arrays(model)
    assert after["head.bias"].tolist() == [1, 2, 3]
    assert fingerprint(without(after, ["head.bias"])) == fingerprint(without(before, ["head.bias"]))


def test_get_and_set_copy_the_arrays(model):
    given = np.float32([1, 2, 3])
    set_arrays(model, {"head.bias": given})
    given[:] = 7
    assert get_arrays(model)["head.bias"].tolist() == [1, 2, 3]
    get_arrays(model)["head.bias"][:] = 9
    assert get_arrays(model)["head.bias"].tolist() == [1, 2, 3]


def test_views_share_the_memory_of_the_model(model):
    views = view_arrays(model)
    set_arrays(model, {"head.bias": np.float32([1, 2, 3])})
    assert views["head.bias"].tolist() == [1, 2, 3]


def test_get_arrays_can_be_limited_to_some_names(model):
    assert list(get_arrays(model, HEAD)) == ["head.weight", "head.bias"]


class TiedAndBuffered(nn.Module):
    """A weight with two names, a persistent buffer and a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)


def test_a_tied_weight_has_one_name_and_persistent_buffers_are_arrays():
    model = TiedAndBuffered()
    arrays = get_arrays(model)
    assert list(arrays) == ["steps", "first.weight", "first.bias", "second.bias"]
    assert arrays["steps"].dtype == np.int64
    set_arrays(model, {"first.weight": np.ones((2, 2), np.float32), "steps": np.array(7)})
    assert model.second.weight.tolist() == [[1, 1], [1, 1]]
    assert model.steps.item() == 7


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"head.bias": np.zeros(4, np.float32)}, "'head.bias' has shape (4,)"),
        ({"head.bias": np.zeros((3, 1), np.float32)}, "'head.bias' has shape (3, 1)"),
        ({"head.bais": np.zeros(3, np.float32)}, "no parameter 'head.bais'"),
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
    ids=[
        "value",
        "shape",
        "dtype",
        "sign of zero",
        "no dimension",
        "name",
        "one array less",
        "one array more",
    ],
)
def test_the_fingerprint_detects_every_change(changed):
    assert fingerprint(changed) != fingerprint(ARRAYS)


def test_the_fingerprint_depends_on_neither_order_nor_memory_layout():
    same = {"b": ARRAYS["b"], "a": np.asfortranarray(ARRAYS["a"])}
    assert fingerprint(same) == fingerprint(ARRAYS)
