"""How many replies a round needs: what counts, what happens with fewer, and what is kept."""

import numpy as np
import pytest
from flwr.app import Array
from flwr.clientapp import ClientApp
from helpers.run_folders import make_config
from helpers.runs import QUICK, run_app, same_arrays

from fedattn_app import client_app, server_app
from fedattn_app.config import TrainingConfig
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.errors import RunFailedError
from fedattn_app.flower_compat import task_identity
from fedattn_app.results.checkpoint import Checkpoint
from fedattn_app.results.run_result import RunResult
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.server.quorum import Quorum
from fedattn_app.simulation import simulate

CLIENTS = 4


def quorum(num_clients, **settings):
    config = make_config(**settings)
    return Quorum(config, config.federation.fraction_evaluate, num_clients)


FEDBUFF = {"strategy": "fedbuff"}


@pytest.mark.parametrize(
    ("num_clients", "settings", "needed", "num_connected"),
    [
        (1, {}, 1, 1),
        (2, {}, 2, 2),
        (100, {}, 2, 2),
        (100, {"fraction_train": 0.1}, 2, 20),
        (19, {"fraction_train": 0.1}, 1, 1),
        (20, {"fraction_train": 0.1}, 2, 20),
        (9, {"min_replies": 1}, 1, 1),
        (9, {"min_replies": 5}, 5, 5),
        (9, {"min_replies": 3, "fraction_train": 0.5}, 3, 6),
        (9, FEDBUFF, 2, 2),
        (9, FEDBUFF | {"fedbuff_buffer_size": 1}, 1, 1),
        (9, FEDBUFF | {"min_replies": 4}, 4, 4),
        (9, {"strategy": "krum", "malicious_clients": 1}, 5, 5),
        (9, {"strategy": "krum", "malicious_clients": 1, "min_replies": 7}, 7, 7),
        (9, {"strategy": "krum", "malicious_clients": 1, "min_replies": 1}, 5, 5),
    ],
)
def test_a_round_needs(num_clients, settings, needed, num_connected):
    counts = quorum(num_clients, **settings)
    counts.check()
    assert (counts.of_updates(), counts.num_connected) == (needed, num_connected)


def test_one_reply_is_no_longer_enough_once_a_round_asks_two():
    counts = quorum(1)
    assert [counts.of_updates(asked) for asked in (0, 1, 2, 9)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("num_clients", "settings", "num_asked", "needed"),
    [
        (1, {}, 1, 1),
        (9, {}, 9, 2),
        (9, {}, 1, 2),
        (9, {"fraction_evaluate": 0.2}, 1, 1),
        (9, {"min_replies": 5}, 9, 5),
        (9, {"min_replies": 5, "fraction_evaluate": 0.4}, 3, 3),
        (9, {"min_replies": 1}, 9, 1),
    ],
)
def test_the_scores_of_clients_need(num_clients, settings, num_asked, needed):
    assert quorum(num_clients, **settings).of_scores(num_asked) == needed


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"min_replies": 4}, ["min-replies = 4", "at most", "3 of 3"]),
        ({"min_replies": 2, "fraction_train": 0.5}, ["min-replies = 2", "1 of 3"]),
        ({"strategy": "krum"}, None),
        ({"strategy": "krum", "malicious_clients": 1}, ["needs 5 clients in a round", "are 3"]),
    ],
)
def test_more_replies_than_a_round_asks_for_are_refused(refused, settings, parts):
    if parts is None:
        quorum(3, **settings).check()
        return
    with refused(*parts):
        quorum(3, **settings).check()


def test_a_run_that_can_never_have_enough_replies_leaves_no_folder(tmp_path, refused):
    with refused("min-replies = 5", "4 of 4"):
        simulate(config_in(tmp_path, **{"min-replies": 5}), CLIENTS, quiet=True)
    assert list(tmp_path.iterdir()) == []


# Runs in which clients fail


def config_in(folder, **more):
    return {**QUICK, "num-rounds": 2, "output-dir": str(folder / "run"), **more}


