"""Whole runs on the local engine, and the same one on Flower's."""

import tomllib
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from helpers.runs import CLIENTS, run_app, same_arrays, without_times

from fedattn_app import client_app
from fedattn_app.clients.base import FrozenClient
from fedattn_app.config import Config
from fedattn_app.data.loading import client_data
from fedattn_app.data.triage import LABELS
from fedattn_app.engine.local_grid import one_thread
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.simulation import simulate


def test_a_seed_gives_the_same_result_bit_for_bit(tiny, ran, tmp_path):
    again = simulate(tiny | {"output-dir": str(tmp_path / "b")}, CLIENTS, quiet=True)
    assert without_times(ran) == without_times(again)
    assert same_arrays(ran, again)


def test_another_seed_gives_another_result(tiny, ran, tmp_path):
    other = simulate(tiny | {"output-dir": str(tmp_path / "b"), "seed": 2}, CLIENTS, quiet=True)
    assert without_times(ran) != without_times(other)


@pytest.fixture
def scratch_for_ray(monkeypatch):
    """Let Ray use a folder whose path is short enough for its sockets."""
    with TemporaryDirectory(prefix="ray") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("FLWR_HOME", f"{folder}/flwr")
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        yield folder


@pytest.mark.usefixtures("scratch_for_ray")
def test_flowers_engine_gives_the_same_bits(tiny, ran, tmp_path):
    config = tiny | {"output-dir": str(tmp_path / "flower")}
    flower = simulate(config, CLIENTS, engine="flower", quiet=True)
    assert without_times(ran) == without_times(flower)
    assert same_arrays(ran, flower)


def test_one_client_that_shares_all_is_local_training(tiny):
    result = simulate(tiny | {"shared": "all"}, 1, quiet=True)
    config = Config.from_run_config(tiny | {"shared": "all"})
    data = client_data(config.data, config.model, 1, 0, 1)
    client = FrozenClient(config, LABELS, data)
    arrays = client.get_parameters({})
    with one_thread():
        for server_round in (1, 2):
            arrays, *_ = client.fit(arrays, {"server-round": server_round})
    for name, array in zip(client.shared, arrays, strict=True):
        assert result.arrays[name].tobytes() == array.tobytes(), name


def test_frozen_parameters_do_not_change_in_ten_rounds(tiny):
    config = tiny | {"shared": "attention", "num-rounds": 10, "fraction-evaluate": 0.0}
    result = simulate(config, CLIENTS, quiet=True)
    start = get_arrays(build_model(Config.from_run_config(config).model, len(LABELS), 1))
    for name, array in start.items():
        moved = result.arrays[name].tobytes() != array.tobytes()
        assert moved == (".attention." in name), name


def test_personal_parameters_stay_on_the_clients(tiny):
    config = tiny | {"shared": "attention", "local": "personal"}
    result = simulate(config, CLIENTS, quiet=True)
    start = get_arrays(build_model(Config.from_run_config(config).model, len(LABELS), 1))
    for name, array in start.items():
        moved = result.arrays[name].tobytes() != array.tobytes()
        assert moved == (".attention." in name), name
    assert all(row["central"] is None for row in result.history)
    assert result.summary["accuracy"] == result.history[-1]["evaluate"]["accuracy"]


@pytest.fixture
def easy_data(tmp_path):
    """A file of 200 examples with labels that are easy to predict."""
    path = tmp_path / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(200)]
    path.write_text("\n".join(["text,label", *rows]))
    return {"dataset": "file", "data-path": str(path)}


@pytest.mark.parametrize("shared", ["all", "attention", "attention+head", "head"])
def test_every_scope_learns_an_easy_task(tiny, easy_data, shared):
    settings = {"shared": shared, "num-rounds": 5, "local-epochs": 3}
    result = simulate(tiny | easy_data | settings, CLIENTS, quiet=True)
    assert result.history[0]["central"] is None
    assert result.summary["accuracy"] > 0.9


