"""Pretrained models against transformers' own, and what a folder may hold without harm."""

import json
import os
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from peft import LoraConfig, get_peft_model
from pretrained_folders import (
    FAMILIES_TESTED,
    HEADS,
    LAYERS,
    POSITIONS,
    TEXTS,
    make_folder,
    make_tokenizer,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from fedattn_app.build import build_classifier, build_tokenizer, describe
from fedattn_app.config import Config, TrainingConfig
from fedattn_app.data import Examples
from fedattn_app.errors import UserError
from fedattn_app.local_engine import one_thread, task_identity
from fedattn_app.parameters import get_arrays, view_arrays
from fedattn_app.predictor import Predictor
from fedattn_app.pretrained import PretrainedTokenizer, load_tokenizer, untrained
from fedattn_app.scopes import scope_of
from fedattn_app.storage import read_arrays, write_arrays
from fedattn_app.training import train
from strategies import WeightedFedAvg

ROOT = Path(__file__).parents[1]
LABELS = ("one", "two", "three")
UNKNOWN_FAMILIES = ["albert", "modernbert", "mpnet"]
any_family = pytest.mark.parametrize("family", [*FAMILIES_TESTED, *UNKNOWN_FAMILIES])
ADAPTER_SCOPES = {"lora": "AB", "lora-a": "A", "lora-b": "B"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():  # many small sums: threads would only wait for each other
        yield


@pytest.fixture(params=FAMILIES_TESTED)
def family(request):
    return request.param


@pytest.fixture
def folder(family, pretrained_folder):
    """Weights without a head, as most are published."""
    return pretrained_folder(family)


@pytest.fixture
def whole_folder(family, pretrained_folder):
    """Weights with a head for `LABELS`."""
    return pretrained_folder(family, AutoModelForSequenceClassification, num_labels=len(LABELS))


@pytest.fixture
def copy(request, pretrained_folder, tmp_path_factory):
    """A folder to break; its path has no word that an error should say."""
    names = request.fixturenames
    family = request.getfixturevalue("family") if "family" in names else "bert"
    path = tmp_path_factory.mktemp("scratch") / "copy"
    return Path(shutil.copytree(pretrained_folder(family), path))


@pytest.fixture(params=[*FAMILIES_TESTED, "tiny"])
def adaptable(request, pretrained_folder):
    """The value of the key `model`, for every model that takes adapters."""
    return "tiny" if request.param == "tiny" else pretrained_folder(request.param)


def config_of(model, **settings):
    keys = {name.replace("_", "-"): value for name, value in settings.items()}
    return Config.from_run_config({"model": str(model), "max-length": 32, **keys})


def classifier(model, num_labels=3, **settings):
    return build_classifier(config_of(model, **settings), num_labels).eval()


def tokenizer_of(model, **settings):
    return build_tokenizer(config_of(model, **settings).model)


def encoded(model, texts=TEXTS, **settings):
    return tuple(map(torch.from_numpy, tokenizer_of(model, **settings).encode(texts)))


def scores(model, name, texts=TEXTS):
    with torch.no_grad():
        return model(*encoded(name, texts))


def bits(model):
    return {name: array.tobytes() for name, array in get_arrays(model).items()}


def differing(some, others):
    assert some.keys() == others.keys()
    return {name for name in some if some[name] != others[name]}


def selected(model, shared, local="frozen"):
    return scope_of(shared, local, model.family, view_arrays(model))


# What transformers itself makes of the same folder.


def their_model(folder, **settings):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS), **settings
    ).eval()


def their_inputs(folder, texts=TEXTS):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def head_names(model):
    """Everything outside the encoder, and the pooler that BERT has inside."""
    prefix = their_prefix(model)
    return {
        name
        for name in view_arrays(model)
        if not name.startswith(f"{prefix}.") or name.startswith("bert.pooler.")
    }


def their_prefix(model):
    return {"xlm-roberta": "roberta", "deberta-v2": "deberta"}.get(model.family, model.family)


