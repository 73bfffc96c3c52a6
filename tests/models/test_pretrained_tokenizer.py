"""The tokenizer of a pretrained model, compared with the one in transformers."""

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

UNUSUAL = ["", " ", "\ud800", "x\udfffy", "\x00", "心電図", "[SEP] pain [PAD] <s> </s>", "😀"]


@pytest.mark.parametrize("max_length", [3, 7, 32])
def test_ids_equal_those_of_transformers(family, encoder_folder, max_length):
    texts = [*TEXTS, *(text.encode("utf-8", "replace").decode() for text in UNUSUAL)]
    original = AutoTokenizer.from_pretrained(encoder_folder)
    rows = original(texts, truncation=True, max_length=max_length)["input_ids"]
    ids, lengths = tokenizer_of(encoder_folder, max_length=max_length).encode([*TEXTS, *UNUSUAL])
    assert ids.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == list(map(len, rows))
    assert ids.shape == (len(rows), max(map(len, rows)))
    padding = 1 if "roberta" in family else 0
    for row, expected in zip(ids.tolist(), rows, strict=True):
        assert row == expected + [padding] * (len(row) - len(expected))


def test_texts_are_padded_to_the_longest_only(encoder_folder):
    ids, lengths = tokenizer_of(encoder_folder).encode(["pain", "chest pain"])
    assert ids.shape == (2, 4)
    assert lengths.tolist() == [3, 4]


@pytest.mark.parametrize("text", ["denies chest pain", "", "\ud800", "on " * 99])
def test_tokens_and_ids_correspond(encoder_folder, text):
    tokenizer = tokenizer_of(encoder_folder, max_length=9)
    ids, lengths = tokenizer.encode([text])
    tokens = tokenizer.tokens(text)
    assert tokens == AutoTokenizer.from_pretrained(encoder_folder).convert_ids_to_tokens(ids[0])
    assert len(tokens) == lengths[0] <= 9


def test_a_text_without_tokens_is_one_padding_token(folder_copy):
    make_tokenizer("bert", ends=False).save_pretrained(folder_copy)
    tokenizer = load_tokenizer(config_of(folder_copy, max_length=1).model)
    ids, lengths = tokenizer.encode(["", "denies chest pain"])
    assert ids.tolist() == [[0], [tokenizer.backend.token_to_id("denies")]]
    assert lengths.tolist() == [1, 1]


def test_no_texts_give_no_rows(encoder_folder):
    assert [len(array) for array in tokenizer_of(encoder_folder).encode([])] == [0, 0]


def test_the_padding_and_truncation_in_the_file_are_ignored(folder_copy):
    expected = tokenizer_of(folder_copy).encode(TEXTS)
    published = folder_copy.with_name("published")
    shutil.copytree(folder_copy, published)
    tokenizer = AutoTokenizer.from_pretrained(folder_copy)
    tokenizer.backend_tokenizer.enable_padding(length=20, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.save(str(published / "tokenizer.json"))
    for result, array in zip(tokenizer_of(published).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(result, array)


def test_a_tokenizer_survives_to_json_and_from_json(encoder_folder):
    tokenizer = tokenizer_of(encoder_folder)
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    for one, other in zip(
        tokenizer.encode([*TEXTS, *UNUSUAL]), again.encode([*TEXTS, *UNUSUAL]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert again.to_json() == tokenizer.to_json()


def test_the_truncation_side_of_the_file_is_used(folder_copy):
    change_json(folder_copy, "tokenizer_config.json", truncation_side="left")
    text = "denies chest pain but short of breath"
    expected = AutoTokenizer.from_pretrained(folder_copy)(text, truncation=True, max_length=5)[
        "input_ids"
    ]
    tokenizer = tokenizer_of(folder_copy, max_length=5)
    assert tokenizer.encode([text])[0].tolist() == [expected]
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    assert again.encode([text])[0].tolist() == [expected]


def test_max_length_is_limited_by_the_positions_of_the_model(family, encoder_folder, refused):
    longest = POSITIONS - 2 if "roberta" in family else POSITIONS
    model = classifier(encoder_folder)
    batch = encoded(encoder_folder, ["pain " * 99], max_length=longest)
    assert batch.lengths.tolist() == [longest]
    assert model(batch).isfinite().all()
    for length in (2, longest + 1):
        with refused(f"max-length = {length}", f"must be 3 to {longest}", str(encoder_folder)):
            load_tokenizer(config_of(encoder_folder, max_length=length).model)
    if family != "deberta-v2":  # relative positions have no limit
        with pytest.raises((IndexError, RuntimeError)):
            model(TextBatch.of(batch.ids[:, [0, *range(longest)]], batch.lengths + 1))


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_an_accepted_max_length_works_for_an_unknown_family(encoder_folder, family):
    accepted = []
    for length in (POSITIONS - 2, POSITIONS - 1, POSITIONS):
        with suppress(UserError):
            accepted.append(encoded(encoder_folder, ["pain " * 99], max_length=length))
    assert accepted
    for batch in accepted:
        assert classifier(encoder_folder)(batch).isfinite().all()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder_copy, refused):
    tokenizer = AutoTokenizer.from_pretrained(folder_copy)
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["dyspnoea", "tachycardia"])
    tokenizer.save_pretrained(folder_copy)
    with refused(str(folder_copy), f"{vocabulary + 2} tokens", f"the model {vocabulary}"):
        tokenizer_of(folder_copy)


def test_the_name_of_a_special_token_in_a_text_can_be_text(pretrained_folder):
    """Encoders with a decoder count the tokens that end a text."""
    backend = load_tokenizer(config_of(pretrained_folder("bert")).model).backend
    text = "chest [SEP] pain"
    assert backend.encode(text).tokens.count("[SEP]") == 2
    tokenizer = PretrainedTokenizer(backend, 0, specials_as_text=True)
    assert tokenizer.tokens(text).count("[SEP]") == 1
    assert PretrainedTokenizer.from_json(tokenizer.to_json()).tokens(text) == tokenizer.tokens(text)
