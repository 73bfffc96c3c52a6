"""What leaves a node, message by message."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from helpers.data_files import write

from fedattn_app import client_app
from fedattn_app.clients.factory import make_client
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.errors import UserError
from fedattn_app.flower_compat import task_identity
from fedattn_app.models.batch import PADDING_MULTIPLE
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.tokenizer import HashingTokenizer
from fedattn_app.models.transformer import build_model
from fedattn_app.privacy.ledger import Ledger


@pytest.fixture
def caplog(caplog):
    """What goes into a node's own log, too, which Python's root logger does not see."""
    logging.getLogger("fedattn").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("fedattn").removeHandler(caplog.handler)


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


SETTINGS = {"model": "tiny", "vocabulary": 512, "dataset": "file", "labels": "no,yes"}
ROWS = "text,label\n" + "fine and good,yes\nbad and slow,no\n" * 20


def context(run_config=SETTINGS, **node_config):
    node = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(1, 2, node, RecordDict(), Config.from_run_config(run_config).to_run_config())


def message(kind="train", run_config=SETTINGS, **more):
    config = Config.from_run_config(run_config)
    arrays = get_arrays(build_model(config.model, 2, 1))
    names = scope_of(config.federation.shared, "frozen", BUILT_IN, arrays).shared
    record = ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items() if n in names})
    content = {"arrays": record, "config": ConfigRecord({"server-round": 1}), **more}
    return Message(RecordDict(content), 2, kind)


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.csv"
    path.write_text(ROWS)
    return str(path)


def test_a_training_reply_has_the_shared_arrays_by_name(site):
    asked = message()
    reply = client_app.app(asked, context(data_path=site))
    sent = asked.content["arrays"]
    assert list(reply.content["arrays"]) != []
    assert set(reply.content["arrays"]) == set(sent)
    for name, array in reply.content["arrays"].items():
        assert (array.dtype, array.shape) == (sent[name].dtype, sent[name].shape)
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == 36
    assert set(metrics) == {"num-examples", "loss", "accuracy", "seconds"}


def test_an_evaluation_reply_has_no_arrays(site):
    reply = client_app.app(message("evaluate"), context(data_path=site))
    assert not reply.content.array_records
    assert reply.content["metrics"]["num-examples"] == 4


def test_other_arrays_than_this_node_shares_are_refused(site):
    with pytest.raises(ValueError, match="shares other parameters than this node"):
        client_app.app(message(run_config=SETTINGS | {"shared": "head"}), context(data_path=site))


@pytest.mark.parametrize(
    "content",
    [
        "Jane Doe has HIV,yes\nJohn Roe drinks,no\n",  # no header: the first row would be quoted
        "text,label\nyes,Jane Doe has HIV\n",  # columns swapped
        "text,label\nJane Doe,yes,HIV\n",
        "",
    ],
)
def test_what_a_private_file_says_never_leaves_in_an_error(tmp_path, caplog, content):
    path = tmp_path / "Jane Doe.csv"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        client_app.app(message(), context(data_path=str(path)))
    assert str(caught.value) == "this node cannot use its data-path; its own log says why"
    assert caught.value.__suppress_context__
    assert "Jane Doe" in caplog.text


PERSONAL = SETTINGS | {"local": "personal", "shared": "attention"}


def test_personal_parameters_go_to_the_state_dir(site, tmp_path, caplog):
    node = context(PERSONAL, data_path=site, partition_id=3, state_dir=str(tmp_path / "state"))
    client_app.app(message(run_config=PERSONAL), node)
    (file,) = (tmp_path / "state").iterdir()
    assert file.name.startswith("personal-3-")
    assert not node.state
    assert caplog.text == ""


def test_a_real_node_without_a_state_dir_is_told_what_it_would_lose(site, caplog):
    node = context(PERSONAL, data_path=site)
    client_app.app(message(run_config=PERSONAL), node)
    assert "no state-dir in node-config" in caplog.text
    assert node.state


def test_a_simulated_node_is_not(caplog):
    settings = {"model": "tiny", "vocabulary": 512, "local": "personal", "shared": "attention"}
    node = context(settings, partition_id=0, num_partitions=2)
    arrays = get_arrays(build_model(Config.from_run_config(settings).model, 6, 1))
    record = ArrayRecord({n: Array(a) for n, a in arrays.items() if ".attention." in n})
    content = {"arrays": record, "config": ConfigRecord({"server-round": 1})}
    client_app.app(Message(RecordDict(content), 2, "train"), node)
    assert caplog.text == ""
    assert node.state


def test_a_state_dir_that_cannot_be_written_sends_no_update(site, tmp_path, caplog):
    """The reason names a folder of the node's, which only the node may know."""
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    node = context(PERSONAL, data_path=site, state_dir=str(blocked / "state"))
    with pytest.raises(UserError) as caught:
        client_app.app(message(run_config=PERSONAL), node)
    assert str(caught.value) == client_app.REASON_STAYS_HERE
    assert f"state-dir = {blocked / 'state'}" in caplog.text