def attention_names(model):
    """Weights and biases of every linear layer inside a module whose class is an attention."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    attentions = [
        name for name, module in model.named_modules() if "Attention" in type(module).__name__
    ]
    inside = {name for name in linear if any(name.startswith(f"{a}.") for a in attentions)}
    return {f"{name}.{kind}" for name in inside for kind in ("weight", "bias")}


# The model


@any_family
def test_logits_are_those_of_transformers_own_model(whole_folder):
    with torch.no_grad():
        expected = their_model(whole_folder)(**their_inputs(whole_folder)).logits
    result = scores(classifier(whole_folder), whole_folder)
    assert result.shape == (len(TEXTS), len(LABELS))
    torch.testing.assert_close(result, expected)


@any_family
def test_logits_do_not_depend_on_padding(whole_folder):
    model = classifier(whole_folder)
    together = scores(model, whole_folder)
    alone = torch.cat([scores(model, whole_folder, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert all((a - b).abs().max() > 0.01 for a, b in pairwise(together))


def test_names_are_those_of_transformers_and_none_is_listed_twice(whole_folder):
    model, their = classifier(whole_folder), their_model(whole_folder)
    assert list(view_arrays(model)) == list(their.state_dict())
    ours = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    assert len(set(ours)) == len(ours) == len(list(their.parameters()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_as_the_key_says_everywhere_and_in_training_only(folder, dropout):
    model = classifier(folder, dropout=dropout)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert set(rates) == {dropout}
    assert len(rates) >= 2 * LAYERS
    for mode in (True, False):
        model.train(mode)
        assert {module.training for module in model.modules()} == {mode}
        same = torch.equal(scores(model, folder), scores(model, folder))
        assert same == (dropout == 0 or not mode)


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


def test_a_head_for_as_many_labels_is_kept_and_another_replaced(whole_folder):
    published = load_file(whole_folder / "model.safetensors")
    model, other = classifier(whole_folder), classifier(whole_folder, num_labels=5)
    assert bits(model) == {name: tensor.numpy().tobytes() for name, tensor in published.items()}
    assert scores(other, whole_folder).shape == (len(TEXTS), 5)
    arrays = view_arrays(model)
    last_layer = {name for name, array in arrays.items() if len(array) == len(LABELS)}
    assert differing(bits(model), bits(other)) == last_layer <= head_names(model)


@pytest.mark.parametrize("shared", ["attention+head", "lora"])
def test_the_same_bits_whatever_was_drawn_before_and_nothing_is_drawn(folder, shared):
    loads = []
    for start in (3, 4):
        torch.manual_seed(start)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        loads.append(bits(classifier(folder, shared=shared)))
        after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert not differing(*loads)


def test_another_seed_gives_another_head_on_the_same_encoder(folder):
    model = classifier(folder, seed=1)
    other = differing(bits(model), bits(classifier(folder, seed=2)))
    assert other == {name for name in head_names(model) - pooled(folder) if "weight" in name}


def pooled(folder):
    """The part of the head that a file without a head has: the pooler of BERT."""
    return {f"bert.{name}" for name in load_file(folder / "model.safetensors") if "pool" in name}


def test_a_pooler_that_the_weights_lack_depends_on_the_seed(pretrained_folder):
    folder = pretrained_folder("bert", AutoModelForMaskedLM)
    first, again, other = (bits(classifier(folder, seed=seed)) for seed in (1, 1, 2))
    assert not differing(first, again)
    assert differing(first, other) == {"bert.pooler.dense.weight", "classifier.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_less_precision_are_loaded_as_float32(copy, dtype):
    published = {k: v.to(dtype) for k, v in load_file(copy / "model.safetensors").items()}
    save_file(published, copy / "model.safetensors", {"format": "pt"})
    settings = json.loads((copy / "config.json").read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    (copy / "config.json").write_text(json.dumps(settings))
    arrays = view_arrays(classifier(copy))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    for name, tensor in published.items():
        np.testing.assert_array_equal(arrays[f"bert.{name}"], tensor.float().numpy())


def test_weights_in_several_files_are_the_same_model(copy):
    expected = bits(classifier(copy))
    whole = AutoModel.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    whole.save_pretrained(copy, max_shard_size="20KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert not differing(expected, bits(classifier(copy)))


# Scopes


def test_attention_is_the_four_projections_of_every_layer(folder):
    model = classifier(folder)
    attention = selected(model, "attention").shared
    assert len(attention) == LAYERS * 4 * 2
    assert attention == attention_names(model)


def test_head_is_what_follows_the_encoder(folder):
    model = classifier(folder)
    assert selected(model, "head").shared == head_names(model)


def test_attention_and_head_are_disjoint_and_travel_together(folder):
    model = classifier(folder)
    attention, head, both = (
        selected(model, shared).shared for shared in ("attention", "head", "attention+head")
    )
    assert not attention & head
    assert both == attention | head
    assert both < selected(model, "all").shared == set(view_arrays(model))


@pytest.mark.parametrize("shared", ["attention+head", "head", "all", *ADAPTER_SCOPES])
def test_training_changes_the_trainable_names_and_no_others(folder, shared):
    model = classifier(folder, shared=shared)
    trainable = selected(model, shared, config_of(folder, shared=shared).federation.local).trainable
    before = bits(model)
    examples = Examples(*encoded(folder), torch.tensor([0, 1, 2]))
    train(model, trainable, examples, TrainingConfig(learning_rate=0.1, local_epochs=2), seed=1)
    assert differing(before, bits(model)) <= trainable
    unused = {name for name in trainable if "word_emb" in name or "position" in name}
    assert trainable - differing(before, bits(model)) <= unused


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_an_unknown_family_takes_all_or_a_regex_and_else_shows_its_names(folder, family, refused):
    model = classifier(folder)
    names = set(view_arrays(model))
    assert selected(model, "all").shared == names
    head = {name for name in names if name.startswith("classifier.")}
    assert selected(model, r"classifier\..*").shared == head != set()
    for shared in ("attention", "attention+head", "head"):
        with refused(f"shared = {shared!r}", repr(family), "regex", *names):
            selected(model, shared)
    for shared in ADAPTER_SCOPES:
        with refused(f"shared = {shared!r}", repr(family), *FAMILIES_TESTED):
            classifier(folder, shared=shared)


# Adapters


def adapters(model):
    names = view_arrays(model)
    return {name.partition(".lora_A.")[0] for name in names if ".lora_A." in name}


def adapter(model, module, part):
    return model.get_parameter(f"{module}.lora_{part}.default.weight")


def layers_of(model):
    return 1 if model == "tiny" else LAYERS


@pytest.mark.parametrize("shared", ADAPTER_SCOPES)
def test_adapters_change_nothing_at_the_start(adaptable, shared):
    adapted = classifier(adaptable, shared=shared)
    assert len(adapters(adapted)) == layers_of(adaptable) * 4
    assert all(not adapter(adapted, name, "B").any() for name in adapters(adapted))
    assert torch.equal(scores(adapted, adaptable), scores(classifier(adaptable), adaptable))


@pytest.mark.parametrize("targets", ["query", "value,query", "key,output", "output"])
def test_targets_and_rank_say_which_and_how_large(adaptable, targets):
    plain = classifier(adaptable)
    model = classifier(adaptable, shared="lora", lora_targets=targets, lora_rank=3)
    chosen = adapters(model)
    assert len(chosen) == layers_of(adaptable) * len(targets.split(","))
    assert {first_letter(name) for name in chosen} == {role[0] for role in targets.split(",")}
    for name in chosen:
        rows, columns = plain.get_parameter(f"{name}.weight").shape
        assert adapter(model, name, "A").shape == (3, columns)
        assert adapter(model, name, "B").shape == (rows, 3)


def first_letter(module):
    """Tell the role of a projection, such as `query`, `q_lin` or `query_proj`, by its name."""
    return module.split(".attention.")[1].removeprefix("self.")[0]


def test_a_depends_on_the_seed_alone(adaptable):
    loads = []
    for seed in (1, 1, 2):
        torch.rand(1)
        model = classifier(adaptable, shared="lora", seed=seed)
        loads.append({name: adapter(model, name, "A") for name in adapters(model)})
    first, again, other = loads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_an_adapter_adds_its_product_scaled_by_alpha_over_rank(adaptable):
    adapted = classifier(adaptable, shared="lora", lora_rank=4, lora_alpha=6)
    merged = classifier(adaptable)
    start = scores(merged, adaptable)
    with torch.no_grad():
        for name in adapters(adapted):
            b = adapter(adapted, name, "B").normal_(std=0.3)
            merged.get_parameter(f"{name}.weight").add_(1.5 * b @ adapter(adapted, name, "A"))
    expected = scores(merged, adaptable)
    assert (expected - start).abs().max() > 0.01
    torch.testing.assert_close(scores(adapted, adaptable), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shared", "travels"), ADAPTER_SCOPES.items())
def test_of_adapters_the_named_part_travels_with_the_head(adaptable, shared, travels):
    head = selected(classifier(adaptable), "head").shared
    model = classifier(adaptable, shared=shared)
    parts = {
        part: {f"{name}.lora_{part}.default.weight" for name in adapters(model)} for part in "AB"
    }
    local = config_of(adaptable, shared=shared).federation.local
    scope = selected(model, shared, local)
    assert scope.shared == head.union(*(parts[part] for part in travels))
    assert scope.personal == (parts["B"] if shared == "lora-a" else set())
    assert scope.frozen == set(view_arrays(model)) - scope.trainable


@pytest.fixture
def clients():
    """Weights, A and B of five clients."""
    rng = np.random.default_rng(0)
    return [1, 5, 2, 30, 7], rng.normal(size=(5, 2, 6)), rng.normal(size=(5, 4, 2))


def average(num_examples, **arrays):
    """What the server makes of each array, stacked over clients."""
    with task_identity():
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({k: Array(a[node]) for k, a in arrays.items()}),
                        "metrics": MetricRecord({"num-examples": number}),
                    }
                ),
                reply_to=Message(RecordDict(), node, "train"),
            )
            for node, number in enumerate(num_examples)
        ]
        record, _ = WeightedFedAvg().aggregate_train(1, replies)
    return (record[name].numpy() for name in arrays)


def test_averaging_a_and_b_apart_differs_by_how_they_vary_together(clients):
    weights, a, b = clients
    mean_a, mean_b = average(weights, a=a, b=b)
    wanted = np.average(b @ a, axis=0, weights=weights)
    together = np.average((b - mean_b) @ (a - mean_a), axis=0, weights=weights)
    assert np.abs(together).max() > 0.1
    np.testing.assert_allclose(wanted - mean_b @ mean_a, together, atol=1e-12)


def test_averaging_b_alone_is_exact_where_a_is_common(clients):
    weights, a, b = clients
    (mean_b,) = average(weights, b=b)
    wanted = np.average(b @ a[0], axis=0, weights=weights)
    np.testing.assert_allclose(mean_b @ a[0], wanted, atol=1e-12)


# The tokenizer

ODD = ["", " ", "\ud800", "x\udfffy", "\x00", "心電図", "[SEP] pain [PAD] <s> </s>", "😀"]


@pytest.mark.parametrize("max_length", [3, 7, 32])
def test_ids_are_those_of_transformers_own_tokenizer(family, folder, max_length):
    texts = [*TEXTS, *(text.encode("utf-8", "replace").decode() for text in ODD)]
    their = AutoTokenizer.from_pretrained(folder)
    rows = their(texts, truncation=True, max_length=max_length)["input_ids"]
    ids, lengths = tokenizer_of(folder, max_length=max_length).encode([*TEXTS, *ODD])
    assert ids.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == list(map(len, rows))
    assert ids.shape == (len(rows), max(map(len, rows)))
    padding = 1 if "roberta" in family else 0
    for row, expected in zip(ids.tolist(), rows, strict=True):
        assert row == expected + [padding] * (len(row) - len(expected))


def test_padding_is_to_the_longest_of_the_texts_and_not_beyond(folder):
    ids, lengths = tokenizer_of(folder).encode(["pain", "chest pain"])
    assert ids.shape == (2, 4)
    assert lengths.tolist() == [3, 4]


@pytest.mark.parametrize("text", ["denies chest pain", "", "\ud800", "on " * 99])
def test_tokens_are_what_the_ids_stand_for(folder, text):
    tokenizer = tokenizer_of(folder, max_length=9)
    ids, lengths = tokenizer.encode([text])
    tokens = tokenizer.tokens(text)
    assert tokens == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids[0])
    assert len(tokens) == lengths[0] <= 9


def test_a_text_without_a_token_is_one_of_padding(copy):
    make_tokenizer("bert", ends=False).save_pretrained(copy)
    tokenizer = load_tokenizer(config_of(copy, max_length=1).model)
    ids, lengths = tokenizer.encode(["", "denies chest pain"])
    assert ids.tolist() == [[0], [tokenizer.backend.token_to_id("denies")]]
    assert lengths.tolist() == [1, 1]


def test_no_texts_give_no_rows(folder):
    assert [len(array) for array in tokenizer_of(folder).encode([])] == [0, 0]


def test_padding_and_truncation_that_a_file_asks_for_are_not_used(copy):
    expected = tokenizer_of(copy).encode(TEXTS)
    published = copy.with_name("published")
    shutil.copytree(copy, published)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.backend_tokenizer.enable_padding(length=20, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.save(str(published / "tokenizer.json"))
    for result, array in zip(tokenizer_of(published).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(result, array)


def test_a_tokenizer_is_the_same_from_its_description(folder):
    tokenizer = tokenizer_of(folder)
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    for one, other in zip(
        tokenizer.encode([*TEXTS, *ODD]), again.encode([*TEXTS, *ODD]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert again.to_json() == tokenizer.to_json()


def test_a_tokenizer_that_keeps_the_end_of_a_text_does_so_here(copy):
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    text = "denies chest pain but short of breath"
    expected = AutoTokenizer.from_pretrained(copy)(text, truncation=True, max_length=5)["input_ids"]
    tokenizer = tokenizer_of(copy, max_length=5)
    assert tokenizer.encode([text])[0].tolist() == [expected]
    again = PretrainedTokenizer.from_json(tokenizer.to_json())
    assert again.encode([text])[0].tolist() == [expected]


def test_a_description_that_names_code_of_its_own_is_not_asked_about(copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    marker = with_own_code(copy)
    assert "auto_map" not in classifier(copy).architecture
    mapped = {"AutoModelForSequenceClassification": "someone/some-model--own.Own"}
    with suppress(UserError):
        untrained({"model_type": "vit", "auto_map": mapped})
    assert not marker.exists()


def test_max_length_is_what_the_model_has_positions_for(family, folder, refused):
    longest = POSITIONS - 2 if "roberta" in family else POSITIONS
    model = classifier(folder)
    ids, lengths = encoded(folder, ["pain " * 99], max_length=longest)
    assert lengths.tolist() == [longest]
    assert model(ids, lengths).isfinite().all()
    for length in (2, longest + 1):
        with refused(f"max-length = {length}", f"3 to {longest} tokens", str(folder)):
            load_tokenizer(config_of(folder, max_length=length).model)
    if family != "deberta-v2":  # its positions are relative: one more would do
        with pytest.raises((IndexError, RuntimeError)):
            model(ids[:, [0, *range(longest)]], lengths + 1)


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_no_max_length_that_is_accepted_is_too_long_for_an_unknown_family(folder, family):
    accepted = []
    for length in (POSITIONS - 2, POSITIONS - 1, POSITIONS):
        with suppress(UserError):
            accepted.append(encoded(folder, ["pain " * 99], max_length=length))
    assert accepted
    for batch in accepted:
        assert classifier(folder)(*batch).isfinite().all()


def test_more_tokens_than_the_model_knows_are_refused(copy, refused):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    known = len(tokenizer)
    tokenizer.add_tokens(["dyspnoea", "tachycardia"])
    tokenizer.save_pretrained(copy)
    with refused(str(copy), f"{known + 2} tokens", f"the model {known}"):
        tokenizer_of(copy)


# Attention maps


@any_family
def test_attention_maps_are_those_of_transformers(whole_folder):
    model = classifier(whole_folder)
    ids, lengths = encoded(whole_folder)
    maps = model.attention_maps(ids, lengths)
    with torch.no_grad():
        expected = their_model(whole_folder, attn_implementation="eager")(
            **their_inputs(whole_folder), output_attentions=True
        ).attentions
    assert len(maps) == LAYERS == len(expected)
    for ours, their in zip(maps, expected, strict=True):
        assert ours.shape == (len(TEXTS), HEADS, ids.shape[1], ids.shape[1])
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        torch.testing.assert_close(ours, their)
        for example, length in zip(ours, lengths.tolist(), strict=True):
            real = example[:, :length]
            torch.testing.assert_close(real[..., :length].sum(-1), torch.ones(HEADS, length))
            assert not real[..., length:].any()


@pytest.mark.parametrize("token", [3, 10**6], ids=["known", "unknown"])
def test_attention_maps_leave_the_model_as_it_was(whole_folder, token):
    model = classifier(whole_folder)
    before, settings = scores(model, whole_folder), model.architecture
    usual = model._whole[0].config._attn_implementation
    with suppress(IndexError):
        model.attention_maps(torch.tensor([[2, token]]), torch.tensor([2]))
    assert model._whole[0].config._attn_implementation == usual
    assert torch.equal(scores(model, whole_folder), before)
    assert model.architecture == settings


@pytest.mark.parametrize("shared", ["all", "lora"])
def test_attention_of_a_text_is_over_its_tokens(folder, shared):
    predictor = Predictor(classifier(folder, shared=shared), tokenizer_of(folder), LABELS)
    attention = predictor.attention("denies chest pain")
    assert attention.tokens[1:-1] == ["denies", "chest", "pain"]
    assert [tuple(layer.shape) for layer in attention.maps] == [(HEADS, 5, 5)] * LAYERS
    for layer in attention.maps:
        torch.testing.assert_close(layer.sum(-1), torch.ones(HEADS, 5))


# A trained model, passed on


@pytest.mark.parametrize("shared", ["attention+head", "lora", "lora-b"])
def test_a_trained_model_needs_neither_its_folder_nor_the_hub(tmp_path, family, shared):
    folder = make_folder(family, tmp_path / "base")
    config = config_of(folder, shared=shared, lora_rank=2)
    model = build_classifier(config, len(LABELS)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in selected(model, shared).shared:
                parameter.normal_(std=0.3)
    expected = Predictor(model, build_tokenizer(config.model), LABELS).probabilities(TEXTS)
    told = {"labels": json.dumps(LABELS), "config": json.dumps(config.to_run_config())}
    write_arrays(tmp_path / "model.safetensors", view_arrays(model), told | describe(config, model))
    shutil.rmtree(folder)
    predictor = Predictor.load(tmp_path)
    assert torch.equal(predictor.probabilities(TEXTS), expected)
    attention = predictor.attention("denies chest pain")
    assert len(attention.tokens) == len(attention.maps[0][0]) == 5
    _, about = read_arrays(tmp_path / "model.safetensors")
    assert [key for key, text in about.items() if str(tmp_path) in text] == ["config"]
    settings = json.loads(about["config"])
    assert [key for key, value in settings.items() if str(tmp_path) in str(value)] == ["model"]


# What cannot be loaded


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def without_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}


def narrower(tensors):
    name = "encoder.layer.1.attention.self.query.weight"
    return {**tensors, name: tensors[name][:16].clone()}


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "a config of no model": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "an unknown architecture": (lambda f: change_config(f, model_type="own"), "`own`"),
    "no classifier": (lambda f: change_config(f, model_type="vit"), "SequenceClass"),
    "an impossible shape": (lambda f: change_config(f, num_attention_heads=5), "attention heads"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (lambda f: cut_short(f / "model.safetensors"), ""),
    "no bytes": (lambda f: (f / "model.safetensors").write_bytes(b""), ""),
    "weights that lack a layer": (lambda f: change_weights(f, without_layer), "encoder.layer.1."),
    "weights of another shape": (lambda f: change_weights(f, narrower), "layer.1.attention.self.q"),
    "weights of another width": (lambda f: change_config(f, hidden_size=64), "such as bert."),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_folder_is_refused(copy, refused, broken):
    break_it, clue = BROKEN[broken]
    break_it(copy)
    with refused(f"model = {str(copy)!r}", "cannot be loaded", clue):
        classifier(copy)


def test_a_folder_without_a_tokenizer_is_refused(family, copy, refused):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with refused(f"model = {str(copy)!r}", "tokenizer"):
        tokenizer_of(copy)


@pytest.mark.parametrize(
    "break_it",
    [Path.unlink, lambda file: file.write_text("{}"), cut_short],
    ids=["missing", "empty", "cut short"],
)
def test_a_broken_tokenizer_is_named(copy, refused, break_it):
    break_it(copy / "tokenizer.json")
    with refused(f"model = {str(copy)!r}", "tokenizer"):
        tokenizer_of(copy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_adapters_that_lie_in_the_folder_are_refused(copy, refused, format):
    adapter = LoraConfig(target_modules=["query"])
    get_peft_model(AutoModel.from_pretrained(copy), adapter).save_pretrained(copy)
    marker = copy / "marker"
    if format == "bin":
        (copy / "adapter_model.safetensors").unlink()
        torch.save({"x": Trap(marker)}, copy / "adapter_model.bin")
    with refused(f"model = {str(copy)!r}", "adapter"):
        classifier(copy)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_path_without_a_model_is_refused(tmp_path, refused, name, load):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    clue = "config.json" if name == "empty" else "there is no such folder"
    with refused(f"model = {str(tmp_path / name)!r}", "tiny, small, base", clue):
        load(tmp_path / name)


def test_a_hub_id_that_was_downloaded_before_needs_no_network(pretrained_folder, tmp_path):
    kept = tmp_path / "models--someone--tiny-bert"
    shutil.copytree(pretrained_folder("bert"), kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    code = """
