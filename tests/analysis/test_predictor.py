"""Predictions for new texts with the model of a finished run."""

import json
import shutil
from collections import deque

import numpy as np
import pytest
import torch
from helpers.classifiers import classifier, config_of, selected, tokenizer_of
from helpers.pretrained_folders import HEADS, LABELS, LAYERS, TEXTS, make_folder

from fedattn_app.analysis.predictor import Predictor
from fedattn_app.data.triage import test_notes as corpus_test_notes
from fedattn_app.files import read_arrays, write_arrays
from fedattn_app.models.factory import build_classifier, build_tokenizer, describe
from fedattn_app.models.parameters import get_arrays, view_arrays
from fedattn_app.simulation import simulate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "out"
    config = {"model": "tiny", "vocabulary": 512, "num-rounds": 2, "output-dir": str(path)}
    return simulate(config, 3, quiet=True)


def test_the_accuracy_equals_that_of_the_server(run):
    notes = corpus_test_notes(1)
    predicted = Predictor.load(run.path).predict([note.text for note in notes])
    right = sum(label == note.label for label, note in zip(predicted, notes, strict=True))
    assert right / len(notes) == pytest.approx(run.summary["accuracy"], abs=0.002)


def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch(run):
    predictor = Predictor.load(run.path / "model.safetensors")
    texts = ["denies chest pain", "", "hx of asthma, now ankle swelling " * 30]
    together = predictor.probabilities(texts * 30)
    alone = torch.cat([predictor.probabilities([text]) for text in texts])
    torch.testing.assert_close(together, alone.repeat(30, 1))
    torch.testing.assert_close(together.sum(1), torch.ones(90))


def test_attention_is_over_the_tokens_of_the_text(run):
    attention = Predictor.load(run.path).attention("denies chest pain")
    assert attention.tokens == ["denies", "chest", "pain"]
    assert [tuple(layer.shape) for layer in attention.maps] == [(2, 3, 3)]
    torch.testing.assert_close(attention.maps[0].sum(-1), torch.ones(2, 3))


class Column:
    """A column as pandas has it: looked up by the labels of its rows, which may be anything."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, label):
        raise KeyError(label)


class Frame(Column):
    """A table as pandas has it: iterating over it gives the names of its columns."""

    ndim = 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("denies", "texts must be a sequence of texts, not one text"),
        (b"denies", "texts must be a sequence of texts, not one text"),
        (np.str_("denies"), "texts must be a sequence of texts, not one text"),
        (None, "texts must be a sequence of texts, not NoneType"),
        (7, "texts must be a sequence of texts, not int"),
        ({"text": ["denies"]}, "texts must be a sequence of texts, not dict"),
        ({"denies"}, "texts must be a sequence of texts, not set"),
        (np.array("denies"), "texts must be a sequence of texts, not ndarray"),
        (np.array([["denies"]]), "texts must be a sequence of texts, not ndarray"),
        (Frame(["denies"]), "texts must be a sequence of texts, not Frame"),
        ([None], r"texts\[0\] must be a text, not NoneType"),
        (["denies", 3], r"texts\[1\] must be a text, not int"),
        ([b"denies"], r"texts\[0\] must be a text, not bytes"),
        (np.array([b"denies"]), r"texts\[0\] must be a text, not bytes_"),
        (["denies", float("nan")], r"texts\[1\] must be a text, not float"),
        ([["denies"]], r"texts\[0\] must be a text, not list"),
    ],
)
def test_what_is_not_a_sequence_of_texts_is_refused(run, texts, message):
    predictor = Predictor.load(run.path)
    for ask in (predictor.predict, predictor.probabilities):
        with pytest.raises(TypeError, match=f"^{message}$"):
            ask(texts)


@pytest.mark.parametrize(
    "convert",
    [tuple, np.array, lambda texts: np.array(texts, dtype=object), Column, deque, iter],
)
def test_texts_may_come_in_any_sequence(run, convert):
    predictor, texts = Predictor.load(run.path), ["denies chest pain", "", "ankle swelling"]
    assert torch.equal(predictor.probabilities(convert(texts)), predictor.probabilities(texts))
    assert predictor.predict(convert(texts)) == predictor.predict(texts)


def test_no_texts_have_no_labels(run):
    predictor = Predictor.load(run.path)
    assert predictor.predict([]) == []
    assert predictor.probabilities([]).shape == (0, len(predictor.labels))


@pytest.mark.parametrize("text", [None, b"denies", ["denies"]])
def test_attention_needs_one_text(run, text):
    with pytest.raises(TypeError, match=f"must be one text, not {type(text).__name__}"):
        Predictor.load(run.path).attention(text)


def damaged(run, tmp_path, **changes):
    """A copy of the run's model file with other arrays or metadata."""
    arrays, metadata = read_arrays(run.path / "model.safetensors")
    for name, change in changes.items():
        if name in metadata:
            metadata[name] = change
        else:
            arrays[name] = change(arrays[name])
    write_arrays(tmp_path / "model.safetensors", arrays, metadata)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_with_a_value_that_is_not_finite_is_refused(run, tmp_path, refused, value):
    def change(array):
        array.flat[3] = value
        return array

    file = damaged(run, tmp_path, **{"head.weight": change})
    with refused(file, "NaN or infinite values", "head.weight"):
        Predictor.load(file)