def raise_error(reply):
    raise RuntimeError("out of order")


def send_nan(reply):
    bias = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array(np.full_like(bias.numpy(), np.nan))


def send_no_arrays(reply):
    del reply.content["arrays"]


def report_nothing(reply):
    del reply.content["metrics"]["loss"]


def have_no_examples(reply):
    reply.content["metrics"]["num-examples"] = 0


WAYS = {
    raise_error: "RuntimeError: out of order",
    send_nan: "head.bias holds NaN",
    send_no_arrays: "cannot be decoded",
    report_nothing: "metrics differ in loss",
    have_no_examples: "3 without examples",
}


def app_in_which(change, partitions, kind="train", rounds=(2,)):
    """Our ClientApp, but `change` is applied to the replies of `partitions` in `rounds`."""
    app = ClientApp()

    def passing(message, context):
        server_round = message.content["config"]["server-round"]
        reply = client_app.app(message, context)
        of_kind = message.metadata.message_type == kind and server_round in rounds
        if of_kind and context.node_config["partition-id"] in partitions:
            change(reply)
        return reply

    app.train()(passing)
    app.evaluate()(passing)
    app.query()(client_app.describe)
    return app


@pytest.mark.parametrize("change", WAYS, ids=lambda change: change.__name__)
def test_one_reply_among_many_never_makes_a_model(tmp_path, change):
    whole = run_app(client_app.app, config_in(tmp_path / "whole"), CLIENTS)
    config = config_in(tmp_path)
    with pytest.raises(RunFailedError) as caught:
        run_app(app_in_which(change, {0, 1, 3}), config, CLIENTS)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for part in ("round 2: 1 of 4 clients", "2 are needed (min-replies = 2)", WAYS[change]):
        assert part in text
    assert config["output-dir"] in text
    check_only_round_one_is_there(tmp_path / "run")
    # The run goes on from the round before, as if nothing had been.
    rest = simulate({"resume-from": config["output-dir"]}, quiet=True)
    assert same_arrays(rest, whole)


def check_only_round_one_is_there(folder):
    assert Checkpoint.read(folder).server_round == 1
    assert [row["round"] for row in RunResult(folder).history] == [0, 1]
    assert {row["round"] for row in RunResult(folder).clients} == {1}
    assert not list(folder.glob("*.safetensors"))
    assert not (folder / "summary.json").exists()


def test_the_first_round_too_can_be_tried_again(tmp_path):
    whole = run_app(client_app.app, config_in(tmp_path / "whole"), CLIENTS)
    app = app_in_which(raise_error, {1, 2, 3}, rounds=(1,))
    with pytest.raises(RunFailedError, match="round 1: 1 of 4 clients"):
        run_app(app, config_in(tmp_path), CLIENTS)
    rest = simulate({"resume-from": str(tmp_path / "run")}, quiet=True)
    assert same_arrays(rest, whole)


def test_a_resumed_run_whose_first_round_fails_can_be_finished_without_it(tmp_path):
    app = app_in_which(raise_error, {0, 1, 2}, rounds=(3,))
    config = config_in(tmp_path)
    finished = run_app(app, config, CLIENTS)
    arrays, accuracy = finished.arrays, finished.summary["accuracy"]
    resumed = {**config, "resume-from": config["output-dir"]}
    with pytest.raises(RunFailedError, match="round 3: 1 of 4 clients"):
        run_app(app, resumed | {"num-rounds": 3}, CLIENTS)
    failed = RunResult(finished.path)
    assert failed.state == "failed"
    assert not (failed.path / "summary.json").exists()
    again = run_app(app, resumed, CLIENTS)
    assert again.summary["accuracy"] == accuracy
    assert all((again.arrays[name] == array).all() for name, array in arrays.items())


