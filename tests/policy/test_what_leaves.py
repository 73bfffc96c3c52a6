"""Which runs a real node refuses, and which texts stay on the node."""

import pytest
from flwr.app import Message, RecordDict
from helpers.nodes import (
    OPEN,
    PERSONAL,
    PRIVACY_REFUSAL,
    PRIVATE,
    SETTINGS,
    context,
    ledger_of,
    message,
    train,
)

from fedattn_app import client_app
from fedattn_app.clients.factory import make_client
from fedattn_app.models.tokenizer import HashingTokenizer
from fedattn_app.policy.reasons import Reason, RefusalError

pytestmark = pytest.mark.usefixtures("task_id")

PUBLIC = {"privacy": "none", "noise-multiplier": 0.0}
CLIENT_DP = PUBLIC | {"privacy": "client-dp", "noise-multiplier": 1.0}


def reason(reply):
    """The reason that a reply gives, which must be one of the fixed sentences."""
    return Reason(reply.error.reason)


def test_the_node_config_names_the_ledger(private_node, tmp_path):
    train(private_node(ledger="ward-3_b"))
    assert len(ledger_of(tmp_path, "ward-3_b").entries) == 1
    assert not ledger_of(tmp_path).entries


def test_a_mistake_in_the_node_config_stops_every_run(private_node, tmp_path, node_log):
    reply = train(private_node(max_epsilon=0))
    assert reason(reply) == Reason.NODE_CONFIG
    assert "max-epsilon = 0" in node_log.text
    assert not (tmp_path / "state").exists()


# Runs that the owner does not allow


@pytest.mark.parametrize(
    ("changes", "node_config", "why", "detail"),
    [
        (PUBLIC, {}, Reason.UNPROTECTED, "allow-unprotected"),
        (CLIENT_DP, {}, Reason.UNPROTECTED, 'privacy = "client-dp"'),
        (PUBLIC, {"data_path": None, "max_epsilon": 1.0}, Reason.UNPROTECTED, "max-epsilon"),
        ({"data-path": "their.csv"}, {"data_path": None}, Reason.DATA, "their.csv"),
        ({"dataset": "/home"}, {"data_path": None, "max_epsilon": 1.0}, Reason.DATA, "/home"),
        (PUBLIC | {"dataset": "imdb"}, {"data_path": None}, Reason.DATA, "imdb"),
        ({"model": "their/model", "vocabulary": 8192}, {}, Reason.MODEL, "their/model"),
        (
            PUBLIC | {"model": "/models/x", "vocabulary": 8192, "dataset": "triage", "labels": ""},
            {"data_path": None},
            *(Reason.MODEL, "/models/x"),
        ),
        ({"reproducible-noise": True}, {}, Reason.REPRODUCIBLE_NOISE, "protects nobody"),
        ({"target-delta": 2e-6}, {"max_delta": 1e-6}, Reason.DELTA, "max-delta = 1e-06"),
        ({"target-delta": 2e-5}, {}, Reason.DELTA, "max-delta = 1e-05"),
        ({}, {"state_dir": None}, Reason.STATE_DIR, "no state-dir"),
        ({"max-length": 65}, {"max_tokens": 64}, Reason.LENGTH, "max-tokens = 64"),
        ({"width": 512}, {"max_parameters": 10**5}, Reason.SIZE, "max-parameters = 100000"),
        ({"width": 8192, "layers": 64, "feedforward": 65536}, {}, Reason.SIZE, "1000000000"),
        ({"local-epochs": 101}, {}, Reason.EPOCHS, "max-local-epochs = 100"),
        ({"batch-size": 65}, {"max_batch_size": 64}, Reason.BATCH, "max-batch-size = 64"),
        ({"physical-batch-size": 65}, {"max_batch_size": 64}, Reason.BATCH, "batch-size = 65"),
    ],
)  # fmt: skip
def test_a_run_that_the_owner_does_not_allow_is_refused(
    site, tmp_path, node_log, changes, node_config, why, detail
):
    own = {"data_path": site, "state_dir": str(tmp_path / "state"), **node_config}
    node = context(PRIVATE | changes, **{k: v for k, v in own.items() if v is not None})
    reply = client_app.app(message(), node)
    assert reason(reply) == why
    assert detail in node_log.text
    assert not (tmp_path / "state").exists()
    assert not node.state


