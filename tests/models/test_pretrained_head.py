"""The head of a checkpoint: kept, reordered or replaced by the names of its labels."""

import json
import logging
import random

import pytest
import torch
from helpers.classifiers import bits, classifier, differing, scores
from helpers.pretrained_folders import (
    FAMILIES_TESTED,
    OTHER_SHAPES,
    TEXTS,
    UNKNOWN_FAMILIES,
    change_json,
    make_folder,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fedattn_app.analysis.predictor import Predictor
from fedattn_app.models.pretrained import build_untrained
from fedattn_app.simulation import simulate

pytestmark = pytest.mark.usefixtures("one_thread")

THEIRS = ("World", "Sports", "Business", "Sci/Tech")
OURS = tuple(sorted(THEIRS))
NUMBERS = tuple(map(str, range(12)))
HEADED = AutoModelForSequenceClassification


def published_scores(folder, texts=TEXTS):
    """The logits of transformers for each of `texts` alone, by label name."""
    model = HEADED.from_pretrained(folder).eval()
    names = [model.config.id2label[k] for k in range(model.config.num_labels)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text, truncation=True, max_length=32)["input_ids"] for text in texts]
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row])).logits for row in rows])
    return {str(name): logits[:, k] for k, name in enumerate(names)}


def assert_kept(folder, labels, published, matching=None):
    """The logits of our model for each label are those of the checkpoint for its partner."""
    model = classifier(folder, labels)
    ours = scores(model, folder)
    partner = matching or {label: label for label in labels}
    for k, label in enumerate(labels):
        torch.testing.assert_close(ours[:, k], published[partner[label]], rtol=1e-4, atol=1e-5)
    ((level, message),) = model.load_messages
    assert level == logging.INFO
    assert "head is kept" in message
    return model


def assert_replaced(folder, labels, *parts):
    """The rows of the last layer are new, and a warning of one line says why."""
    model = classifier(folder, labels)
    ((level, message),) = model.load_messages
    assert level == logging.WARNING
    assert len(message.splitlines()) == 1
    for part in (str(folder), "a new head is trained", *parts):
        assert part in message
    assert not differing(bits(model), bits(classifier(folder, labels)))
    published = {k: v.numpy().tobytes() for k, v in load_file(folder / "model.safetensors").items()}
    changed = {name for name, content in bits(model).items() if content != published.get(name)}
    assert any(name.endswith("weight") for name in changed)
    assert all(len(tensor) == len(labels) for tensor in map(model.state_dict().get, changed))
    other = differing(bits(model), bits(classifier(folder, labels, seed=99)))
    assert {name for name in changed if name.endswith("weight")} == other
    return model


@pytest.mark.parametrize("family", [*FAMILIES_TESTED, *UNKNOWN_FAMILIES])
def test_the_outputs_are_in_our_order_whatever_the_family(family, pretrained_folder):
    folder = pretrained_folder(family, HEADED, THEIRS)
    assert_kept(folder, OURS, published_scores(folder))


@pytest.mark.parametrize("family", OTHER_SHAPES)
def test_the_outputs_are_in_our_order_whatever_the_head_is_called(pretrained_folder, family):
    folder = pretrained_folder(family, HEADED, THEIRS)
    assert_kept(folder, OURS, published_scores(folder))
    assert_replaced(folder, ("a", "b", "c", "d"), "World, Sports, Business, Sci/Tech, not a, b")