def test_reasons_are_told_once_and_not_without_end(tmp_path):
    def each_its_own(reply):
        raise RuntimeError(f"reason {reply.content['metrics']['loss']}")

    with pytest.raises(RunFailedError) as caught:
        run_app(app_in_which(each_its_own, range(1, 9)), config_in(tmp_path), 9)
    assert str(caught.value).count("reason ") == 3
    app = app_in_which(raise_error, range(1, 9))
    with pytest.raises(RunFailedError) as caught:
        run_app(app, config_in(tmp_path / "other"), 9)
    assert str(caught.value).count("out of order") == 1


def test_clients_that_do_not_answer_in_time_are_counted(tmp_path):
    class Silent(LocalGrid):
        def send_and_receive(self, messages, **more):
            for reply in super().send_and_receive(messages, **more):
                training = reply.metadata.message_type == "train"
                if not training or reply.metadata.src_node_id == min(self.get_node_ids()):
                    yield reply

    config = make_config(**{k.replace("-", "_"): v for k, v in config_in(tmp_path).items()})
    with task_identity():
        grid = Silent(client_app.app, CLIENTS, dict(config.to_run_config()))
        with pytest.raises(RunFailedError, match=r"1 of 4 clients .*: 3 did not reply within 3600"):
            server_app.run(PartitionGrid(grid), config)


@pytest.mark.parametrize(
    ("settings", "failing", "ends"),
    [
        ({"min-replies": 1}, {1, 2, 3}, False),
        ({}, {2, 3}, False),
        ({"min-replies": 3}, {2, 3}, True),
        ({"min-replies": 4}, {3}, True),
        ({"fraction-train": 0.25}, {}, False),
        ({"shared": "attention", "local": "personal"}, {1, 2, 3}, True),
        ({"strategy": "fedsgd", "learning-rate": TrainingConfig.learning_rate}, {1, 2, 3}, True),
        ({"strategy": "fedavgm", "server-momentum": 0.9}, {1, 2, 3}, True),
        ({"warmup-rounds": 1}, {1, 2, 3}, True),
        ({"strategy": "krum"}, {2, 3}, True),  # it needs 3
    ],
)
def test_how_many_replies_are_enough(tmp_path, settings, failing, ends):
    config = config_in(tmp_path, **settings)
    app = app_in_which(raise_error, failing)
    if ends:
        with pytest.raises(RunFailedError, match=f"round 2: {CLIENTS - len(failing)} of 4 clients"):
            run_app(app, config, CLIENTS)
        check_only_round_one_is_there(tmp_path / "run")
    else:
        assert run_app(app, config, CLIENTS).summary["rounds"] == 2


@pytest.mark.parametrize(
    ("buffer_size", "min_replies", "failing", "ends"),
    [
        (3, 0, {1, 2, 3}, True),
        (3, 0, {2, 3}, False),
        (3, 1, {1, 2, 3}, False),
        (3, 3, {2, 3}, True),
        (1, 0, {1, 2, 3}, False),
    ],
)
def test_how_much_of_a_buffer_is_enough(tmp_path, buffer_size, min_replies, failing, ends):
    settings = {"strategy": "fedbuff", "fedbuff-buffer-size": buffer_size}
    config = config_in(tmp_path, **settings, **{"min-replies": min_replies})
    app = app_in_which(raise_error, failing, rounds=(1, 2))
    if ends:
        with pytest.raises(RunFailedError, match=f"round 1: {CLIENTS - len(failing)} of 4 clients"):
            run_app(app, config, CLIENTS)
        assert Checkpoint.read(tmp_path / "run").server_round == 0
    else:
        assert run_app(app, config, CLIENTS).summary["rounds"] == 2


def test_the_buffer_limits_the_replies_that_can_be_asked_for(refused):
    with refused("min-replies = 4: not with strategy", "fedbuff-buffer-size"):
        make_config(strategy="fedbuff", fedbuff_buffer_size=3, min_replies=4)