@pytest.mark.parametrize(
    ("node_config", "answer"),
    [
        ({"partition_id": 4, "num_partitions": 9}, {"partition-id": 4, "num-partitions": 9}),
        ({}, {"partition-id": -1, "num-partitions": 0}),
    ],
)
def test_a_node_tells_which_it_is(node_config, answer):
    reply = client_app.app(Message(RecordDict(), 2, "query"), context(**node_config))
    assert reply.content["node"] == answer


def test_a_local_grid_reports_what_a_client_raised(site):
    grid = LocalGrid(client_app.app, 1, {"batch-size": 0})
    (reply,) = grid.send_and_receive([message()])
    assert reply.has_error()
    assert "batch-size = 0" in reply.error.reason


# Differential privacy

PRIVATE = SETTINGS | {"privacy": "dp-sgd", "noise-multiplier": 1.0, "batch-size": 32}
PUBLIC = {"privacy": "none", "noise-multiplier": 0.0}
KEPT_HERE = "this node cannot train with these privacy settings; its own log says why"


def ask(node, kind="train", **changes):
    return client_app.app(message(kind, PRIVATE | changes), node)


@pytest.fixture
def private_node(site, tmp_path):
    """A function that makes a real node with data of its own and a place for its ledger."""

    def node(run_config=PRIVATE, **node_config):
        own = {"data_path": site, "state_dir": str(tmp_path / "state"), **node_config}
        return context(run_config, **own)

    return node


def ledger_of(tmp_path, name="privacy-ledger"):
    return Ledger(RecordDict(), tmp_path / "state" / f"{name}.json")


def test_a_private_reply_has_the_metrics_named_and_no_more(private_node, tmp_path):
    node = private_node()
    reply = ask(node)
    metrics = reply.content["metrics"]
    assert set(metrics) == {"num-examples", "epsilon", "budget-spent"}
    assert metrics["num-examples"] == 1
    assert set(reply.content) == {"arrays", "metrics"}
    (entry,) = ledger_of(tmp_path).entries
    assert (entry.run, entry.server_round, entry.epsilon) == (1, 1, metrics["epsilon"])
    assert Ledger(node.state).entries == [entry]
    for name, array in reply.content["arrays"].items():
        assert np.isfinite(array.numpy()).all(), name


def test_a_private_evaluation_has_noisy_counts_and_no_more(private_node, tmp_path):
    run_config = PRIVATE | {"evaluate-epsilon": 1.0}
    reply = client_app.app(message("evaluate", run_config), private_node(run_config))
    counts = {f"{kind}-{k}" for kind in ("support", "predicted", "correct") for k in range(2)}
    assert set(reply.content["metrics"]) == {"num-examples", "epsilon", "budget-spent", *counts}
    assert set(reply.content) == {"metrics"}
    assert [entry.kind for entry in ledger_of(tmp_path).entries] == ["evaluate"]