from fedattn_app.build import build_classifier, build_tokenizer
from fedattn_app.config import Config
config = Config.from_run_config({"model": "someone/tiny-bert", "max-length": 8})
print(build_classifier(config, 2).family, build_tokenizer(config.model).tokens("chest pain"))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert ran.stdout == "bert ['[CLS]', 'chest', 'pain', '[SEP]']\n", ran.stderr


@pytest.mark.parametrize(("name", "size"), [("smal", "small"), ("Small", "small"), ("bse", "base")])
def test_a_misspelled_size_is_answered_without_asking_the_hub(refused, monkeypatch, name, size):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asked"))
    with refused(f"model = {name!r}", f"did you mean {size}?"):
        classifier(name)


@pytest.mark.parametrize("name", ["./missing", "../missing", "~/missing"])
def test_a_relative_path_is_never_taken_for_a_hub_id(refused, name):
    with refused(f"model = {name!r}", "there is no such folder"):
        classifier(name)


@pytest.mark.parametrize(
    "name", ["bert-bsae", "someone/no-such-model", "a/b/c", "two words", "x" * 200]
)
@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch, refused, name, load):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refused(f"model = {name!r}", "tiny, small, base", "cannot be loaded"):
        load(name)


class Trap:
    """An object that touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_weights_are_refused_and_never_read(copy, refused):
    marker, weights = copy / "marker", copy / "pytorch_model.bin"
    torch.save({"x": Trap(marker)}, weights)
    torch.load(weights, weights_only=False)
    assert marker.exists()
    marker.unlink()
    classifier(copy)
    (copy / "model.safetensors").unlink()
    with refused(f"model = {str(copy)!r}", "model.safetensors"):
        classifier(copy)
    assert not marker.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused_and_never_read(copy, refused):
    marker = copy / "marker"
    (copy / "model.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    with refused(f"model = {str(copy)!r}", "cannot be loaded"):
        classifier(copy)
    assert not marker.exists()


def with_own_code(folder):
    """Let a model come with code; returns the file that the code touches."""
    marker = folder.with_name("marker")
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    change_config(folder, auto_map=classes)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    path.write_text(json.dumps(settings))
    return marker


def test_code_that_comes_with_a_known_model_is_not_run(copy):
    marker = with_own_code(copy)
    scores(classifier(copy), copy)
    assert not marker.exists()


@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_model_that_is_only_code_is_refused_and_not_run(copy, refused, load):
    marker = with_own_code(copy)
    change_config(copy, model_type="own")
    with refused(f"model = {str(copy)!r}", "cannot be loaded"):
        load(copy)
    assert not marker.exists()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_transformers_is_as_talkative_afterwards_as_before(copy, refused, bars, broken):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        logging.set_verbosity_info()
        switch[bars]()
        if broken:
            (copy / "model.safetensors").unlink()
            with refused(str(copy)):
                classifier(copy)
        else:
            scores(classifier(copy), copy)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.set_verbosity(before[0])
        switch[before[1]]()


# In a Python of its own


def python(code, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "FLWR_TELEMETRY_ENABLED": "0", **environment},
        timeout=200,
    )


WITHOUT_NETWORK = """
import json, socket, sys, time