@pytest.mark.parametrize("key", ["labels", "config"])
def test_metadata_that_are_not_json_are_refused(run, tmp_path, refused, key):
    file = damaged(run, tmp_path, **{key: "{"})
    with refused(file, "not JSON"):
        Predictor.load(file)


@pytest.mark.parametrize(
    ("content", "clue"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!doctype html><html></html>", "web page"),
        (b"not a model", "no safetensors file"),
        (None, "not all of one"),
    ],
)
def test_a_damaged_model_file_is_refused(run, tmp_path, refused, content, clue):
    file = damaged(run, tmp_path)
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    with refused(file, "cannot be read", clue):
        Predictor.load(file)


def test_a_personal_run_needs_the_parameters_of_a_node(tmp_path, refused):
    config = {"model": "tiny", "vocabulary": 512, "num-rounds": 1, "local": "personal"}
    config |= {"shared": "attention", "output-dir": str(tmp_path / "out")}
    run = simulate(config, 2, quiet=True)
    with refused("personal"):
        Predictor.load(run.path)
    rest = {k: a + 1 for k, a in run.arrays.items() if ".attention." not in k}
    write_arrays(tmp_path / "personal.safetensors", rest)
    predictor = Predictor.load(run.path, tmp_path / "personal.safetensors")
    merged = get_arrays(predictor.model)
    for name, array in run.arrays.items():
        np.testing.assert_array_equal(merged[name], rest.get(name, array))


def test_the_model_file_contains_no_paths(run):
    assert str(run.path).encode() not in (run.path / "model.safetensors").read_bytes()


def test_a_file_that_is_not_a_model_is_refused(run, tmp_path, refused):
    with refused("cannot be read"):
        Predictor.load(tmp_path / "none.safetensors")
    with refused("is not the model of a run"):
        Predictor.load(run.path / "checkpoint" / "model.safetensors")


# Pretrained models


@pytest.mark.parametrize("shared", ["all", "lora"])
def test_attention_of_a_pretrained_model_is_over_its_own_tokens(encoder_folder, shared):
    predictor = Predictor(
        classifier(encoder_folder, shared=shared), tokenizer_of(encoder_folder), LABELS
    )
    attention = predictor.attention("denies chest pain")
    assert attention.tokens[1:-1] == ["denies", "chest", "pain"]
    assert [tuple(layer.shape) for layer in attention.maps] == [(HEADS, 5, 5)] * LAYERS
    for layer in attention.maps:
        torch.testing.assert_close(layer.sum(-1), torch.ones(HEADS, 5))


@pytest.mark.parametrize("shared", ["attention+head", "lora", "lora-b"])
def test_a_trained_model_needs_neither_its_original_folder_nor_the_hub(tmp_path, family, shared):
    folder = make_folder(family, tmp_path / "base")
    config = config_of(folder, shared=shared, lora_rank=2)
    model = build_classifier(config, LABELS).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in selected(model, shared).shared:
                parameter.normal_(std=0.3)
    expected = Predictor(model, build_tokenizer(config.model), LABELS).probabilities(TEXTS)
    metadata = {"labels": json.dumps(LABELS), "config": json.dumps(config.to_run_config())}
    write_arrays(
        tmp_path / "model.safetensors", view_arrays(model), metadata | describe(config, model)
    )
    shutil.rmtree(folder)
    predictor = Predictor.load(tmp_path)
    assert torch.equal(predictor.probabilities(TEXTS), expected)
    attention = predictor.attention("denies chest pain")
    assert len(attention.tokens) == len(attention.maps[0][0]) == 5
    _, saved = read_arrays(tmp_path / "model.safetensors")
    assert [key for key, text in saved.items() if str(tmp_path) in text] == ["config"]
    settings = json.loads(saved["config"])
    assert [key for key, value in settings.items() if str(tmp_path) in str(value)] == ["model"]