def test_a_private_node_spends_on_after_a_restart(private_node, tmp_path):
    told = [ask(private_node()).content["metrics"]["epsilon"] for _ in range(2)]
    assert len(ledger_of(tmp_path).entries) == 2
    assert told[1] > told[0]


def test_a_node_whose_ledger_is_lost_sends_nothing_at_all(private_node, tmp_path):
    ask(private_node())
    (tmp_path / "state" / "privacy-ledger.json").unlink()
    with pytest.raises(UserError, match="this node cannot read its privacy ledger"):
        client_app.app(message(), private_node(SETTINGS))


def test_a_node_that_has_spent_sends_nothing_without_noise(refused, private_node):
    ask(private_node())
    for run_config in (SETTINGS, PRIVATE | {"privacy": "client-dp"}):
        with refused(f'privacy = "{run_config.get("privacy", "none")}"', "privacy ledger"):
            client_app.app(message(), private_node(run_config))
    assert not client_app.app(message(), private_node(SETTINGS, ledger="others")).has_error()


@pytest.mark.parametrize(
    ("run_config", "kept"),
    [
        (PRIVATE | {"dataset": "triage", "labels": ""}, "privacy ledgers"),
        (SETTINGS | {"shared": "attention", "local": "personal"}, "personal parameters"),
    ],
)
def test_a_run_is_not_carried_on_by_a_node_that_has_kept_nothing(refused, site, run_config, kept):
    own = {"data_path": site} if kept == "personal parameters" else {}
    with refused("resume-from", "no state-dir", kept):
        make_client(context(run_config | {"resume-from": "run"}, **own))


ODD_ROWS = {
    "another label": ("csv", "some text,maybe\n"),
    "no label": ("csv", "some text,\n"),
    "fewer cells": ("csv", "some text\n"),
    "a list for a label": ("jsonl", '{"text": "some text", "label": ["yes"]}\n'),
    "a list for a text": ("jsonl", '{"text": ["some text"], "label": "maybe"}\n'),
    "other columns": ("JSONL", '{"words": "some text"}\n'),
}


@pytest.mark.parametrize("row", ODD_ROWS)
@pytest.mark.parametrize("rows", [40, 0])
def test_no_answer_tells_of_a_single_row(private_node, tmp_path, caplog, row, rows):
    """Whoever starts a run chooses labels and columns: a refusal would be exact, and free."""
    suffix, odd = ODD_ROWS[row]
    path = tmp_path / f"odd.{suffix}"
    head, good = ("", '{"text": "good", "label": "yes"}\n')
    if suffix == "csv":
        head, good = "text,label\n", "good,yes\n"
    path.write_text(head + good * rows + odd)
    run_config = PRIVATE | {"evaluate-epsilon": 1.0, "validation-fraction": 0.5}
    for kind in ("train", "evaluate"):
        reply = client_app.app(
            message(kind, run_config), private_node(run_config, data_path=str(path))
        )
        assert not reply.has_error()
    assert f"{path}: 1 of {rows + 1} examples have no effect" in caplog.text
    assert {entry.kind for entry in ledger_of(tmp_path).entries} >= {"train"}


def test_a_node_with_a_file_of_its_own_reads_no_other(private_node, tmp_path, caplog):
    path = tmp_path / "other.csv"
    path.write_text("name,diagnosis\nJane Doe,flu\n")
    run_config = PRIVATE | {"labels": "", "data-path": str(path)}
    with pytest.raises(UserError) as caught:
        client_app.app(message(run_config=PRIVATE), private_node(run_config))
    assert str(caught.value) == "this node cannot use its data-path; its own log says why"
    assert "diagnosis" not in caplog.text