def test_a_checkpoint_that_is_right_by_its_own_names_is_right_here(tmp_path):
    folder = make_folder("bert", tmp_path / "x", HEADED, THEIRS, initializer_range=0.5)
    words = sorted({*" ".join(TEXTS).replace(",", "").split()})
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=6)) for _ in range(60)]
    by_name = published_scores(folder, texts)
    best = torch.stack(list(by_name.values()), 1).argmax(1).tolist()
    assert len({*best}) == len(THEIRS)
    rows = [f"{text},{THEIRS[k]}" for text, k in zip(texts, best, strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = {
        "model": str(folder),
        "dataset": "file",
        "data-path": str(tmp_path / "train.csv"),
        "max-length": 32,
        "shared": "all",
        "num-rounds": 1,
        "learning-rate": 1e-9,
        "output-dir": str(tmp_path / "run"),
    }
    result = simulate(config, 2, workers=1, quiet=True)
    assert result.summary["accuracy"] == 1.0
    predictor = Predictor.load(result.path)
    assert predictor.predict(texts) == [THEIRS[k] for k in best]


@pytest.mark.parametrize("theirs", [THEIRS, ("a", "b", "c", "d"), ()])
def test_the_server_says_once_what_became_of_the_head(tmp_path, capsys, theirs):
    head = HEADED if theirs else AutoModel
    folder = make_folder("bert", tmp_path / "x", head, theirs)
    rows = [f"chest pain,{label}" for label in OURS] * 8
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = {"model": str(folder), "dataset": "file", "data-path": str(tmp_path / "train.csv")}
    config |= {"max-length": 8, "num-rounds": 1, "output-dir": str(tmp_path / "run")}
    simulate(config, 2, workers=1)
    printed = "".join(capsys.readouterr())
    assert printed.count("its head is kept") == (theirs == THEIRS)
    assert printed.count("a new head is trained") == (theirs == ("a", "b", "c", "d"))


def test_twelve_labels_that_are_numbers_keep_their_outputs(pretrained_folder):
    folder = pretrained_folder("bert", HEADED, NUMBERS)
    published = published_scores(folder)
    assert_kept(folder, NUMBERS, published)
    assert_kept(folder, sorted(NUMBERS), published)


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        ({"0": "World ", "1": " b", "2": "Busi\u200bness"}, ("Business", "World", "b"), [2, 0, 1]),
        ({"0": "WORLD", "1": "sports", "2": "b"}, ("World", "Sports", "B"), [0, 1, 2]),
        ({"2": "a", "0": "b", "1": "c"}, ("a", "b", "c"), [2, 0, 1]),
        ({"0": 2, "1": 0, "2": 1}, ("0", "1", "2"), [1, 2, 0]),
        ({"0": 2.0, "1": 0.0, "2": "1"}, ("0", "1", "2"), [1, 2, 0]),
        ({"0": "x", "1": True, "2": False}, ("false", "true", "x"), [2, 1, 0]),
        ({"0": "a", "1": "A", "2": "b"}, ("A", "a", "b"), [1, 0, 2]),
        ({"0": "re\u0301el", "1": "b", "2": "c"}, ("b", "c", "r\u00e9el"), [1, 2, 0]),
    ],
    ids=["spaces", "case", "order of keys", "numbers", "floats", "booleans", "A and a", "accents"],
)
def test_names_match_however_they_are_spelled(tmp_path, theirs, ours, order):
    folder = make_folder("bert", tmp_path / "x", HEADED, "abc")
    published = list(published_scores(folder).values())
    change_json(folder, id2label=theirs, label2id=None)
    model = classifier(folder, ours)
    expected = torch.stack([published[k] for k in order], 1)
    torch.testing.assert_close(scores(model, folder), expected, rtol=1e-4, atol=1e-5)
    assert model.load_messages[0][0] == logging.INFO


def test_placeholders_match_numbers_only(tmp_path):
    folder = make_folder("bert", tmp_path / "x", HEADED, num_labels=3)
    published = published_scores(folder)
    assert list(published) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert_kept(folder, ("2", "0", "1"), published, {str(k): f"LABEL_{k}" for k in range(3)})
    assert_replaced(folder, ("a", "b", "c"), "LABEL_0, LABEL_1, LABEL_2, not a, b, c")
    assert_replaced(folder, ("1", "2", "3"), "not 1, 2, 3")


