"""Loading a model reads no pickle, runs no code of the model and needs no network."""

import json
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.classifiers import classifier, scores, tokenizer_of
from helpers.pretrained_folders import FAMILIES_TESTED, change_json
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

from fedattn_app.config import as_toml
from fedattn_app.errors import UserError
from fedattn_app.models.pretrained import build_untrained

pytestmark = pytest.mark.usefixtures("one_thread")


class Trap:
    """An object that touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_weights_are_refused_and_never_read(folder_copy, refused):
    marker, weights = folder_copy / "marker", folder_copy / "pytorch_model.bin"
    torch.save({"x": Trap(marker)}, weights)
    # A check of the test itself: unpickling this file does touch the marker.
    with zipfile.ZipFile(weights) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        pickle.loads(archive.read(name))
    assert marker.exists()
    marker.unlink()
    classifier(folder_copy)
    (folder_copy / "model.safetensors").unlink()
    with refused(f"model = {as_toml(str(folder_copy))}", "model.safetensors"):
        classifier(folder_copy)
    assert not marker.exists()


def test_a_pickle_with_the_suffix_safetensors_is_refused_and_never_read(folder_copy, refused):
    marker = folder_copy / "marker"
    (folder_copy / "model.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    with refused(f"model = {as_toml(str(folder_copy))}", "cannot be loaded"):
        classifier(folder_copy)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_adapters_in_the_folder_are_refused(folder_copy, refused, format):
    adapter = LoraConfig(target_modules=["query"])
    get_peft_model(AutoModel.from_pretrained(folder_copy), adapter).save_pretrained(folder_copy)
    marker = folder_copy / "marker"
    if format == "bin":
        (folder_copy / "adapter_model.safetensors").unlink()
        torch.save({"x": Trap(marker)}, folder_copy / "adapter_model.bin")
    with refused(f"model = {as_toml(str(folder_copy))}", "adapter"):
        classifier(folder_copy)
    assert not marker.exists()


def add_model_code(folder):
    """Add code to the model's folder, and return the file that the code touches."""
    marker = folder.with_name("marker")
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    change_json(folder, auto_map=classes)
    tokenizer = {"AutoTokenizer": ["own.Own", "own.Own"]}
    change_json(folder, "tokenizer_config.json", auto_map=tokenizer)
    return marker


def test_code_in_the_folder_of_a_known_model_is_not_run(folder_copy):
    marker = add_model_code(folder_copy)
    scores(classifier(folder_copy), folder_copy)
    assert not marker.exists()


@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_model_that_needs_its_own_code_is_refused_and_not_run(folder_copy, refused, load):
    marker = add_model_code(folder_copy)
    change_json(folder_copy, model_type="own")
    with refused(f"model = {as_toml(str(folder_copy))}", "cannot be loaded"):
        load(folder_copy)
    assert not marker.exists()


def test_an_architecture_that_names_code_is_built_without_a_question_to_the_user(
    folder_copy, monkeypatch
):
    monkeypatch.setattr(
        "builtins.input", lambda *_: pytest.fail("transformers asked whether to run code")
    )
    marker = add_model_code(folder_copy)
    assert "auto_map" not in classifier(folder_copy).architecture
    mapped = {"AutoModelForSequenceClassification": "someone/some-model--own.Own"}
    with suppress(UserError):
        build_untrained({"model_type": "vit", "auto_map": mapped})
    assert not marker.exists()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_loading_restores_the_log_settings_of_transformers(folder_copy, refused, bars, broken):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        logging.set_verbosity_info()
        switch[bars]()
        if broken:
            (folder_copy / "model.safetensors").unlink()
            with refused(str(folder_copy)):
                classifier(folder_copy)
        else:
            scores(classifier(folder_copy), folder_copy)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.set_verbosity(before[0])
        switch[before[1]]()


WITHOUT_NETWORK = """
import json, socket, sys, time

def attempt(*args, **kwargs):
    attempts.append(str(args))
    raise OSError("no network here")

attempts = []
socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = attempt
time.sleep = lambda seconds: None
from fedattn_app.models.factory import build_classifier, build_tokenizer
from fedattn_app.config import Config, as_toml
from fedattn_app.errors import UserError

def load(model, shared):
    config = Config.from_run_config({"model": model, "shared": shared, "max-length": 32})
    attempts.clear()
    for build in (lambda: build_classifier(config, "ab"), lambda: build_tokenizer(config.model)):
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


def test_a_folder_is_loaded_without_network_and_without_output(
    folder_copy, pretrained_folder, tmp_path, python
):
    intact = [pretrained_folder(family) for family in FAMILIES_TESTED]
    intact.append(pretrained_folder("roberta", AutoModelForMaskedLM))
    (folder_copy / "model.safetensors").rename(folder_copy / "pytorch_model.bin")
    (folder_copy / "tokenizer.json").unlink()
    done = python(
        WITHOUT_NETWORK, *intact, folder_copy, tmp_path / "missing", HF_HOME=str(tmp_path)
    )
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    *folders, model, tokenizer = results
    assert [attempts for _, attempts in folders] == [[]] * 4 * (len(intact) + 2)
    assert [outcome for outcome, _ in folders[: 4 * len(intact)]] == ["loaded"] * 4 * len(intact)
    for outcome, attempts in (model, tokenizer):
        assert attempts, "the test does not see the requests for a hub id"
        assert '"someone/no-such-model"' in outcome


def test_a_downloaded_hub_model_needs_no_network(pretrained_folder, tmp_path, python):
    downloaded = tmp_path / "models--someone--tiny-bert"
    shutil.copytree(pretrained_folder("bert"), downloaded / "snapshots" / "abc")
    (downloaded / "refs").mkdir()
    (downloaded / "refs" / "main").write_text("abc")
    code = """
from fedattn_app.models.factory import build_classifier, build_tokenizer
from fedattn_app.config import Config
config = Config.from_run_config({"model": "someone/tiny-bert", "max-length": 8})
print(build_classifier(config, "ab").family, build_tokenizer(config.model).tokens("chest pain"))
"""
    ran = python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert ran.stdout == "bert ['[CLS]', 'chest', 'pain', '[SEP]']\n", ran.stderr
