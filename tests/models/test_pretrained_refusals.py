"""A model that cannot be loaded raises an error of one line that says why."""

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers.classifiers import classifier, tokenizer_of
from helpers.pretrained_folders import change_json
from safetensors.torch import load_file, save_file

from fedattn_app.config import as_toml

pytestmark = pytest.mark.usefixtures("one_thread")


def without_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}


def narrower(tensors):
    name = "encoder.layer.1.attention.self.query.weight"
    return {**tensors, name: tensors[name][:16].clone()}


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "a config without a model type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "an unknown architecture": (lambda f: change_json(f, model_type="own"), "`own`"),
    "no classifier": (lambda f: change_json(f, model_type="vit"), "SequenceClass"),
    "an impossible shape": (lambda f: change_json(f, num_attention_heads=5), "attention heads"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), ""),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), ""),
    "weights that lack a layer": (lambda f: change_weights(f, without_layer), "encoder.layer.1."),
    "weights of another shape": (lambda f: change_weights(f, narrower), "layer.1.attention.self.q"),
    "weights of another width": (lambda f: change_json(f, hidden_size=64), "such as bert."),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_folder_is_refused(folder_copy, refused, broken):
    damage, clue = BROKEN[broken]
    damage(folder_copy)
    with refused(f"model = {as_toml(str(folder_copy))}", "cannot be loaded", clue):
        classifier(folder_copy)


def test_a_folder_without_a_tokenizer_is_refused(family, folder_copy, refused):
    for file in folder_copy.glob("tokenizer*"):
        file.unlink()
    with refused(f"model = {as_toml(str(folder_copy))}", "tokenizer"):
        tokenizer_of(folder_copy)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda file: file.write_text("{}"), truncate],
    ids=["missing", "empty", "truncated"],
)
def test_a_broken_tokenizer_is_named_in_the_error(folder_copy, refused, damage):
    damage(folder_copy / "tokenizer.json")
    with refused(f"model = {as_toml(str(folder_copy))}", "tokenizer"):
        tokenizer_of(folder_copy)


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_path_that_holds_no_model_is_refused(tmp_path, refused, name, load):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    clue = "config.json" if name == "empty" else "the folder does not exist"
    with refused(f"model = {as_toml(str(tmp_path / name))}", "tiny, small, base", clue):
        load(tmp_path / name)


@pytest.mark.parametrize(("name", "size"), [("smal", "small"), ("Small", "small"), ("bse", "base")])
def test_a_misspelled_size_is_corrected_without_contacting_the_hub(
    refused, monkeypatch, name, size
):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the hub was contacted"))
    with refused(f"model = {as_toml(name)}", f"did you mean {size}?"):
        classifier(name)


@pytest.mark.parametrize("name", ["./missing", "../missing", "~/missing"])
def test_a_relative_path_is_never_used_as_a_hub_id(refused, name):
    with refused(f"model = {as_toml(name)}", "the folder does not exist"):
        classifier(name)


@pytest.mark.parametrize(
    "name", ["bert-bsae", "someone/no-such-model", "a/b/c", "two words", "x" * 200]
)
@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch, refused, name, load):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refused(f"model = {as_toml(name)}", "tiny, small, base", "cannot be loaded"):
        load(name)