def attempt(*args, **kwargs):
    attempts.append(str(args))
    raise OSError("no network here")

attempts = []
socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = attempt
time.sleep = lambda seconds: None
from fedattn_app.build import build_classifier, build_tokenizer
from fedattn_app.config import Config
from fedattn_app.errors import UserError

def load(model, shared):
    config = Config.from_run_config({"model": model, "shared": shared, "max-length": 32})
    attempts.clear()
    for build in (lambda: build_classifier(config, 3), lambda: build_tokenizer(config.model)):
        try:
            build()
            outcome = "loaded"
        except UserError as error:
            outcome = str(error)
        print(json.dumps([outcome, attempts]))

for folder in sys.argv[1:]:
    load(folder, "attention+head")
    load(folder, "lora")
import huggingface_hub
huggingface_hub.logging.set_verbosity_error()
load("someone/no-such-model", "all")
"""


def test_a_folder_is_loaded_without_network_and_without_a_word(copy, pretrained_folder, tmp_path):
    sound = [pretrained_folder(family) for family in FAMILIES_TESTED]
    sound.append(pretrained_folder("roberta", AutoModelForMaskedLM))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    (copy / "tokenizer.json").unlink()
    done = python(WITHOUT_NETWORK, *sound, copy, tmp_path / "missing", HF_HOME=str(tmp_path))
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    *folders, model, tokenizer = results
    assert [attempts for _, attempts in folders] == [[]] * 4 * (len(sound) + 2)
    assert [outcome for outcome, _ in folders[: 4 * len(sound)]] == ["loaded"] * 4 * len(sound)
    for outcome, attempts in (model, tokenizer):
        assert attempts, "the trap does not see what a hub id asks"
        assert "'someone/no-such-model'" in outcome


WITHOUT_EXTRA = """
import sys

