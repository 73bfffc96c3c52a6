"""What is refused before the first message, without a trace, and lines about few examples."""

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from helpers.data_files import write
from helpers.nodes import as_real
from helpers.runs import QUICK, run_app
from torch import nn

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import task_identity
from fedattn_app.models.transformer import build_model
from fedattn_app.privacy.accounting import Steps, epsilon_of
from fedattn_app.privacy.protections import protection_of
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate

CLIENTS = 3
DP_SGD = {"privacy": "dp-sgd", "noise-multiplier": 1.0}
CLIENT_DP = {"privacy": "client-dp", "noise-multiplier": 1.0}
KRUM = {"strategy": "krum", "malicious-clients": 1}


@pytest.fixture
def rows(tmp_path):
    """A function that writes a file with `count` rows, and returns the settings that read it."""

    def settings(count, **more):
        texts = [f"word{k % 7} text" for k in range(count)]
        path = write(tmp_path / "rows.csv", texts, ["ny"[k % 2] for k in range(count)])
        return {"dataset": "file", "data-path": str(path), **more}

    return settings


# Settings that no round can have, and parts of the one line that says so.
REFUSED = {
    "delta, one example too many": (
        {**DP_SGD, "target-delta": 1 / 400},
        ["target-delta = 0.0025", "1 / number of examples, here 1 / 400"],
    ),
    "delta for clients": ({**CLIENT_DP, "target-delta": 0.4}, ["target-delta = 0.4", "1 / 3"]),
    "one round of dp-sgd": (
        {**DP_SGD, "target-epsilon": 0.05},
        ["target-epsilon = 0.05", "0 of 3 clients", "noise-multiplier = 1", "2 are needed"],
    ),
    "one round of client-dp": (
        {**CLIENT_DP, "target-epsilon": 0.05},
        ["target-epsilon = 0.05", "noise-multiplier = 1", "one round"],
    ),
    "rounding under client-dp": (
        {**CLIENT_DP, "max-update-norm": 1e-7},
        ["max-update-norm = 1e-07: must be at least 7"],
    ),
    "no noise for scores": (
        {**DP_SGD, "evaluate-epsilon": 1e-4, "fraction-evaluate": 1.0},
        ["evaluate-epsilon = 0.0001", "no noise is enough"],
    ),
    "no parameter": ({"shared": "nope.*"}, ['shared = "nope.*"', "matches no parameter"]),
    "no regex": ({"shared": "(("}, ['shared = "(("', "regex"]),
    "label shares": (
        {"partitioner": "label-shares"},
        ["label-shares", "2 shares for a client, and the data has 6 labels"],
    ),
    "labels of clients": (
        {"partitioner": "pathological", "classes-per-client": 9},
        ["classes-per-client = 9", "6 labels"],
    ),
    "replies": ({"min-replies": 4}, ["min-replies = 4", "3 of 3"]),
    "robust": (KRUM, ["needs 5 clients", "there are 3"]),
    "buffer": ({"strategy": "fedbuff"}, ["fedbuff-buffer-size = 5", "number of clients = 3"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_round_can_have_leaves_no_folder(tmp_path, refused, name):
    settings, parts = REFUSED[name]
    with refused(*parts):
        simulate(QUICK | settings | {"output-dir": str(tmp_path / "run")}, CLIENTS, quiet=True)
    assert list(tmp_path.iterdir()) == []
    # So it is with `flwr run`, which calls no `simulate`.
    with refused(*parts):
        run_app(client_app.app, QUICK | settings | {"output-dir": str(tmp_path / "run")}, CLIENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_same_is_refused_on_flowers_engine(tmp_path, refused):
    settings, parts = REFUSED["delta, one example too many"]
    config = QUICK | settings | {"output-dir": str(tmp_path / "run")}
    with refused(*parts):
        simulate(config, CLIENTS, engine="flower", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "num_clients", "parts"),
    [
        ({"min-replies": 4}, CLIENTS, ["min-replies = 4", "3 of 3"]),
        ({}, CLIENTS + 1, ["4 clients", "split its data over 3"]),
    ],
)
def test_a_refused_run_leaves_the_folder_to_resume_as_it_was(
    tmp_path, refused, more, num_clients, parts
):
    settings = {**QUICK, "num-rounds": 1, "output-dir": str(tmp_path / "run")}
    result = simulate(settings, CLIENTS, quiet=True)
    before = contents(result.path)
    again = {"num-rounds": 2, "resume-from": str(result.path), **more}
    with refused(*parts):
        run_app(client_app.app, settings | again, num_clients)
    assert contents(result.path) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_clients_that_do_not_come_leave_no_folder(tmp_path):
    class Lonely(LocalGrid):
        def get_node_ids(self):
            return []

    def waiting(self, minimum):
        raise RunFailedError("none came")

    config = Config.from_run_config({**QUICK, "output-dir": str(tmp_path / "run")})
    with task_identity():
        grid = PartitionGrid(Lonely(client_app.app, CLIENTS, dict(config.to_run_config())))
        grid.wait_for_clients = waiting.__get__(grid)
        with pytest.raises(RunFailedError, match="none came"):
            server_app.run(grid, config)
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_split_is_refused_by_the_server(tmp_path, refused, rows):
    with refused("9 clients", "only 4 training examples"):
        run_app(client_app.app, QUICK | rows(4) | {"output-dir": str(tmp_path / "run")}, 9)
    assert not (tmp_path / "run").exists()


def test_a_split_with_examples_for_one_client_is_refused(tmp_path, refused, rows):
    settings = QUICK | rows(40, partitioner="dirichlet", alpha=1e-4) | {"num-rounds": 1}
    settings["output-dir"] = str(tmp_path / "run")
    with refused("2 clients", "examples to 1 of them", "2 are needed (min-replies = 2)"):
        simulate(settings, 2, quiet=True)
    assert not (tmp_path / "run").exists()
    assert simulate(settings | {"min-replies": 1}, 2, quiet=True).summary["rounds"] == 1


def test_one_client_of_many_may_have_too_little_budget(tmp_path, rows):
    """It says so in its first round, and the others go on."""
    # 40, 80 and 120 examples, of which 36, 72 and 108 are trained on: 32 or 64 count.
    small, large = (epsilon_of([Steps(1.0, 8 / size, size // 8)], 1e-5) for size in (32, 64))
    assert small > large
    settings = rows(240, partitioner="linear", **DP_SGD, **{"batch-size": 8})
    settings |= {"target-epsilon": (small + large) / 2, "num-rounds": 1}
    result = simulate(QUICK | settings | {"output-dir": str(tmp_path / "run")}, CLIENTS, quiet=True)
    assert result.history[-1]["clients"] == 2


def test_a_model_in_which_examples_mix_is_refused_before_any_message(
    tmp_path, refused, monkeypatch
):
    def with_batch_norm(config, labels, *more):
        model = build_model(config.model, len(labels), config.federation.seed)
        model.norm = nn.BatchNorm1d(2)
        return model

    monkeypatch.setattr("fedattn_app.server.preflight.build_classifier", with_batch_norm)
    config = {**QUICK, **DP_SGD, "output-dir": str(tmp_path / "run")}
    with refused("batch normalisation"):
        simulate(config, CLIENTS, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_cannot_be_clipped_is_refused_before_any_message(refused):
    protection = protection_of(Config.from_run_config(CLIENT_DP))
    protection.check_model(nn.Linear(2, 2), {"w": np.zeros((2, 2), np.float32)})
    with refused("client-dp", "'scale'", "clipped"):
        protection.check_model(nn.Linear(2, 2), {"scale": np.zeros((), np.float32)})
    with refused("max-update-norm = 1: must be at least", "too large"):
        protection.check_model(nn.Linear(2, 2), {"w": np.full((2, 2), 1e8, np.float32)})


def test_a_node_with_data_of_its_own_is_not_judged_by_the_data_of_the_run(tmp_path):
    """Only such a node knows how many examples it has."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        if context.node_config["partition-id"] == 1:
            context = as_real(context, data_path=str(tmp_path / "own.csv"))
        return client_app.app(message, context)

    with task_identity():
        for nodes, num_splits in ((client_app.app, CLIENTS), (app, 0)):
            grid = PartitionGrid(LocalGrid(nodes, CLIENTS, {}))
            grid.wait_for_clients(0)
            assert (grid.num_partitions, grid.num_splits) == (CLIENTS, num_splits)


def test_a_run_with_nodes_that_have_data_of_their_own_is_not_refused(tmp_path):
    """The built-in corpus would have too many examples for this δ; nobody knows it of the nodes."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        return client_app.app(message, as_real(context, data_path=str(tmp_path / "own.csv")))

    app.train()(client_app.app)
    config = {**QUICK, **DP_SGD, "target-delta": 1 / 400, "output-dir": str(tmp_path / "run")}
    with pytest.raises(RunFailedError, match="round 1: all 3 clients failed"):
        run_app(app, config, CLIENTS)


# Few examples


@pytest.fixture
def run_lines(node_log):
    """A function that runs a federation and returns its result and its lines in the log."""

    def run(settings, num_clients):
        result = simulate(
            QUICK | {"num-rounds": 2, "fraction-evaluate": 1.0} | settings, num_clients
        )
        return result, node_log.messages

    return run


def test_clients_that_hold_out_nothing_are_counted_before_round_one(tmp_path, rows, run_lines):
    settings = rows(40) | {"output-dir": str(tmp_path / "run")}
    result, lines = run_lines(settings, 8)
    assert result.summary["accuracy"] is None
    [line] = [line for line in lines if "fewer than 10 examples" in line]
    assert line.startswith("8 of 8 clients have fewer than 10 examples and hold out none")
    assert "validation-fraction = 0.1" in line
    assert "accuracy stays null" in line
    assert lines.index(line) < [line.split()[0] for line in lines].index("round")
    assert sum("no client has held-out examples" in line for line in lines) == 1


def test_some_clients_without_held_out_examples(tmp_path, rows, run_lines):
    settings = rows(60, partitioner="linear") | {"output-dir": str(tmp_path / "run")}
    result, lines = run_lines(settings, 4)  # about 6, 12, 18 and 24 examples
    assert result.summary["accuracy"] is not None
    [line] = [line for line in lines if "fewer than 10 examples" in line]
    assert line.startswith("1 of 4 clients")
    assert "null" not in line


def test_clients_without_examples_are_counted(tmp_path, rows, run_lines):
    settings = rows(40, partitioner="dirichlet", alpha=0.05)
    result, lines = run_lines(settings | {"output-dir": str(tmp_path / "run")}, 12)
    sizes = [row["num_examples"] for row in result.clients if row["round"] == 1]
    assert f"{sizes.count(0)} of 12 clients have no examples, and train nothing" in lines


@pytest.mark.parametrize("more", [{}, {"fraction-evaluate": 0.0}])
def test_nothing_is_said_where_nothing_is_missing(tmp_path, rows, run_lines, more):
    enough = rows(40 if more else 120) | {"output-dir": str(tmp_path / "run")} | more
    _, lines = run_lines(enough, 8 if more else 4)
    assert not any("examples" in line for line in lines)


def test_patience_needs_clients_that_hold_out_examples(tmp_path, rows, refused):
    settings = rows(40, patience=2) | {
        "output-dir": str(tmp_path / "run"),
        "fraction-evaluate": 1.0,
    }
    with refused("patience = 2", "8 of 8 clients hold out no examples", "validation-fraction"):
        simulate(QUICK | settings, 8, quiet=True)
    assert not (tmp_path / "run").exists()