def test_what_a_tokenizer_cannot_do_is_kept_from_the_server(private_node, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no token for 'hiv'")

    monkeypatch.setattr(HashingTokenizer, "encode", fail)
    with pytest.raises(UserError, match="this node cannot use its data-path"):
        ask(private_node())
    assert "no token for 'hiv'" in caplog.text


def test_how_one_text_is_padded_shows_in_no_other(private_node, tmp_path):
    """A mask hides finite numbers: a server might send a model that makes NaN of padding."""
    run_config = PRIVATE | {"evaluate-epsilon": 1e6, "shared": "all"}
    asked = message("evaluate", run_config)
    record = asked.content["arrays"]
    embedding = record["embedding.weight"].numpy().copy()
    embedding[0] = 3e38
    record["embedding.weight"] = Array(embedding)
    told = []
    for number, last in enumerate(("bad " * PADDING_MULTIPLE, "bad " * (PADDING_MULTIPLE + 1))):
        folder = tmp_path / f"site {number}"
        for split in ("train", "test"):
            write(folder / f"{split}.csv", ["bad " * PADDING_MULTIPLE] * 39 + [last], ["no"] * 40)
        node = private_node(run_config, data_path=str(folder), ledger=f"ledger-{number}")
        metrics = client_app.app(asked, node).content["metrics"]
        told.append([metrics[f"{kind}-{k}"] for kind in ("predicted", "correct") for k in (0, 1)])
    assert np.abs(np.subtract(*told)).max() <= 1


def test_a_column_that_a_files_head_lacks_is_told(private_node, caplog):
    run_config = PRIVATE | {"label-column": "sex"}
    with pytest.raises(UserError, match="cannot use its data-path"):
        client_app.app(message(run_config=run_config), private_node(run_config))
    assert "no column 'sex' (label-column); there are text, label" in caplog.text


def test_the_node_config_names_its_ledger(private_node, tmp_path):
    ask(private_node(ledger="ward-3_b"))
    assert len(ledger_of(tmp_path, "ward-3_b").entries) == 1
    assert not ledger_of(tmp_path).entries


@pytest.mark.parametrize("name", ["", "../elsewhere", "a/b", "a.json", "/tmp/x", "a b", "a\nb"])
def test_a_ledger_stays_in_the_state_dir(private_node, tmp_path, caplog, name):
    with pytest.raises(UserError) as caught:
        ask(private_node(ledger=name))
    assert str(caught.value) == KEPT_HERE
    assert f"ledger = {name!r}: must be a name of letters" in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [float("nan"), "8", 0, -1.0, True])
def test_a_max_epsilon_is_a_number_above_0(private_node, tmp_path, caplog, value):
    with pytest.raises(UserError) as caught:
        ask(private_node(max_epsilon=value))
    assert str(caught.value) == KEPT_HERE
    assert f"max-epsilon = {value!r}: must be a number above 0" in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [float("nan"), "1e-5", 0, -1e-5, True])
def test_a_max_delta_is_a_number_above_0(refused, private_node, tmp_path, value):
    with refused(f"max-delta = {value!r}: must be a number above 0"):
        ask(private_node(max_delta=value))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("content", ["", "[]", "privacy?"])
def test_a_ledger_that_cannot_be_read_stops_the_node(private_node, tmp_path, caplog, content):
    file = tmp_path / "state" / "privacy-ledger.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        ask(private_node())
    assert str(caught.value) == KEPT_HERE
    assert caught.value.__suppress_context__
    assert f"{file}: is not a readable privacy ledger" in caplog.text
    assert file.read_text() == content


def test_a_ledger_that_was_removed_stops_the_node(private_node, tmp_path, caplog):
    node = private_node()
    ask(node)
    (tmp_path / "state" / "privacy-ledger.json").unlink()
    with pytest.raises(UserError) as caught:
        ask(node)
    assert str(caught.value) == KEPT_HERE
    assert "lacks entries that this node has written" in caplog.text
    with pytest.raises(UserError, match=KEPT_HERE):  # nor does another run start from nothing
        ask(private_node())