sys.modules["transformers"] = sys.modules["peft"] = sys.modules["tokenizers"] = None
from fedattn_app.errors import UserError
from fedattn_app.predictor import Predictor
from fedattn_app.simulation import simulate

folder, output = sys.argv[1:]
tiny = {"model": "tiny", "vocabulary": 512, "num-rounds": 1}
run = simulate({**tiny, "output-dir": output}, 2, quiet=True)
print(Predictor.load(run.path).predict(["denies chest pain"]))
for settings in ({"model": folder, "num-rounds": 1}, {**tiny, "shared": "lora"}):
    try:
        simulate({**settings, "output-dir": output + "-refused"}, 2, quiet=True)
    except UserError as error:
        print(error)
"""


def test_without_the_extra_the_built_in_model_runs_and_the_others_say_what_to_install(
    pretrained_folder, tmp_path
):
    folder = pretrained_folder("bert")
    done = python(WITHOUT_EXTRA, folder, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    predicted, model, adapters = done.stdout.splitlines()
    assert predicted.startswith("['")
    command = "pip install -e '.[pretrained]'"
    for message, key, package in (
        (model, f"model = {str(folder)!r}", "transformers"),
        (adapters, "shared = 'lora'", "peft"),
    ):
        assert message.startswith(key)
        assert re.search(rf"needs the package {package}\b", message)
        assert command in message
