"""The scores of a text do not depend on its padding, or the model is refused."""

import json
import random

import numpy as np
import pytest
import torch
from helpers.classifiers import classifier, encoded, scores, tokenizer_of
from helpers.pretrained_folders import (
    FAMILIES_TESTED,
    HEADS,
    HIDDEN,
    LABELS,
    LAYERS,
    OTHER_SHAPES,
    TEXTS,
    UNKNOWN_FAMILIES,
    change_json,
    make_folder,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedattn_app.models.batch import TextBatch
from fedattn_app.models.pretrained import build_untrained
from fedattn_app.simulation import simulate

pytestmark = pytest.mark.usefixtures("one_thread")

HEADED = AutoModelForSequenceClassification
any_family = pytest.mark.parametrize(
    "family", [*FAMILIES_TESTED, *UNKNOWN_FAMILIES, *OTHER_SHAPES, "llama", "opt"]
)
# Models that need the padding at the end to be found, by the ways to leave it undefined.
WITHOUT_PADDING = {
    "none": {"pad_token_id": None},
    "minus one": {"pad_token_id": -1},
    "no special token at all": dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id")),
    "the end of a text": {"pad_token_id": 3},
    "another one than the tokenizer's": {"pad_token_id": 7},
}


@pytest.fixture
def folder(family, pretrained_folder):
    own = {"word_embed_proj_dim": HIDDEN, "ffn_dim": 64} if family == "opt" else {}
    return pretrained_folder(family, HEADED, LABELS, **own)


@any_family
def test_a_text_has_the_same_logits_alone_beside_others_and_padded_further(folder):
    model = classifier(folder)
    together = scores(model, folder)
    for number, text in enumerate(TEXTS):
        batch = encoded(folder, [text])
        torch.testing.assert_close(model(batch)[0], together[number], rtol=0, atol=1e-4)
        padded = batch.pad_independently(32).select(torch.tensor([0]))
        torch.testing.assert_close(model(padded)[0], together[number], rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@any_family
def test_logits_of_one_text_equal_those_of_transformers(folder):
    original = HEADED.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[1])["input_ids"]
    with torch.no_grad():
        expected = original(torch.tensor([ids])).logits[0]
    result = scores(classifier(folder), folder)[1]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("way", WITHOUT_PADDING)
def test_a_decoder_without_a_usable_padding_token_uses_another(tmp_path, family, way):
    folder = make_folder(family, tmp_path / "x", HEADED, LABELS)
    change_json(folder, **WITHOUT_PADDING[way])
    model = classifier(folder)
    together = scores(model, folder)
    alone = torch.cat([scores(model, folder, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    original = HEADED.from_pretrained(folder, pad_token_id=model.architecture["pad_token_id"])
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(together[:1], original.eval()(ids).logits, rtol=0, atol=1e-4)


def test_the_tokenizer_pads_with_the_id_that_the_model_expects(tmp_path):
    """So that training, which keeps only the embeddings of the ids in use, has that one too."""
    folder = make_folder("gpt2", tmp_path / "x", HEADED, LABELS)
    change_json(folder, pad_token_id=7)
    ids, lengths = tokenizer_of(folder).encode(TEXTS[:2])
    assert ids[0, lengths[0] :].tolist() == [7] * int(lengths[1] - lengths[0])
    change_json(folder, pad_token_id=None)
    ids, lengths = tokenizer_of(folder, max_length=31).encode(TEXTS[:2])
    assert set(ids[0, lengths[0] :].tolist()) == {3}  # the end of a text


@pytest.mark.parametrize("family", ["bert", "gpt2", "roberta", "xlnet"])
def test_the_ids_in_the_padding_do_not_matter(folder):
    model = classifier(folder)
    batch = encoded(folder)
    padding = torch.arange(batch.ids.shape[1]) >= batch.lengths[:, None]
    for token in (0, 9):
        other = TextBatch.of(batch.ids.masked_fill(padding, token), batch.lengths)
        torch.testing.assert_close(model(other), model(batch))


@pytest.mark.parametrize("family", ["xlnet", "gpt2", "bert"])
def test_attention_maps_do_not_depend_on_padding(folder):
    model = classifier(folder)
    batch = encoded(folder, TEXTS[:2])
    maps = model.attention_maps(batch)
    assert [layer.shape for layer in maps] == [(2, HEADS, *[batch.ids.shape[1]] * 2)] * LAYERS
    for number in range(2):
        alone = model.attention_maps(encoded(folder, [TEXTS[number]]))
        length = int(batch.lengths[number])
        for layer, expected in zip(maps, alone, strict=True):
            real = layer[number, :, :length]
            torch.testing.assert_close(real[..., :length], expected[0], rtol=0, atol=1e-4)
            assert not real[..., length:].round(decimals=6).any()


def test_the_side_of_the_padding_is_saved(pretrained_folder):
    folder = pretrained_folder("xlnet", HEADED, LABELS)
    model = classifier(folder)
    assert model.padding_side == "left"
    again = build_untrained(json.loads(json.dumps(model.architecture))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(scores(again, folder), scores(model, folder))
    older = {key: value for key, value in model.architecture.items() if key != "padding_side"}
    assert build_untrained(older).padding_side == "right"


def test_the_padding_token_of_a_decoder_does_not_reduce_its_positions(tmp_path, refused):
    folder = make_folder("gpt2", tmp_path / "x", n_positions=40, pad_token_id=70)
    assert tokenizer_of(folder, max_length=40).padding == 70
    with refused("max-length = 41", "must be 3 to 40"):
        tokenizer_of(folder, max_length=41)


@pytest.mark.parametrize("family", ["fnet", "convbert"])
def test_a_model_that_mixes_in_its_padding_is_refused(tmp_path, refused, family):
    folder = make_folder(family, tmp_path / "x")
    with refused(str(folder), "depend on the padding"):
        classifier(folder)


@pytest.mark.parametrize("max_length", [3, 5, 8, 9, 40])
@pytest.mark.parametrize("family", ["xlnet", "gpt2"])
def test_the_check_fits_any_max_length(folder, max_length):
    assert classifier(folder, max_length=max_length)(encoded(folder)).isfinite().all()


@pytest.mark.parametrize("family", ["xlnet", "gpt2", "bert"])
def test_the_check_neither_trains_nor_draws_random_numbers(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    model = classifier(folder, dropout=0.5)
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("privacy", ["none", "dp-sgd"])
@pytest.mark.parametrize("family", ["xlnet", "gpt2"])
def test_a_federation_trains(folder, tmp_path, privacy):
    rows = ["denies chest pain,x", "short of breath since yesterday and a rash on both hands,y"] * 8
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = {
        "model": str(folder),
        "dataset": "file",
        "data-path": str(tmp_path),
        "max-length": 16,
        "shared": "all",
        "num-rounds": 3,
        "learning-rate": 0.01,
        "privacy": privacy,
        **({"noise-multiplier": 0.1, "target-delta": 0.1} if privacy == "dp-sgd" else {}),
        "output-dir": str(tmp_path / "run"),
    }
    result = simulate(config, 2, workers=1, quiet=True)
    assert [row["failures"] for row in result.history[1:]] == [0, 0, 0]
    if privacy == "none":
        assert result.summary["accuracy"] == 1.0