def test_a_model_that_the_owner_names_may_be_large(private_node, pretrained_folder):
    folder = str(pretrained_folder("bert"))
    run_config = {k: v for k, v in PRIVATE.items() if k != "vocabulary"}
    run_config |= {"model": "their/model", "max-length": 32}
    assert make_client(private_node(run_config, model_path=folder, max_parameters=1)).model


def test_a_delta_up_to_max_delta_is_accepted(private_node):
    run_config = PRIVATE | {"target-delta": 1e-6}
    assert make_client(private_node(run_config, max_delta=1e-6)).epsilon == 0.0


def test_a_node_stops_training_at_max_epsilon(private_node, tmp_path):
    node = private_node(max_epsilon=6.0)
    replies = [train(node).content["metrics"] for _ in range(3)]
    assert [metrics["budget-spent"] for metrics in replies] == [0, 1, 1]
    assert [metrics["num-examples"] for metrics in replies] == [1, 0, 0]
    assert {metrics["epsilon"] for metrics in replies} == {ledger_of(tmp_path).entries[0].epsilon}


def test_a_node_whose_owner_set_no_limit_still_refuses_to_add_no_noise(private_node, tmp_path):
    run_config = PRIVATE | {"noise-multiplier": 1e-4}
    reply = client_app.app(message(run_config=run_config), private_node(run_config))
    assert reply.content["metrics"]["budget-spent"] == 1
    assert not ledger_of(tmp_path).entries


def test_a_larger_delta_of_a_run_does_not_open_a_spent_limit_again(private_node, tmp_path):
    """The limit is held against the owner's δ, whatever a run calls its own."""
    node = {"max_epsilon": 6.0, "max_delta": 1e-2}
    while not train(private_node(**node)).content["metrics"]["budget-spent"]:
        pass
    spent = len(ledger_of(tmp_path).entries)
    for delta in (1e-12, 1e-6, 1e-2):
        run_config = PRIVATE | {"target-delta": delta}
        reply = client_app.app(message(run_config=run_config), private_node(run_config, **node))
        assert reply.content["metrics"]["budget-spent"] == 1
    assert len(ledger_of(tmp_path).entries) == spent > 0


def test_the_owners_delta_must_suit_the_number_of_examples(private_node, node_log):
    reply = train(private_node(max_epsilon=6.0, max_delta=0.1))
    assert reason(reply) == Reason.TRAIN_PRIVATELY
    assert "max-delta = 0.1: must be below 1 / number of examples" in node_log.text


def test_a_node_with_ledger_entries_refuses_runs_without_dp_sgd(private_node):
    train(private_node())
    for run_config in (SETTINGS, PRIVATE | {"privacy": "client-dp"}):
        reply = client_app.app(message(), private_node(run_config, **OPEN))
        assert reason(reply) == Reason.SPENT
    other = private_node(SETTINGS, ledger="others", **OPEN)
    assert not client_app.app(message(), other).has_error()


@pytest.mark.parametrize(
    ("run_config", "missing"),
    [
        (PRIVATE | {"dataset": "triage", "labels": ""}, "privacy ledgers"),
        (SETTINGS | {"shared": "attention", "local": "personal"}, "personal parameters"),
    ],
)
def test_a_node_without_a_state_dir_does_not_resume_a_run(refused, site, run_config, missing):
    own = {"data_path": site, **OPEN} if missing == "personal parameters" else {}
    with refused("resume-from", "no state-dir", missing):
        make_client(context(run_config | {"resume-from": "run"}, **own))


def test_a_node_without_keys_of_an_owner_trains_on_the_built_in_corpus_only():
    settings = {"model": "tiny", "vocabulary": 512}
    assert len(make_client(context(settings)).data.train)
    with pytest.raises(RefusalError) as caught:
        make_client(context(SETTINGS | {"data-path": "some.csv"}))
    assert caught.value.reason == Reason.DATA