@pytest.mark.parametrize(
    ("key", "near"), [("max_epsilonn", "max-epsilon"), ("statedir", "state-dir")]
)
def test_a_misspelled_wish_of_the_owner_is_not_passed_over(site, key, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        client_app.app(message(), context(data_path=site, **{key: 1.0}))


def test_the_keys_of_another_app_are_passed_over(site):
    assert not client_app.app(message(), context(data_path=site, rack="7b")).has_error()


def test_a_delta_that_is_too_large_does_not_tell_how_many_examples_there_are(private_node, caplog):
    run_config = PRIVATE | {"target-delta": 0.1}
    with pytest.raises(UserError) as caught:
        client_app.app(message(run_config=run_config), private_node(run_config))
    assert str(caught.value) == KEPT_HERE
    assert "1 / 40" in caplog.text


def test_a_ledger_that_cannot_be_written_is_kept_from_the_server(private_node, tmp_path, caplog):
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    reply = ask(private_node(state_dir=str(blocked / "state")))
    assert reply.error.reason == client_app.REASON_STAYS_HERE
    assert "Jane Doe" in caplog.text


@pytest.mark.parametrize(
    ("changes", "node_config", "key"),
    [
        ({}, {"state_dir": None}, "no state-dir"),
        ({}, {"state_dir": "state"}, "state-dir = state: must be an absolute path"),
        ({"data-path": "their.csv"}, {"data_path": None}, "dataset = 'file'"),
        ({"dataset": "/home"}, {"data_path": None, "max_epsilon": 1.0}, "dataset = '/home'"),
        ({"model": "their/model", "vocabulary": 8192}, {}, "model = 'their/model'"),
        ({"reproducible-noise": True}, {}, "reproducible-noise = true"),
        ({"reproducible-noise": True}, {"state_dir": None}, "reproducible-noise = true"),
        (PUBLIC, {"max_epsilon": 1.0}, 'privacy = "none"'),
        (PUBLIC | {"privacy": "client-dp", "noise-multiplier": 1.0}, {"max_epsilon": 1.0},
         'privacy = "client-dp"'),
        (PUBLIC, {"max_delta": 1e-3}, 'privacy = "none"'),
        ({"target-delta": 2e-6}, {"max_delta": 1e-6}, "target-delta = 2e-06"),
    ],
)  # fmt: skip
def test_what_undoes_the_protection_is_refused(refused, site, tmp_path, changes, node_config, key):
    own = {"data_path": site, "state_dir": str(tmp_path / "state"), **node_config}
    node = context(PRIVATE | changes, **{k: v for k, v in own.items() if v is not None})
    with refused(key, "this node"):
        client_app.app(message(), node)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("key", ["max-epsilon", "max-delta"])
def test_a_limit_protects_a_node_without_data_of_its_own_too(refused, key):
    settings = {"model": "tiny", "vocabulary": 512}
    limit = {key.replace("-", "_"): 1.0}
    with refused('privacy = "none"', key):
        make_client(context(settings, **limit))
    settings |= {"privacy": "dp-sgd", "noise-multiplier": 1.0, "reproducible-noise": True}
    with refused("reproducible-noise = true"):
        make_client(context(settings, **limit))


def test_a_delta_up_to_the_owners_is_taken(private_node):
    run_config = PRIVATE | {"target-delta": 1e-6}
    assert make_client(private_node(run_config, max_delta=1e-6)).epsilon == 0.0


def test_the_owners_max_epsilon_ends_the_training(private_node, tmp_path):
    node = private_node(max_epsilon=6.0)
    told = [ask(node).content["metrics"] for _ in range(3)]
    assert [metrics["budget-spent"] for metrics in told] == [0, 1, 1]
    assert [metrics["num-examples"] for metrics in told] == [1, 0, 0]
    assert {metrics["epsilon"] for metrics in told} == {ledger_of(tmp_path).entries[0].epsilon}


def test_a_simulated_node_keeps_its_ledger_in_its_context():
    settings = {"model": "tiny", "vocabulary": 512, "privacy": "dp-sgd", "noise-multiplier": 1.0}
    node = context(settings | {"reproducible-noise": True}, partition_id=0, num_partitions=2)
    client = make_client(node)
    client.data = ClientData(client.data.train[np.arange(8)], client.data.validation)
    *_, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    (entry,) = Ledger(node.state).entries
    assert make_client(node).epsilon == entry.epsilon == metrics["epsilon"]
