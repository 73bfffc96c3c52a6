"""The tokenizer that comes with a pretrained model, against transformers' own."""

import shutil
from contextlib import suppress

import numpy as np
import pytest
from helpers.classifiers import classifier, config_of, encoded, tokenizer_of
from helpers.pretrained_folders import (
    POSITIONS,
    TEXTS,
    UNKNOWN_FAMILIES,
    change_json,
    make_tokenizer,
)
from transformers import AutoTokenizer

from fedattn_app.errors import UserError
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.pretrained import PretrainedTokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ODD = ["", " ", "\ud800", "x\udfffy", "\x00", "心電図", "[SEP] pain [PAD] <s> </s>", "😀"]


@pytest.mark.parametrize("max_length", [3, 7, 32])
def test_ids_are_those_of_transformers_own_tokenizer(family, encoder_folder, max_length):
    texts = [*TEXTS, *(text.encode("utf-8", "replace").decode() for text in ODD)]
    their = AutoTokenizer.from_pretrained(encoder_folder)
    rows = their(texts, truncation=True, max_length=max_length)["input_ids"]
    ids, lengths = tokenizer_of(encoder_folder, max_length=max_length).encode([*TEXTS, *ODD])
    assert ids.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == list(map(len, rows))
    assert ids.shape == (len(rows), max(map(len, rows)))
    padding = 1 if "roberta" in family else 0
    for row, expected in zip(ids.tolist(), rows, strict=True):
        assert row == expected + [padding] * (len(row) - len(expected))


def test_padding_is_to_the_longest_of_the_texts_and_not_beyond(encoder_folder):
    ids, lengths = tokenizer_of(encoder_folder).encode(["pain", "chest pain"])
    assert ids.shape == (2, 4)
    assert lengths.tolist() == [3, 4]


@pytest.mark.parametrize("text", ["denies chest pain", "", "\ud800", "on " * 99])
def test_tokens_are_what_the_ids_stand_for(encoder_folder, text):
    tokenizer = tokenizer_of(encoder_folder, max_length=9)
    ids, lengths = tokenizer.encode([text])
    tokens = tokenizer.tokens(text)
    assert tokens == AutoTokenizer.from_pretrained(encoder_folder).convert_ids_to_tokens(ids[0])
    assert len(tokens) == lengths[0] <= 9


def test_a_text_without_a_token_is_one_of_padding(folder_copy):
    make_tokenizer("bert", ends=False).save_pretrained(folder_copy)
    tokenizer = load_tokenizer(config_of(folder_copy, max_length=1).model)
    ids, lengths = tokenizer.encode(["", "denies chest pain"])
    assert ids.tolist() == [[0], [tokenizer.backend.token_to_id("denies")]]
    assert lengths.tolist() == [1, 1]


def test_no_texts_give_no_rows(encoder_folder):
    assert [len(array) for array in tokenizer_of(encoder_folder).encode([])] == [0, 0]


def test_padding_and_truncation_that_a_file_asks_for_are_not_used(folder_copy):
    expected = tokenizer_of(folder_copy).encode(TEXTS)
    published = folder_copy.with_name("published")
    shutil.copytree(folder_copy, published)
    tokenizer = AutoTokenizer.from_pretrained(folder_copy)
    tokenizer.backend_tokenizer.enable_padding(length=20, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.save(str(published / "tokenizer.json"))
    for result, array in zip(tokenizer_of(published).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(result, array)


def test_a_tokenizer_is_the_same_from_its_description(encoder_folder):
    tokenizer = tokenizer_of(encoder_folder)
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    for one, other in zip(
        tokenizer.encode([*TEXTS, *ODD]), again.encode([*TEXTS, *ODD]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert again.to_json() == tokenizer.to_json()


def test_a_tokenizer_that_keeps_the_end_of_a_text_does_so_here(folder_copy):
    change_json(folder_copy, "tokenizer_config.json", truncation_side="left")
    text = "denies chest pain but short of breath"
    expected = AutoTokenizer.from_pretrained(folder_copy)(text, truncation=True, max_length=5)[
        "input_ids"
    ]
    tokenizer = tokenizer_of(folder_copy, max_length=5)
    assert tokenizer.encode([text])[0].tolist() == [expected]
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    assert again.encode([text])[0].tolist() == [expected]


def test_max_length_is_what_the_model_has_positions_for(family, encoder_folder, refused):
    longest = POSITIONS - 2 if "roberta" in family else POSITIONS
    model = classifier(encoder_folder)
    batch = encoded(encoder_folder, ["pain " * 99], max_length=longest)
    assert batch.lengths.tolist() == [longest]
    assert model(batch).isfinite().all()
    for length in (2, longest + 1):
        with refused(f"max-length = {length}", f"must be 3 to {longest}", str(encoder_folder)):
            load_tokenizer(config_of(encoder_folder, max_length=length).model)
    if family != "deberta-v2":  # its positions are relative: one more would do
        with pytest.raises((IndexError, RuntimeError)):
            model(TextBatch.of(batch.ids[:, [0, *range(longest)]], batch.lengths + 1))


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_no_max_length_that_is_accepted_is_too_long_for_an_unknown_family(encoder_folder, family):
    accepted = []
    for length in (POSITIONS - 2, POSITIONS - 1, POSITIONS):
        with suppress(UserError):
            accepted.append(encoded(encoder_folder, ["pain " * 99], max_length=length))
    assert accepted
    for batch in accepted:
        assert classifier(encoder_folder)(batch).isfinite().all()


def test_more_tokens_than_the_model_knows_are_refused(folder_copy, refused):
    tokenizer = AutoTokenizer.from_pretrained(folder_copy)
    known = len(tokenizer)
    tokenizer.add_tokens(["dyspnoea", "tachycardia"])
    tokenizer.save_pretrained(folder_copy)
    with refused(str(folder_copy), f"{known + 2} tokens", f"the model {known}"):
        tokenizer_of(folder_copy)