@pytest.mark.parametrize(
    ("theirs", "clue"),
    [
        ({"0": "a", "1": "a", "2": "b"}, "a, a, b"),
        ({"0": "a", "1": "B", "2": "x"}, "a, B, x"),
        ({"0": "a", "1": "b", "5": "c"}, "not named"),
        ({"1": "a", "2": "b", "3": "c"}, "not named"),
        ({"0": "a", "1": "b", "2": None}, "a, b, "),
        ({"0": "x\n\ny", "1": "b", "2": "c"}, "x y, b, c"),
    ],
)
def test_a_head_with_other_or_unclear_names_is_replaced(tmp_path, theirs, clue):
    folder = make_folder("bert", tmp_path / "x", HEADED, "pqr")
    change_json(folder, id2label=theirs, label2id=None)
    assert_replaced(folder, ("a", "b", "c"), f"its labels are {clue}", "not a, b, c")


@pytest.mark.parametrize("labels", [("a", "b"), tuple("abcdef")])
def test_a_head_for_another_number_of_labels_is_replaced(tmp_path, labels):
    folder = make_folder("roberta", tmp_path / "x", HEADED, "abcd")
    assert_replaced(folder, labels, "a, b, c, d, not a, b")


def test_long_lists_of_names_are_cut_in_the_message(tmp_path):
    folder = make_folder("bert", tmp_path / "x", HEADED, NUMBERS)
    assert_replaced(folder, tuple("abcdefg"), "0, 1, 2, 3, … (12), not a, b, c, d, … (7)")


@pytest.mark.parametrize("rows", [1, 4])
def test_names_of_a_head_with_another_number_of_outputs_do_not_count(tmp_path, rows):
    folder = make_folder("bert", tmp_path / "x", HEADED, "ab")
    tensors = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = torch.ones(rows, *tensors[name].shape[1:])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_replaced(folder, ("a", "b"), "one output per label")


@pytest.mark.parametrize("lost", ["classifier.bias", "bert.pooler.dense.weight"])
def test_a_head_that_lacks_a_part_is_replaced(tmp_path, lost):
    folder = make_folder("bert", tmp_path / "x", HEADED, "ab")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = classifier(folder, ("a", "b"))
    assert "lacks a part" in model.load_messages[0][1]
    rows = model.state_dict()["classifier.weight"]
    assert not torch.equal(rows, load_file(folder / "model.safetensors")["classifier.weight"])


def test_a_head_for_tokens_with_the_same_parameter_names_is_replaced(tmp_path):
    folder = make_folder("bert", tmp_path / "x", AutoModelForTokenClassification, ("O", "B-PER"))
    model = classifier(folder, ("neg", "pos"))
    assert "a new head is trained" in model.load_messages[0][1]


def test_a_checkpoint_without_a_head_says_nothing_about_labels(encoder_folder):
    assert classifier(encoder_folder, ("neg", "pos")).load_messages == ()


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_the_problem_type_of_the_checkpoint_does_not_matter(tmp_path, problem):
    folder = make_folder("bert", tmp_path / "x", HEADED, THEIRS)
    published = published_scores(folder)
    change_json(folder, problem_type=problem)
    model = assert_kept(folder, OURS, published)
    assert model.architecture["problem_type"] is None


def test_what_is_saved_names_the_outputs_in_our_order(pretrained_folder):
    folder = pretrained_folder("bert", HEADED, THEIRS)
    model = classifier(folder, OURS)
    again = build_untrained(json.loads(json.dumps(model.architecture)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(scores(again.eval(), folder), scores(model, folder))
    config = again._wrapped[0].config
    assert config.id2label == dict(enumerate(OURS))
    assert config.label2id == {label: k for k, label in enumerate(OURS)}


@pytest.mark.parametrize("names", [{"neg": 0, "pos": 1}, ["neg", "pos"], "neg"])
def test_names_that_are_not_listed_by_number_are_refused(folder_copy, refused, names):
    change_json(folder_copy, id2label=names)
    with refused(str(folder_copy), "config.json", "id2label"):
        classifier(folder_copy)