def test_sampling_selects_the_given_fraction_and_repeats_by_seed(tiny, tmp_path):
    config = tiny | {"fraction-train": 0.4, "fraction-evaluate": 0.0, "num-rounds": 4}

    def trained(name, seed):
        more = {"output-dir": str(tmp_path / name), "seed": seed}
        result = simulate(config | more, 5, quiet=True)
        return [(row["round"], row["partition"]) for row in result.clients]

    first = trained("a", 1)
    assert [r for r, _ in first] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert first == trained("b", 1)
    assert first != trained("c", 2)
    assert len({p for _, p in first}) > 2


def test_the_run_folder_has_the_documented_files_and_fields(tiny, ran):
    names = {path.relative_to(ran.path).as_posix() for path in ran.path.rglob("*")}
    assert names == {
        "best.safetensors",
        "checkpoint/best.safetensors",
        ".lock",
        "config.toml",
        "status.json",
        "history.jsonl",
        "clients.jsonl",
        "summary.json",
        "model.safetensors",
        "checkpoint",
        "checkpoint/model.safetensors",
    }
    settings = tomllib.loads((ran.path / "config.toml").read_text())
    assert set(settings.pop("versions")) >= {"python", "flwr", "torch", "opacus"}
    assert Config.from_run_config(settings) == Config.from_run_config(tiny)
    assert [row["round"] for row in ran.history] == [0, 1, 2]
    for row in ran.history:
        assert set(row) == {
            *("round", "seconds", "clients", "failures", "bytes_up", "bytes_down"),
            *("train", "evaluate", "central", "epsilon_max", "dropped"),
        }
    assert [(row["round"], row["partition"]) for row in ran.clients] == [
        (r, p) for r in (1, 2) for p in range(CLIENTS)
    ]
    for row in ran.clients:
        assert set(row) == {
            *("round", "partition", "num_examples", "accuracy", "loss", "epsilon", "seconds"),
            *("recall_per_class", "f1_per_class"),
        }
    summary = ran.summary
    assert set(summary) == {
        *("strategy", "shared", "privacy", "model", "dataset", "num_clients", "rounds"),
        *("accuracy", "macro_f1", "recall_per_class", "worst_client_accuracy"),
        *("epsilon", "delta", "bytes_up_per_client_round", "bytes_total"),
        *("shared_parameters", "total_parameters", "seconds", "best_round", "f1_per_class"),
        *("best_client_accuracy", "client_accuracy_deviation"),
    }
    last = ran.history[-1]
    assert summary["accuracy"] == last["central"]["accuracy"]
    assert summary["num_clients"] == CLIENTS
    assert set(summary["recall_per_class"]) == set(LABELS)
    worst = min(row["accuracy"] for row in ran.clients if row["round"] == 2)
    assert summary["worst_client_accuracy"] == worst
    total = sum(row["bytes_up"] + row["bytes_down"] for row in ran.history)
    assert summary["bytes_total"] == total
    assert summary["shared_parameters"] == sum(
        array.size
        for name, array in ran.arrays.items()
        if ".attention." in name or name.startswith("head")
    )


def test_federated_scores_pool_the_clients(ran):
    rows = [row for row in ran.clients if row["round"] == 2]
    sizes = [len(client_data_of(row["partition"]).validation) for row in rows]
    pooled = np.average([row["accuracy"] for row in rows], weights=sizes)
    assert ran.history[2]["evaluate"]["accuracy"] == pytest.approx(pooled)


def client_data_of(partition):
    config = Config.from_run_config({"model": "tiny", "vocabulary": 512})
    return client_data(config.data, config.model, 1, partition, CLIENTS)


