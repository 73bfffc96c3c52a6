"""Pretrained models, compared with transformers."""

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
    encoder_prefix,
    head_names,
    scores,
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


def transformers_model(folder, **settings):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS), **settings
    ).eval()


def transformers_inputs(folder, texts=TEXTS):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def pooler_names(folder):
    """The names of BERT's pooler, the part of the head that weights without a head still have."""
    return {f"bert.{name}" for name in load_file(folder / "model.safetensors") if "pool" in name}


@any_family
def test_logits_equal_those_of_transformers(classifier_folder):
    with torch.no_grad():
        expected = transformers_model(classifier_folder)(
            **transformers_inputs(classifier_folder)
        ).logits
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


def test_names_equal_those_of_transformers_and_each_occurs_once(classifier_folder):
    model, original = classifier(classifier_folder), transformers_model(classifier_folder)
    assert list(view_arrays(model)) == list(original.state_dict())
    ours = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    assert len(set(ours)) == len(ours) == len(list(original.parameters()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_dropout_has_the_configured_rate_and_is_active_in_training_only(
    encoder_folder, dropout
):
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
def test_extra_padding_does_not_change_the_logits(tmp_path, family, shape):
    """A decoder is sensitive to it: it finds the last token of a text by the padding."""
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
def test_dropout_has_the_configured_rate_whatever_its_name_is(tmp_path, family, shape, dropout):
    folder = make_folder(family, tmp_path / family, **shape)
    model = classifier(folder, dropout=dropout).train()
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {dropout}
    same = torch.equal(scores(model, folder), scores(model, folder))
    assert same == (dropout == 0)


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification]
)
def test_the_encoder_equals_the_files_for_every_head_in_the_file(
    family, pretrained_folder, auto_class
):
    folder = pretrained_folder(family, auto_class)
    expected = AutoModel.from_pretrained(folder).state_dict()
    model = classifier(folder)
    prefix = encoder_prefix(model)
    encoder = {
        name.removeprefix(f"{prefix}."): array
        for name, array in view_arrays(model).items()
        if name not in head_names(model)
    }
    assert len(encoder) > 16 * LAYERS
    for name, array in encoder.items():
        assert array.tobytes() == expected[name].numpy().tobytes(), name


def test_all_but_the_last_layer_is_kept_for_other_labels(classifier_folder):
    published = load_file(classifier_folder / "model.safetensors")
    model, other = classifier(classifier_folder), classifier(classifier_folder, "abcde")
    assert bits(model) == {name: tensor.numpy().tobytes() for name, tensor in published.items()}
    assert scores(other, classifier_folder).shape == (len(TEXTS), 5)
    arrays = view_arrays(model)
    last_layer = {name for name, array in arrays.items() if len(array) == len(LABELS)}
    assert differing(bits(model), bits(other)) == last_layer <= head_names(model)


@pytest.mark.parametrize("shared", ["attention+head", "lora"])
def test_loading_neither_uses_nor_changes_the_global_generators(encoder_folder, shared):
    loads = []
    for start in (3, 4):
        torch.manual_seed(start)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        loads.append(bits(classifier(encoder_folder, shared=shared)))
        after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert not differing(*loads)


def test_the_seed_changes_the_head_and_not_the_encoder(encoder_folder):
    model = classifier(encoder_folder, seed=1)
    other = differing(bits(model), bits(classifier(encoder_folder, seed=2)))
    assert other == {
        name for name in head_names(model) - pooler_names(encoder_folder) if "weight" in name
    }


def test_a_missing_pooler_depends_on_the_seed(pretrained_folder):
    folder = pretrained_folder("bert", AutoModelForMaskedLM)
    first, again, other = (bits(classifier(folder, seed=seed)) for seed in (1, 1, 2))
    assert not differing(first, again)
    assert differing(first, other) == {"bert.pooler.dense.weight", "classifier.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded_as_float32(folder_copy, dtype):
    published = {k: v.to(dtype) for k, v in load_file(folder_copy / "model.safetensors").items()}
    save_file(published, folder_copy / "model.safetensors", {"format": "pt"})
    change_json(folder_copy, dtype=str(dtype).removeprefix("torch."))
    arrays = view_arrays(classifier(folder_copy))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    for name, tensor in published.items():
        np.testing.assert_array_equal(arrays[f"bert.{name}"], tensor.float().numpy())


def test_weights_in_several_files_give_the_same_model(folder_copy):
    expected = bits(classifier(folder_copy))
    whole = AutoModel.from_pretrained(folder_copy)
    (folder_copy / "model.safetensors").unlink()
    whole.save_pretrained(folder_copy, max_shard_size="20KB")
    assert len(list(folder_copy.glob("model-*.safetensors"))) > 1
    assert not differing(expected, bits(classifier(folder_copy)))


# Attention maps


@any_family
def test_attention_maps_equal_those_of_transformers(classifier_folder):
    model = classifier(classifier_folder)
    batch = encoded(classifier_folder)
    maps = model.attention_maps(batch)
    with torch.no_grad():
        expected = transformers_model(classifier_folder, attn_implementation="eager")(
            **transformers_inputs(classifier_folder), output_attentions=True
        ).attentions
    assert len(maps) == LAYERS == len(expected)
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.shape == (len(TEXTS), HEADS, batch.ids.shape[1], batch.ids.shape[1])
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs)
        for example, length in zip(ours, batch.lengths.tolist(), strict=True):
            real = example[:, :length]
            torch.testing.assert_close(real[..., :length].sum(-1), torch.ones(HEADS, length))
            assert not real[..., length:].any()


@pytest.mark.parametrize("token", [3, 10**6], ids=["known", "unknown"])
def test_attention_maps_do_not_change_the_model(classifier_folder, token):
    model = classifier(classifier_folder)
    before, settings = scores(model, classifier_folder), model.architecture
    usual = model._wrapped[0].config._attn_implementation
    with suppress(IndexError):
        model.attention_maps(TextBatch.of(torch.tensor([[2, token]]), torch.tensor([2])))
    assert model._wrapped[0].config._attn_implementation == usual
    assert torch.equal(scores(model, classifier_folder), before)
    assert model.architecture == settings