# Errors whose text stays on the node


@pytest.mark.parametrize(
    "content",
    [
        "Jane Doe has HIV,yes\nJohn Roe drinks,no\n",  # no header: the first row would be quoted
        "text,label\nyes,Jane Doe has HIV\n",  # columns swapped
        "text,label\nJane Doe,yes,HIV\n",
        "",
    ],
)
def test_an_error_does_not_quote_a_private_file(tmp_path, node_log, content):
    path = tmp_path / "Jane Doe.csv"
    path.write_text(content)
    reply = client_app.app(message(), context(data_path=str(path), **OPEN))
    assert reason(reply) == Reason.USE_DATA
    assert "Jane Doe" in node_log.text


def test_the_text_of_a_tokenizer_error_stays_on_the_node(private_node, monkeypatch, node_log):
    def fail(*_):
        raise RuntimeError("no token for 'hiv'")

    monkeypatch.setattr(HashingTokenizer, "encode", fail)
    assert reason(train(private_node())) == Reason.USE_DATA
    assert "no token for 'hiv'" in node_log.text


def test_a_missing_column_is_named_in_the_log_of_the_node(private_node, node_log):
    run_config = PRIVATE | {"label-column": "sex"}
    reply = client_app.app(message(run_config=run_config), private_node(run_config))
    assert reason(reply) == Reason.USE_DATA
    assert "no column 'sex' (label-column); there are text, label" in node_log.text


def test_the_error_for_a_large_delta_does_not_reveal_the_number_of_examples(private_node, node_log):
    run_config = PRIVATE | {"target-delta": 0.1}
    node = private_node(run_config, max_delta=0.2)
    reply = client_app.app(message(run_config=run_config), node)
    assert reply.error.reason == PRIVACY_REFUSAL
    assert "1 / 40" in node_log.text


def test_a_node_that_cannot_write_its_state_dir_sends_no_update(site, tmp_path, node_log):
    """The error names a folder of the node, so its text must not leave."""
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    node = context(PERSONAL, data_path=site, state_dir=str(blocked / "state"), **OPEN)
    reply = client_app.app(message(run_config=PERSONAL), node)
    assert not reply.has_content()
    assert reason(reply)
    assert f"{blocked / 'state'}" in node_log.text


def test_an_error_while_writing_the_ledger_stays_on_the_node(private_node, tmp_path, node_log):
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    assert reason(train(private_node(state_dir=str(blocked / "state"))))
    assert "Jane Doe" in node_log.text


def test_a_run_config_that_is_wrong_is_not_answered_in_detail(site, node_log):
    node = context(data_path=site, **OPEN)
    node.run_config["labels"] = 'no, "yes'
    assert reason(client_app.app(message(), node)) == Reason.RUN_CONFIG
    assert "labels" in node_log.text


@pytest.mark.parametrize("record", ["arrays", "config"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_message_without_its_records_is_answered_with_a_fixed_sentence(site, kind, record):
    request = message(kind)
    del request.content[record]
    assert reason(client_app.app(request, context(data_path=site, **OPEN))) == Reason.ANSWER


def test_a_query_tells_nothing_about_a_wrong_node_config():
    node = context(data_path="/home/jane doe", partition_id="ward of Jane Doe", max_epsilon=0)
    reply = client_app.app(Message(RecordDict(), 2, "query"), node)
    answer = {"partition-id": -1, "num-partitions": 0, "own-data": True}
    assert dict(reply.content["node"]) == answer


def test_an_error_waits_for_the_grid_too(site, monkeypatch):
    waited = []
    monkeypatch.setattr(client_app, "wait_for_release", lambda began, every: waited.append(every))
    client_app.app(message(), context(data_path=site, reply_every=2))
    client_app.app(message(), context(data_path=site, reply_every=3, **OPEN))
    assert waited == [2.0, 3.0]
