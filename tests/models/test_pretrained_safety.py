"""What a model may bring along without harm: no pickle is read, no code run, no network asked."""

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
    # The control, with plain pickle: the trap that lies in this file does spring when unpickled.
    with zipfile.ZipFile(weights) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        pickle.loads(archive.read(name))
    assert marker.exists()
    marker.unlink()
    classifier(folder_copy)
    (folder_copy / "model.safetensors").unlink()
    with refused(f"model = {str(folder_copy)!r}", "model.safetensors"):
        classifier(folder_copy)
    assert not marker.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused_and_never_read(folder_copy, refused):
    marker = folder_copy / "marker"
    (folder_copy / "model.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    with refused(f"model = {str(folder_copy)!r}", "cannot be loaded"):
        classifier(folder_copy)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_adapters_that_lie_in_the_folder_are_refused(folder_copy, refused, format):
    adapter = LoraConfig(target_modules=["query"])
    get_peft_model(AutoModel.from_pretrained(folder_copy), adapter).save_pretrained(folder_copy)
    marker = folder_copy / "marker"
    if format == "bin":
        (folder_copy / "adapter_model.safetensors").unlink()
        torch.save({"x": Trap(marker)}, folder_copy / "adapter_model.bin")
    with refused(f"model = {str(folder_copy)!r}", "adapter"):
        classifier(folder_copy)
    assert not marker.exists()


def with_own_code(folder):
    """Let a model come with code; returns the file that the code touches."""
    marker = folder.with_name("marker")
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    change_json(folder, auto_map=classes)
    tokenizer = {"AutoTokenizer": ["own.Own", "own.Own"]}
    change_json(folder, "tokenizer_config.json", auto_map=tokenizer)
    return marker


def test_code_that_comes_with_a_known_model_is_not_run(folder_copy):
    marker = with_own_code(folder_copy)
    scores(classifier(folder_copy), folder_copy)
    assert not marker.exists()


@pytest.mark.parametrize("load", [classifier, tokenizer_of])
def test_a_model_that_is_only_code_is_refused_and_not_run(folder_copy, refused, load):
    marker = with_own_code(folder_copy)
    change_json(folder_copy, model_type="own")
    with refused(f"model = {str(folder_copy)!r}", "cannot be loaded"):
        load(folder_copy)
    assert not marker.exists()


def test_a_description_that_names_code_of_its_own_is_not_asked_about(folder_copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    marker = with_own_code(folder_copy)
    assert "auto_map" not in classifier(folder_copy).architecture
    mapped = {"AutoModelForSequenceClassification": "someone/some-model--own.Own"}
    with suppress(UserError):
        build_untrained({"model_type": "vit", "auto_map": mapped})
    assert not marker.exists()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_transformers_is_as_talkative_afterwards_as_before(folder_copy, refused, bars, broken):
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


def test_a_folder_is_loaded_without_network_and_without_a_word(
    folder_copy, pretrained_folder, tmp_path, python
):
    sound = [pretrained_folder(family) for family in FAMILIES_TESTED]
    sound.append(pretrained_folder("roberta", AutoModelForMaskedLM))
    (folder_copy / "model.safetensors").rename(folder_copy / "pytorch_model.bin")
    (folder_copy / "tokenizer.json").unlink()
    done = python(WITHOUT_NETWORK, *sound, folder_copy, tmp_path / "missing", HF_HOME=str(tmp_path))
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    *folders, model, tokenizer = results
    assert [attempts for _, attempts in folders] == [[]] * 4 * (len(sound) + 2)
    assert [outcome for outcome, _ in folders[: 4 * len(sound)]] == ["loaded"] * 4 * len(sound)
    for outcome, attempts in (model, tokenizer):
        assert attempts, "the trap does not see what a hub id asks"
        assert "'someone/no-such-model'" in outcome


def test_a_hub_id_that_was_downloaded_before_needs_no_network(pretrained_folder, tmp_path, python):
    kept = tmp_path / "models--someone--tiny-bert"
    shutil.copytree(pretrained_folder("bert"), kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    code = """
from fedattn_app.models.factory import build_classifier, build_tokenizer
from fedattn_app.config import Config
config = Config.from_run_config({"model": "someone/tiny-bert", "max-length": 8})
print(build_classifier(config, 2).family, build_tokenizer(config.model).tokens("chest pain"))
"""
    ran = python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert ran.stdout == "bert ['[CLS]', 'chest', 'pain', '[SEP]']\n", ran.stderr