def test_a_rule_does_not_see_the_updates_of_a_round_with_too_few(tmp_path, monkeypatch):
    from strategies import WeightedFedAvg

    seen = []
    combine = WeightedFedAvg.aggregate_train
    monkeypatch.setattr(
        WeightedFedAvg,
        "aggregate_train",
        lambda self, server_round, replies: (
            seen.append(server_round) or combine(self, server_round, replies)
        ),
    )
    with pytest.raises(RunFailedError, match="round 2: 1 of 4"):
        run_app(app_in_which(raise_error, {0, 1, 2}), config_in(tmp_path), CLIENTS)
    assert seen == [1]


def test_a_round_waits_for_the_clients_that_it_needs(tmp_path):
    class Leaving(LocalGrid):
        trained = False

        def send_and_receive(self, messages, **more):
            replies = list(super().send_and_receive(messages, **more))
            self.trained |= any(r.metadata.message_type == "train" for r in replies)
            return replies

        def get_node_ids(self):
            return list(super().get_node_ids())[: 1 if self.trained else CLIENTS]

    settings = config_in(tmp_path, **{"round-timeout": 0.3})
    config = make_config(**{k.replace("-", "_"): v for k, v in settings.items()})
    with task_identity():
        grid = Leaving(client_app.app, CLIENTS, dict(config.to_run_config()))
        with pytest.raises(RunFailedError, match=r"1 of 2 clients connected in 0\.3 s"):
            server_app.run(PartitionGrid(grid), config)
    check_only_round_one_is_there(tmp_path / "run")


# Noise on the server: who answered is private


@pytest.mark.parametrize("min_replies", [0, 4])
def test_with_noise_on_the_server_no_reply_decides_whether_a_round_counts(tmp_path, min_replies):
    privacy = {"privacy": "client-dp", "noise-multiplier": 1.0, "min-replies": min_replies}
    result = run_app(
        app_in_which(raise_error, {1, 2, 3}, rounds=(1, 2)), config_in(tmp_path, **privacy), CLIENTS
    )
    assert [row["clients"] for row in result.history] == [0, 1, 1]
    whole = run_app(client_app.app, config_in(tmp_path / "whole", **privacy), CLIENTS)
    assert result.summary["epsilon"] == whole.summary["epsilon"]


# The scores of clients


def refuse_to_evaluate(reply):
    raise RuntimeError("out of order")


def test_the_score_of_one_client_decides_nothing(tmp_path, easy_rows, caplog):
    config = config_in(tmp_path, **easy_rows, **{"fraction-evaluate": 1.0, "num-rounds": 3})
    app = app_in_which(refuse_to_evaluate, {0, 1, 2}, "evaluate", rounds=(2, 3))
    result = run_app(app, config, CLIENTS)
    assert [row["evaluate"] is not None for row in result.history] == [False, True, False, False]
    assert result.summary["best_round"] == 1
    assert result.summary["accuracy"] is None
    assert result.summary["worst_client_accuracy"] is None
    text = "1 of 4 clients report scores on held-out examples, 2 are needed (min-replies)"
    assert caplog.text.count(text) == 1  # once per run
    allowed = config_in(tmp_path / "allowed", **easy_rows)
    allowed |= {"fraction-evaluate": 1.0, "min-replies": 1}
    assert run_app(app, allowed, CLIENTS).summary["accuracy"] is not None


@pytest.fixture
def easy_rows(tmp_path):
    """Settings of a data set without a test split, of which every client holds out a part."""
    path = tmp_path / "rows.csv"
    rows = [f"{'bad' if k % 2 else 'good'} word{k % 7},{'np'[k % 2]}" for k in range(80)]
    path.write_text("\n".join(["text,label", *rows]))
    return {"dataset": "file", "data-path": str(path)}


def test_nobody_holds_out_examples_is_said_once(tmp_path, easy_rows, caplog):
    config = config_in(tmp_path, **easy_rows)
    config |= {"fraction-evaluate": 1.0, "validation-fraction": 0.0}
    result = run_app(client_app.app, config, CLIENTS)
    assert result.summary["accuracy"] is None
    assert caplog.text.count("no client has held-out examples") == 1
    assert "validation-fraction = 0" in caplog.text
