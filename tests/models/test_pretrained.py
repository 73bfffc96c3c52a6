"""Pretrained models against transformers' own."""

import random
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.classifiers import (
    bits,
    classifier,
    differing,
    encoded,
    head_names,
    scores,
    their_prefix,
)
from helpers.pretrained_folders import (
    FAMILIES_TESTED,
    HEADS,
    HIDDEN,
    LABELS,
    LAYERS,
    TEXTS,
    UNKNOWN_FAMILIES,
    change_json,
    make_folder,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedattn_app.models.batch import TextBatch
from fedattn_app.models.parameters import view_arrays

pytestmark = pytest.mark.usefixtures("one_thread")

any_family = pytest.mark.parametrize("family", [*FAMILIES_TESTED, *UNKNOWN_FAMILIES])


def their_model(folder, **settings):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS), **settings
    ).eval()


def their_inputs(folder, texts=TEXTS):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def pooled(folder):
    """The part of the head that a file without a head has: the pooler of BERT."""
    return {f"bert.{name}" for name in load_file(folder / "model.safetensors") if "pool" in name}


@any_family
def test_logits_are_those_of_transformers_own_model(classifier_folder):
    with torch.no_grad():
        expected = their_model(classifier_folder)(**their_inputs(classifier_folder)).logits
    result = scores(classifier(classifier_folder), classifier_folder)
    assert result.shape == (len(TEXTS), len(LABELS))
    torch.testing.assert_close(result, expected)


@any_family
def test_logits_do_not_depend_on_padding(classifier_folder):
    model = classifier(classifier_folder)
    together = scores(model, classifier_folder)
    alone = torch.cat([scores(model, classifier_folder, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert all((a - b).abs().max() > 0.01 for a, b in pairwise(together))


def test_names_are_those_of_transformers_and_none_is_listed_twice(classifier_folder):
    model, their = classifier(classifier_folder), their_model(classifier_folder)
    assert list(view_arrays(model)) == list(their.state_dict())
    ours = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    assert len(set(ours)) == len(ours) == len(list(their.parameters()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_as_the_key_says_everywhere_and_in_training_only(encoder_folder, dropout):
    model = classifier(encoder_folder, dropout=dropout)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert set(rates) == {dropout}
    assert len(rates) >= 2 * LAYERS
    for mode in (True, False):
        model.train(mode)
        assert {module.training for module in model.modules()} == {mode}
        same = torch.equal(scores(model, encoder_folder), scores(model, encoder_folder))
        assert same == (dropout == 0 or not mode)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("gpt2", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}), ("roberta", {})],
)
def test_padding_does_not_show_in_the_answer(tmp_path, family, shape):
    """Not even to a decoder, which finds a text's last token by what is no padding."""
    folder = make_folder(family, tmp_path / family, **shape)
    model = classifier(folder)
    batch = encoded(folder, TEXTS[:2])
    padded = batch.pad_independently(batch.ids.shape[1] + 3).select(torch.arange(2))
    assert padded.ids.shape[1] > batch.ids.shape[1]
    torch.testing.assert_close(model(padded), model(batch))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("gpt2", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}),
        ("opt", {"word_embed_proj_dim": HIDDEN, "ffn_dim": 64, "layerdrop": 0.9}),
    ],
)
def test_dropout_by_any_name_is_as_the_key_says(tmp_path, family, shape, dropout):
    folder = make_folder(family, tmp_path / family, **shape)
    model = classifier(folder, dropout=dropout).train()
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {dropout}
    same = torch.equal(scores(model, folder), scores(model, folder))
    assert same == (dropout == 0)


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification]
)
def test_the_encoder_is_the_files_whatever_head_the_file_has(family, pretrained_folder, auto_class):
    folder = pretrained_folder(family, auto_class)
    expected = AutoModel.from_pretrained(folder).state_dict()
    model = classifier(folder)
    prefix = their_prefix(model)
    encoder = {
        name.removeprefix(f"{prefix}."): array
        for name, array in view_arrays(model).items()
        if name not in head_names(model)
    }
    assert len(encoder) > 16 * LAYERS
    for name, array in encoder.items():
        assert array.tobytes() == expected[name].numpy().tobytes(), name


