"""The spellings of one label become one text, and nothing else does."""

from decimal import Decimal

import numpy as np
import pytest

from fedattn_app.label_text import normalise_label, sort_labels, without_surrogates

# Spellings that stand for one label, after the programs that write them.
SAME = {
    "1": [1, 1.0, "1", "1.0", "+1", " 1", np.int64(1), np.float32(1), Decimal("1.00")],
    "0": [0, 0.0, -0.0, "0", "0.0", "-0", "-0.0"],
    "-1": [-1, -1.0, "-1", "-1.0"],
    "10000000000000000000000": [1e22],
    "true": [True, np.True_, "true", "True", "TRUE"],
    "false": [False, "false", "False", " FALSE "],
    "neg": ["neg", " neg", "neg ", "neg\u00a0", "\ufeffneg", "n\u200beg", "\tneg\r"],
    "not good": ["not good", "not  good", "not\u00a0good", "not\u3000good", "not\tgood"],
    "café": ["café", "cafe\u0301"],
    "": [None, float("nan"), np.float64("nan"), Decimal("NaN"), "", " ", "\u00a0", "\ufeff"],
}
# Texts that stay as they are: they may be different labels.
UNCHANGED = ["007", "250.00", "250.10", "1e3", "0x10", "v1.0", "1.0.0", "Positive", "positive"]
UNCHANGED += ["nan", "None", "null", "١", "क्\u200dष", "😀", "0.5", "-0.5", "inf", "b'x'"]


@pytest.mark.parametrize(
    ("value", "label"), [(value, label) for label, values in SAME.items() for value in values]
)
def test_spellings_of_one_label_are_one_text(value, label):
    assert normalise_label(value) == label


@pytest.mark.parametrize("text", UNCHANGED)
def test_other_texts_stay_as_they_are(text):
    assert normalise_label(text) == text


@pytest.mark.parametrize("text", [*SAME, *UNCHANGED])
def test_normalising_twice_changes_nothing(text):
    assert normalise_label(normalise_label(text)) == normalise_label(text)


def test_half_a_character_becomes_a_question_mark():
    assert normalise_label("ok \ud83d") == "ok ?"
    assert without_surrogates("a\ud83db😀") == "a?b😀"


def test_numbers_come_first_and_in_the_order_of_their_values():
    labels = ["b", "10", "2", "a", "-1", "1", "2.5", "11", "0"]
    assert sort_labels(labels) == ["-1", "0", "1", "2", "2.5", "10", "11", "a", "b"]


def test_the_order_of_labels_does_not_depend_on_the_order_in_which_they_come():
    labels = ["7", "07", "007", "World", "world"]
    assert sort_labels(labels) == sort_labels(reversed(labels))
