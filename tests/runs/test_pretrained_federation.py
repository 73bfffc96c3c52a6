"""Federated runs of pretrained models: every family and scope, frozen base weights, resuming."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from flwr.clientapp import ClientApp
from helpers.nodes import OPEN, as_real
from helpers.pretrained_folders import FAMILIES_TESTED
from helpers.runs import CLIENTS, run_app
from safetensors.numpy import load_file, save_file

from fedattn_app import client_app, server_app
from fedattn_app.analysis.predictor import Predictor
from fedattn_app.clients.base import FrozenClient
from fedattn_app.clients.node_state import ContextState
from fedattn_app.clients.personal import PersonalClient
from fedattn_app.config import Config, as_toml
from fedattn_app.data.loading import client_data
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import SCOPES, scope_of
from fedattn_app.results.checkpoint import Checkpoint
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate

LABELS = ("chest", "skin")
NOTES = [
    ("chest pain since yesterday", "chest"),
    ("short of breath; no fever", "chest"),
    ("a rash on both hands", "skin"),
    ("now a rash on both ankle", "skin"),
]


@pytest.fixture(scope="session")
def notes(tmp_path_factory):
    """A folder with 60 training and 8 test examples."""
    folder = tmp_path_factory.mktemp("notes")
    for name, times in (("train", 15), ("test", 2)):
        rows = [f"{text},{label}" for text, label in NOTES * times]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


@pytest.fixture
def settings(pretrained_folder, notes, tmp_path):
    """A function that returns the run-config of a short run with a tiny model of a family."""

    def make(family="bert", **more):
        return {
            "model": str(pretrained_folder(family)),
            "dataset": "file",
            "data-path": str(notes),
            "max-length": 16,
            "learning-rate": 0.01,
            "num-rounds": 1,
            "output-dir": str(tmp_path / "run"),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }

    return make


def start_of(config, labels=LABELS):
    """Return the initial arrays and the scope of a run with this run-config."""
    config = Config.from_run_config(config)
    model = build_classifier(config, labels)
    arrays = get_arrays(model)
    federation = config.federation
    return arrays, scope_of(federation.shared, federation.local, model.family, arrays)


def changed(before, after):
    return {name for name, array in before.items() if array.tobytes() != after[name].tobytes()}


@pytest.mark.parametrize("shared", SCOPES)
@pytest.mark.parametrize("family", FAMILIES_TESTED)
def test_a_round_changes_all_shared_parameters_and_no_others(settings, family, shared):
    config = settings(family, shared=shared)
    result = simulate(config, CLIENTS, quiet=True)
    arrays, scope = start_of(config)
    assert changed(arrays, result.arrays) == scope.shared
    row = result.history[-1]
    assert (row["clients"], row["failures"]) == (CLIENTS, 0)
    assert (row["central"] is None) == (shared == "lora-a")
    up = 4 * sum(arrays[name].size for name in scope.shared)
    names_and_metrics = row["bytes_up"] / CLIENTS - up
    assert 0 < names_and_metrics < 300 * len(scope.shared) + 3000


@pytest.mark.parametrize("shared", ["attention+head", "lora", "lora-a"])
def test_a_run_learns(settings, shared):
    result = simulate(
        settings(shared=shared, num_rounds=8, learning_rate=0.02), CLIENTS, quiet=True
    )
    assert result.summary["accuracy"] >= 0.9


@pytest.mark.parametrize("shared", ["all", "attention+head", "lora"])
def test_a_run_repeats_bit_for_bit(settings, tmp_path, shared):
    config = settings(shared=shared, dropout=0.1)
    first = simulate(config, CLIENTS, quiet=True)
    torch.rand(7)
    again = simulate(config | {"output-dir": str(tmp_path / "again")}, CLIENTS, quiet=True)
    assert not changed(first.arrays, again.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["attention+head", "lora-a"])
def test_flowers_engine_gives_the_same_bits(settings, tmp_path, shared):
    config = settings(shared=shared, num_rounds=2)
    local = simulate(config, CLIENTS, quiet=True)
    config["output-dir"] = str(tmp_path / "flower")
    flower = simulate(config, CLIENTS, quiet=True, engine="flower")
    assert not changed(local.arrays, flower.arrays)


def with_own_models(paths, **own):
    """Our ClientApp, with real nodes among the simulated ones, which have a ``model-path``.

    `paths` maps their partitions to paths; `own` has more keys of their node-config.
    """
    app = ClientApp()

    def passing(message, context):
        path = paths.get(context.node_config["partition-id"])
        if path is not None:
            context = as_real(context, model_path=str(path), **own)
        return client_app.app(message, context)

    for register in (app.train, app.evaluate, app.query):
        register()(passing)
    return app


@pytest.fixture
def altered_folder(pretrained_folder, tmp_path):
    """A folder with the same model, except for one value of its word embeddings."""
    folder = shutil.copytree(pretrained_folder("bert"), tmp_path / "altered")
    arrays = load_file(folder / "model.safetensors")
    (name,) = (name for name in arrays if "word_embeddings" in name)
    arrays[name][3, 5] = np.nextafter(arrays[name][3, 5], np.float32(9))
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("shared", ["attention", "lora", "lora-b", "lora-a"])
def test_a_node_whose_frozen_weights_differ_fails_and_the_others_continue(
    settings, altered_folder, notes, caplog, shared
):
    app = with_own_models({1: altered_folder}, data_path=str(notes), **OPEN)
    result = run_app(app, settings(shared=shared, num_rounds=2, labels=",".join(LABELS)))
    for row in result.history[1:]:
        assert (row["clients"], row["failures"]) == (
            CLIENTS - 1,
            2,
        )  # in training and in evaluation
    assert "client 1 failed" in caplog.text
    assert "the frozen parameters of this node differ from the server's" in caplog.text
    assert {row["partition"] for row in result.clients} == {0, 2}


def test_the_same_model_in_another_folder_is_accepted(settings, pretrained_folder, notes, tmp_path):
    elsewhere = shutil.copytree(pretrained_folder("bert"), tmp_path / "elsewhere")
    app = with_own_models({1: elsewhere}, data_path=str(notes), **OPEN)
    result = run_app(app, settings(labels=",".join(LABELS)))
    assert result.history[-1]["clients"] == CLIENTS


def test_a_model_path_is_for_pretrained_models_only(tiny, pretrained_folder):
    result = run_app(with_own_models({1: pretrained_folder("bert")}), tiny | {"layers": 2})
    assert result.history[-1]["clients"] == CLIENTS


def test_changed_weights_and_tokenizer_are_read_again(settings, altered_folder, tmp_path):
    own = tmp_path / "own"
    config = settings(model=str(own), dropout=0.0)
    runs = []
    for number, base in enumerate((settings()["model"], altered_folder)):
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(base, own)
        path = str(tmp_path / f"{number}")
        runs.append(simulate(config | {"output-dir": path}, CLIENTS, quiet=True))
        assert runs[-1].history[-1]["failures"] == 0
    assert changed(runs[0].arrays, runs[1].arrays)


def test_the_model_path_of_a_node_is_not_reported(settings, notes, tmp_path, caplog):
    app = with_own_models({1: tmp_path / "Jane Doe"}, data_path=str(notes), **OPEN)
    result = run_app(app, settings(labels=",".join(LABELS)))
    assert result.history[-1]["clients"] == CLIENTS - 1
    replies = [record.getMessage() for record in caplog.records if "client 1" in record.message]
    assert replies
    assert all("cannot load the model; its own log says why" in reply for reply in replies)
    assert not any("Jane" in reply for reply in replies)


def test_personal_lora_b_of_another_scale_is_not_used(settings):
    names = set()
    for alpha in (16, 64):
        config = Config.from_run_config(settings(shared="lora-a", lora_alpha=alpha))
        data = client_data(config.data, config.model, 1, 0, CLIENTS)
        client = PersonalClient(config, LABELS, data, 0, ContextState(RecordDict()))
        names.add(client.state_name)
    assert len(names) == 2


@pytest.mark.parametrize("model", [".", "~nobody-of-this-name/x", "x" * 300])
def test_an_odd_path_is_a_model_or_a_one_line_error(
    settings, pretrained_folder, refused, monkeypatch, model
):
    monkeypatch.chdir(pretrained_folder("bert"))
    if model == ".":
        result = simulate(settings(model=model), CLIENTS, quiet=True)
        assert len(Predictor.load(result.path).predict(["a rash"])) == 1
    else:
        with refused(f"model = {as_toml(model)}", "not a folder"):
            simulate(settings(model=model), CLIENTS, quiet=True)


def test_a_server_without_a_tokenizer_fails_before_any_training(settings, tmp_path, refused):
    base = shutil.copytree(settings()["model"], tmp_path / "base")
    (base / "tokenizer.json").unlink()
    config = settings(model=str(base), data_path="", labels="chest,skin")
    with refused("tokenizer"), task_identity():
        server_app.run(PartitionGrid(LocalGrid(ClientApp(), 1, {})), Config.from_run_config(config))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shared", ["attention", "lora-b"])
def test_a_client_that_joins_late_trains_like_one_that_was_there_before(settings, shared):
    config = Config.from_run_config(settings(shared=shared))
    data = client_data(config.data, config.model, 1, 0, CLIENTS)
    early = FrozenClient(config, LABELS, data)
    first, *_ = early.fit(early.get_parameters({}), {"server-round": 1})
    second, *_ = early.fit(first, {"server-round": 2})
    # Another seed replaces the model that the process has cached.
    FrozenClient(replace(config, federation=replace(config.federation, seed=2)), LABELS, data)
    late, *_ = FrozenClient(config, LABELS, data).fit(first, {"server-round": 2})
    assert [array.tobytes() for array in late] == [array.tobytes() for array in second]


@pytest.mark.parametrize("shared", ["attention+head", "lora-b"])
def test_a_resumed_run_gives_the_same_bits(settings, tmp_path, shared):
    whole = simulate(settings(shared=shared, num_rounds=3), CLIENTS, quiet=True)
    half = settings(shared=shared, num_rounds=2, output_dir=str(tmp_path / "half"))
    simulate(half, CLIENTS, quiet=True)
    resumed = simulate({"resume-from": str(tmp_path / "half"), "num-rounds": 3}, quiet=True)
    assert not changed(whole.arrays, resumed.arrays)
    arrays = Checkpoint.read(resumed.path).arrays
    assert arrays.keys() == start_of(half)[1].shared


def test_a_run_does_not_resume_with_another_base_model(
    settings, pretrained_folder, altered_folder, tmp_path, refused
):
    own = shutil.copytree(pretrained_folder("bert"), tmp_path / "own")
    config = settings(model=str(own))
    simulate(config, CLIENTS, quiet=True)
    shutil.copy(altered_folder / "model.safetensors", own)
    with refused("resume-from", "frozen parameters", str(own)):
        simulate({"resume-from": config["output-dir"], "num-rounds": 3}, quiet=True)


@pytest.mark.parametrize("shared", ["attention+head", "lora"])
def test_the_final_model_predicts_without_its_base(settings, pretrained_folder, tmp_path, shared):
    base = shutil.copytree(pretrained_folder("distilbert"), tmp_path / "base")
    config = settings(model=str(base), shared=shared, num_rounds=8, learning_rate=0.02)
    result = simulate(config, CLIENTS, quiet=True)
    shutil.rmtree(base)
    predictor = Predictor.load(result.path)
    texts, labels = zip(*NOTES, strict=True)
    right = sum(a == b for a, b in zip(predictor.predict(texts), labels, strict=True))
    assert right / len(NOTES) == result.summary["accuracy"]
    seen = predictor.attention("chest pain")
    assert seen.tokens == ["[CLS]", "chest", "pain", "[SEP]"]
    assert [tuple(layer.shape) for layer in seen.maps] == [(2, 4, 4)] * 2


def test_the_built_in_model_can_have_adapters(tiny):
    result = simulate(tiny | {"shared": "lora", "num-rounds": 1}, CLIENTS, quiet=True)
    arrays, scope = start_of(tiny | {"shared": "lora"}, "abcdef")
    assert len(scope.shared) == 2 * 4 + 2
    assert {name.replace("base_layer.", "") for name in scope.frozen} > {"embedding.weight"}
    assert result.summary["shared_parameters"] == sum(arrays[n].size for n in scope.shared)


def test_a_learning_rate_for_the_built_in_model_is_a_warning(settings, capsys):
    simulate(settings(learning_rate=0.003), CLIENTS, quiet=True)
    assert "learning-rate = 0.003 suits the built-in model" in capsys.readouterr().err
    simulate(settings(learning_rate=0.001, output_dir=settings()["output-dir"] + "2"), CLIENTS)
    assert "suits the built-in model" not in capsys.readouterr().err