def test_a_head_for_as_many_labels_is_kept_and_another_replaced(classifier_folder):
    published = load_file(classifier_folder / "model.safetensors")
    model, other = classifier(classifier_folder), classifier(classifier_folder, num_labels=5)
    assert bits(model) == {name: tensor.numpy().tobytes() for name, tensor in published.items()}
    assert scores(other, classifier_folder).shape == (len(TEXTS), 5)
    arrays = view_arrays(model)
    last_layer = {name for name, array in arrays.items() if len(array) == len(LABELS)}
    assert differing(bits(model), bits(other)) == last_layer <= head_names(model)


@pytest.mark.parametrize("shared", ["attention+head", "lora"])
def test_the_same_bits_whatever_was_drawn_before_and_nothing_is_drawn(encoder_folder, shared):
    loads = []
    for start in (3, 4):
        torch.manual_seed(start)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        loads.append(bits(classifier(encoder_folder, shared=shared)))
        after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert not differing(*loads)


def test_another_seed_gives_another_head_on_the_same_encoder(encoder_folder):
    model = classifier(encoder_folder, seed=1)
    other = differing(bits(model), bits(classifier(encoder_folder, seed=2)))
    assert other == {
        name for name in head_names(model) - pooled(encoder_folder) if "weight" in name
    }


def test_a_pooler_that_the_weights_lack_depends_on_the_seed(pretrained_folder):
    folder = pretrained_folder("bert", AutoModelForMaskedLM)
    first, again, other = (bits(classifier(folder, seed=seed)) for seed in (1, 1, 2))
    assert not differing(first, again)
    assert differing(first, other) == {"bert.pooler.dense.weight", "classifier.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_less_precision_are_loaded_as_float32(folder_copy, dtype):
    published = {k: v.to(dtype) for k, v in load_file(folder_copy / "model.safetensors").items()}
    save_file(published, folder_copy / "model.safetensors", {"format": "pt"})
    change_json(folder_copy, dtype=str(dtype).removeprefix("torch."))
    arrays = view_arrays(classifier(folder_copy))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    for name, tensor in published.items():
        np.testing.assert_array_equal(arrays[f"bert.{name}"], tensor.float().numpy())


def test_weights_in_several_files_are_the_same_model(folder_copy):
    expected = bits(classifier(folder_copy))
    whole = AutoModel.from_pretrained(folder_copy)
    (folder_copy / "model.safetensors").unlink()
    whole.save_pretrained(folder_copy, max_shard_size="20KB")
    assert len(list(folder_copy.glob("model-*.safetensors"))) > 1
    assert not differing(expected, bits(classifier(folder_copy)))


# Attention maps


@any_family
def test_attention_maps_are_those_of_transformers(classifier_folder):
    model = classifier(classifier_folder)
    batch = encoded(classifier_folder)
    maps = model.attention_maps(batch)
    with torch.no_grad():
        expected = their_model(classifier_folder, attn_implementation="eager")(
            **their_inputs(classifier_folder), output_attentions=True
        ).attentions
    assert len(maps) == LAYERS == len(expected)
    for ours, their in zip(maps, expected, strict=True):
        assert ours.shape == (len(TEXTS), HEADS, batch.ids.shape[1], batch.ids.shape[1])
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        torch.testing.assert_close(ours, their)
        for example, length in zip(ours, batch.lengths.tolist(), strict=True):
            real = example[:, :length]
            torch.testing.assert_close(real[..., :length].sum(-1), torch.ones(HEADS, length))
            assert not real[..., length:].any()


@pytest.mark.parametrize("token", [3, 10**6], ids=["known", "unknown"])
def test_attention_maps_leave_the_model_as_it_was(classifier_folder, token):
    model = classifier(classifier_folder)
    before, settings = scores(model, classifier_folder), model.architecture
    usual = model._wrapped[0].config._attn_implementation
    with suppress(IndexError):
        model.attention_maps(TextBatch.of(torch.tensor([[2, token]]), torch.tensor([2])))
    assert model._wrapped[0].config._attn_implementation == usual
    assert torch.equal(scores(model, classifier_folder), before)
    assert model.architecture == settings
