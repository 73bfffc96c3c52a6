"""A run of fedbuff on the local engine: who is asked when, and what slow and failing clients do."""

import numpy as np
import pytest
from flwr.app import Array
from flwr.clientapp import ClientApp
from helpers.runs import QUICK, FailingClientApp

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import FIRST_NODE_ID, LocalGrid
from fedattn_app.errors import UserError
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate


def run_timed(folder, seconds, clients=10, **more):
    """Run on a clock, on which a partition takes `seconds(partition)` to train."""
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    config = Config.from_run_config({**QUICK, **keys, "output-dir": str(folder)})
    with task_identity():
        run_config = dict(config.to_run_config())
        grid = LocalGrid(client_app.app, clients, run_config, training_seconds=seconds)
        return server_app.run(PartitionGrid(grid), config), grid.clock


def one_slow(partition):
    return 10.0 if partition == 3 else 1.0


def test_a_slow_client_holds_nobody_up(tmp_path):
    """As many updates by buffers of five, one client ten times slower than the other nine."""
    synchronous, waited = run_timed(tmp_path / "sync", one_slow, num_rounds=12)
    buffered, took = run_timed(
        tmp_path / "buffer", one_slow, num_rounds=24, strategy="fedbuff", fedbuff_buffer_size=5
    )
    updates = [sum(row["clients"] for row in r.history) for r in (synchronous, buffered)]
    assert updates == [120, 120]
    assert waited == 120.0
    assert took <= waited / 2.5
    accuracies = [r.summary["accuracy"] for r in (synchronous, buffered)]
    assert accuracies[1] >= accuracies[0] - 0.02
    assert {row["partition"] for row in buffered.clients} == set(range(10))


class Silent(LocalGrid):
    """The second client never answers."""

    def pull_messages(self, message_ids):
        silent = FIRST_NODE_ID + 1
        kept = [k for k in message_ids if self._pushed[k][1].metadata.dst_node_id != silent]
        return super().pull_messages(kept)


@pytest.mark.parametrize("buffer_size", [2, 3])
def test_a_client_that_never_answers_is_given_up(tmp_path, buffer_size):
    """Also where the buffer cannot be full without it."""
    settings = {
        **QUICK,
        "strategy": "fedbuff",
        "fedbuff-buffer-size": buffer_size,
        "fedbuff-concurrency": 3,
    }
    folder = {"round-timeout": 0.2, "output-dir": str(tmp_path / "run")}
    config = Config.from_run_config(settings | folder)
    with task_identity():
        grid = PartitionGrid(Silent(client_app.app, 3, dict(config.to_run_config())))
        result = server_app.run(grid, config)
    assert [row["clients"] for row in result.history] == [0, 2, 2, 2, 2]
    assert {row["partition"] for row in result.clients} == {0, 2}


@pytest.mark.parametrize("fault", ["arrays", "metrics"])
def test_an_unsound_update_fills_no_place_in_the_buffer(tmp_path, fault):
    app = ClientApp()

    @app.train()
    def train(message, context):
        reply = client_app.app(message, context)
        if context.node_config["partition-id"] == 1 and fault == "arrays":
            record = reply.content["arrays"]
            record["head.bias"] = Array(np.full_like(record["head.bias"].numpy(), np.nan))
        elif context.node_config["partition-id"] == 1:
            reply.content["metrics"]["loss"] = -1.0
        return reply

    app.query()(client_app.describe)
    for size in (1, 2):
        settings = {
            **QUICK,
            "strategy": "fedbuff",
            "fedbuff-concurrency": 4,
            "fedbuff-buffer-size": size,
        }
        config = {**settings, "output-dir": str(tmp_path / f"run {size}")}
        result = simulate(config, 4, workers=1, quiet=True, clients=app)
        assert [row["clients"] for row in result.history[1:]] == [size] * 4
        assert {row["partition"] for row in result.clients} <= {0, 2, 3}


def test_a_fast_client_is_asked_once_between_two_steps(tmp_path):
    result, _ = run_timed(
        tmp_path / "run",
        lambda partition: 0.1 if partition == 0 else 1.0,
        clients=4,
        strategy="fedbuff",
        fedbuff_buffer_size=2,
        fedbuff_concurrency=4,
        num_rounds=6,
    )
    assert [row["clients"] for row in result.history] == [0, *[2] * 6]
    asked = [(row["round"], row["partition"]) for row in result.clients]
    assert len(asked) == len(set(asked)) == 12
    assert sum(partition == 0 for _, partition in asked) >= 3


def test_clients_of_an_asynchronous_run_evaluate_at_its_end(tmp_path):
    result, _ = run_timed(
        tmp_path / "run",
        one_slow,
        strategy="fedbuff",
        fedbuff_buffer_size=5,
        num_rounds=3,
        fraction_evaluate=1.0,
    )
    assert [row["evaluate"] is not None for row in result.history] == [False, False, False, True]
    scored = [row for row in result.clients if row["round"] == 3 and row["recall_per_class"]]
    assert len(scored) == 10  # the slow one too


def test_a_client_that_fails_at_once_does_not_fill_the_buffer(tmp_path):
    class Quick(LocalGrid):
        def arrival_time(self, message):
            quick = message.metadata.dst_node_id == FIRST_NODE_ID + 1
            return super().arrival_time(message) - (0.99 if quick else 0.0)

    settings = {**QUICK, "strategy": "fedbuff", "fedbuff-concurrency": 4, "fedbuff-buffer-size": 3}
    config = Config.from_run_config({**settings, "output-dir": str(tmp_path / "run")})
    with task_identity():
        grid = PartitionGrid(Quick(FailingClientApp(), 4, dict(config.to_run_config())))
        result = server_app.run(grid, config)
    assert [row["clients"] for row in result.history[1:]] == [3] * 4
    assert [row["failures"] for row in result.history[1:]] == [1] * 4


def test_a_failing_client_takes_its_place_in_the_buffer_and_is_counted(tmp_path):
    settings = {**QUICK, "strategy": "fedbuff", "fedbuff-concurrency": 3, "fedbuff-buffer-size": 3}
    config = {**settings, "output-dir": str(tmp_path / "run")}
    result = simulate(config, 3, workers=1, quiet=True, clients=FailingClientApp())
    assert [row["clients"] for row in result.history[1:]] == [2] * 4
    assert [row["failures"] for row in result.history[1:]] == [1] * 4


def test_a_buffer_that_can_never_be_full_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="fedbuff-buffer-size = 5: must be at most the number of clients"
    ):
        run_timed(tmp_path / "run", one_slow, clients=4, strategy="fedbuff", fedbuff_buffer_size=5)