def test_reported_bytes_are_the_sizes_of_the_messages(tiny):
    sizes = {"up": 0, "down": 0}
    app = ClientApp()

    def passing(message, context):
        sizes["down"] += recorddict_to_proto(message.content).ByteSize()
        reply = client_app.app(message, context)
        sizes["up"] += recorddict_to_proto(reply.content).ByteSize()
        return reply

    for register in (app.train, app.evaluate, app.query):
        register()(passing)
    result = run_app(app, tiny)
    for direction in sizes:
        counted = sum(row[f"bytes_{direction}"] for row in result.history)
        assert counted == pytest.approx(sizes[direction], rel=0.01)


def test_clients_without_examples_do_not_affect_the_result(tiny, tmp_path):
    path = tmp_path / "train.csv"
    rows = [f"word{k % 7} text,{'ab'[k % 2]}" for k in range(40)]
    path.write_text("\n".join(["text,label", *rows]))
    config = tiny | {
        "dataset": "file",
        "data-path": str(path),
        "partitioner": "dirichlet",
        "alpha": 0.01,
    }
    result = simulate(config, 8, quiet=True)
    sizes = [row["num_examples"] for row in result.clients if row["round"] == 1]
    assert 0 in sizes
    assert len(sizes) == 8
    assert sum(sizes) > 30
    assert result.summary["accuracy"] is not None


def test_without_a_test_set_accuracy_is_that_of_the_clients_validation(tiny, easy_data):
    result = simulate(tiny | easy_data, 2, quiet=True)
    assert result.history[-1]["central"] is None
    assert result.summary["accuracy"] == result.history[-1]["evaluate"]["accuracy"]
    assert set(result.summary["recall_per_class"]) == {"n", "p"}


def test_each_round_prints_a_line(tiny, capsys):
    result = simulate(tiny, CLIENTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"results in {result.path}"
    rounds = [line for line in lines if line.startswith("round ")]
    assert len(rounds) == 3
    for word in ("accuracy", "loss", "up", "down", " s", "left"):
        assert word in rounds[1]


def test_quiet_prints_nothing(tiny, capsys):
    simulate(tiny, CLIENTS, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "settings", "parts"),
    [
        ({"num_supernodes": 0}, {}, ["num-supernodes = 0"]),
        ({"num_supernodes": "3"}, {}, ["num-supernodes = '3'"]),
        ({"num_supernodes": True}, {}, ["num-supernodes = True"]),
        ({"engine": "spark"}, {}, ["engine = 'spark'", "local, flower"]),
        ({"workers": 0}, {}, ["workers = 0: must be a whole number >= 1"]),
        ({"workers": -1}, {}, ["workers = -1"]),
        ({"workers": "two"}, {}, ["workers = 'two'"]),
        ({"workers": True}, {}, ["workers = True"]),
        ({"workers": 2, "engine": "flower"}, {}, ["workers = 2", 'needs engine = "local"']),
        ({}, {"min-clients": 4}, ["min-clients = 4", "only 3"]),
    ],
)
def test_wrong_arguments_are_refused(tiny, refused, arguments, settings, parts):
    with refused(*parts):
        simulate(tiny | settings, **{"num_supernodes": CLIENTS, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "at_least"), [("all", 0.77), ("attention+head", 0.72)])
def test_trec_reaches_the_accuracy_of_the_prototype(tmp_path, shared_data, shared, at_least):
    result = simulate(
        {
            "dataset": "file",
            "data-path": str(shared_data / "trec"),
            "partitioner": "dirichlet",
            "num-rounds": 10,
            "shared": shared,
            "output-dir": str(tmp_path / "run"),
        },
        quiet=True,
    )
    assert result.summary["accuracy"] >= at_least
    if shared != "all":
        everything = 4 * result.summary["total_parameters"]
        for row in result.history[1:]:
            assert row["bytes_up"] < 10 * everything / 10


@pytest.mark.slow
def test_the_default_run_reaches_the_documented_accuracy(tmp_path):
    result = simulate({"output-dir": str(tmp_path / "run")}, quiet=True)
    assert result.summary["accuracy"] >= 0.85
