"""A model that cannot be loaded raises an error of one line that says why."""

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers.classifiers import classifier, scores, tokenizer_of
from helpers.pretrained_folders import change_json
from safetensors.torch import load_file, save_file
from transformers import AutoModel

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


LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n"
WEB_PAGE = "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n"


def without_number(value):
    """Put `value` into the middle of one parameter."""

    def change(tensors):
        tensors["encoder.layer.1.output.dense.weight"][3, 4] = value
        return tensors

    return lambda folder: change_weights(folder, change)


def in_parts(folder, lost=None):
    """Store the weights in several files, and delete one or damage it."""
    AutoModel.from_pretrained(folder).save_pretrained(folder / "parts", max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    for file in (folder / "parts").glob("model*"):
        file.rename(folder / file.name)
    first = sorted(folder.glob("model-*.safetensors"))[0]
    if lost == "part":
        first.unlink()
    elif lost == "pointer":
        first.write_text(LFS_POINTER)
    elif lost:
        (folder / "model.safetensors.index.json").write_text(lost)


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "a config without a model type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "an unknown architecture": (lambda f: change_json(f, model_type="own"), "`own`"),
    "no classifier": (lambda f: change_json(f, model_type="vit"), "SequenceClass"),
    "an impossible shape": (lambda f: change_json(f, num_attention_heads=5), "attention heads"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "not all of one"),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors: it is empty",
    ),
    "weights that are a Git LFS pointer": (
        lambda f: (f / "model.safetensors").write_text(LFS_POINTER),
        "model.safetensors: it is a Git LFS pointer",
    ),
    "weights that are a web page": (
        lambda f: (f / "model.safetensors").write_text(WEB_PAGE),
        "model.safetensors: it is a web page",
    ),
    "weights that are text": (
        lambda f: (f / "model.safetensors").write_text("Not found"),
        "model.safetensors: it is no safetensors file",
    ),
    "a config that is a Git LFS pointer": (
        lambda f: (f / "config.json").write_text(LFS_POINTER),
        "config.json: it is a Git LFS pointer",
    ),
    "a config that is a web page": (
        lambda f: (f / "config.json").write_text(WEB_PAGE),
        "config.json: it is a web page",
    ),
    "a config in another encoding": (
        lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xff"}'),
        "config.json is not valid JSON",
    ),
    "NaN": (without_number(float("nan")), "NaN or infinite values in 1 parameters, such as bert."),
    "infinity": (without_number(float("inf")), "encoder.layer.1.output.dense.weight"),
    "a missing part": (
        lambda f: in_parts(f, "part"),
        "model-00001-of-00006.safetensors, which model.safetensors.index.json names, is missing",
    ),
    "a part that is a Git LFS pointer": (
        lambda f: in_parts(f, "pointer"),
        "model-00001-of-00006.safetensors: it is a Git LFS pointer",
    ),
    "an index that is a Git LFS pointer": (
        lambda f: in_parts(f, LFS_POINTER),
        "model.safetensors.index.json: it is a Git LFS pointer",
    ),
    "an index without files": (lambda f: in_parts(f, "{}"), "has no weight_map"),
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
    [
        Path.unlink,
        lambda file: file.write_text("{}"),
        truncate,
        lambda file: file.write_text(LFS_POINTER),
        lambda file: file.write_text(WEB_PAGE),
        lambda file: file.write_text(""),
    ],
    ids=["missing", "without content", "truncated", "pointer", "web page", "empty"],
)
def test_a_broken_tokenizer_is_named_in_the_error(folder_copy, refused, damage):
    damage(folder_copy / "tokenizer.json")
    with refused(f"model = {as_toml(str(folder_copy))}", "tokenizer"):
        tokenizer_of(folder_copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.json", "README.md"])
def test_a_damaged_file_that_is_not_used_does_not_matter(folder_copy, name):
    (folder_copy / name).write_text(LFS_POINTER)
    classifier(folder_copy)
    tokenizer_of(folder_copy)


def test_a_model_with_more_tokens_than_its_tokenizer_is_used(pretrained_folder):
    folder = pretrained_folder("bert", vocab_size=120)
    assert scores(classifier(folder), folder).isfinite().all()


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
