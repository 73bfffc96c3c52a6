"""What the owner of a node allows, and which texts stay on the node."""

import pytest
from helpers.nodes import (
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
from fedattn_app.errors import UserError
from fedattn_app.models.tokenizer import HashingTokenizer

pytestmark = pytest.mark.usefixtures("task_id")

PUBLIC = {"privacy": "none", "noise-multiplier": 0.0}


# Keys of the node-config


@pytest.mark.parametrize(
    ("key", "near"), [("max_epsilonn", "max-epsilon"), ("statedir", "state-dir")]
)
def test_a_misspelled_key_of_the_node_config_is_refused(site, key, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        client_app.app(message(), context(data_path=site, **{key: 1.0}))


def test_keys_of_other_apps_are_ignored(site):
    assert not client_app.app(message(), context(data_path=site, rack="7b")).has_error()


def test_the_node_config_names_the_ledger(private_node, tmp_path):
    train(private_node(ledger="ward-3_b"))
    assert len(ledger_of(tmp_path, "ward-3_b").entries) == 1
    assert not ledger_of(tmp_path).entries


@pytest.mark.parametrize("name", ["", "../elsewhere", "a/b", "a.json", "/tmp/x", "a b", "a\nb"])
def test_an_invalid_ledger_name_is_refused(private_node, tmp_path, node_log, name):
    with pytest.raises(UserError) as caught:
        train(private_node(ledger=name))
    assert str(caught.value) == PRIVACY_REFUSAL
    assert f"ledger = {name!r}: must be a name of letters" in node_log.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [float("nan"), "8", 0, -1.0, True])
def test_a_max_epsilon_that_is_not_a_number_above_0_is_refused(
    private_node, tmp_path, node_log, value
):
    with pytest.raises(UserError) as caught:
        train(private_node(max_epsilon=value))
    assert str(caught.value) == PRIVACY_REFUSAL
    assert f"max-epsilon = {value!r}: must be a number above 0" in node_log.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [float("nan"), "1e-5", 0, -1e-5, True])
def test_a_max_delta_that_is_not_a_number_above_0_is_refused(
    refused, private_node, tmp_path, value
):
    with refused(f"max-delta = {value!r}: must be a number above 0"):
        train(private_node(max_delta=value))
    assert not (tmp_path / "state").exists()


# Runs that the owner does not allow


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
def test_settings_that_undo_the_protection_are_refused(
    refused, site, tmp_path, changes, node_config, key
):
    own = {"data_path": site, "state_dir": str(tmp_path / "state"), **node_config}
    node = context(PRIVATE | changes, **{k: v for k, v in own.items() if v is not None})
    with refused(key, "this node"):
        client_app.app(message(), node)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("key", ["max-epsilon", "max-delta"])
def test_a_limit_also_protects_a_node_without_its_own_data(refused, key):
    settings = {"model": "tiny", "vocabulary": 512}
    limit = {key.replace("-", "_"): 1.0}
    with refused('privacy = "none"', key):
        make_client(context(settings, **limit))
    settings |= {"privacy": "dp-sgd", "noise-multiplier": 1.0, "reproducible-noise": True}
    with refused("reproducible-noise = true"):
        make_client(context(settings, **limit))


def test_a_delta_up_to_max_delta_is_accepted(private_node):
    run_config = PRIVATE | {"target-delta": 1e-6}
    assert make_client(private_node(run_config, max_delta=1e-6)).epsilon == 0.0


def test_a_node_stops_training_at_max_epsilon(private_node, tmp_path):
    node = private_node(max_epsilon=6.0)
    replies = [train(node).content["metrics"] for _ in range(3)]
    assert [metrics["budget-spent"] for metrics in replies] == [0, 1, 1]
    assert [metrics["num-examples"] for metrics in replies] == [1, 0, 0]
    assert {metrics["epsilon"] for metrics in replies} == {ledger_of(tmp_path).entries[0].epsilon}


def test_a_node_with_ledger_entries_refuses_runs_without_dp_sgd(refused, private_node):
    train(private_node())
    for run_config in (SETTINGS, PRIVATE | {"privacy": "client-dp"}):
        with refused(f'privacy = "{run_config.get("privacy", "none")}"', "privacy ledger"):
            client_app.app(message(), private_node(run_config))
    assert not client_app.app(message(), private_node(SETTINGS, ledger="others")).has_error()


@pytest.mark.parametrize(
    ("run_config", "missing"),
    [
        (PRIVATE | {"dataset": "triage", "labels": ""}, "privacy ledgers"),
        (SETTINGS | {"shared": "attention", "local": "personal"}, "personal parameters"),
    ],
)
def test_a_node_without_a_state_dir_does_not_resume_a_run(refused, site, run_config, missing):
    own = {"data_path": site} if missing == "personal parameters" else {}
    with refused("resume-from", "no state-dir", missing):
        make_client(context(run_config | {"resume-from": "run"}, **own))


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
    with pytest.raises(UserError) as caught:
        client_app.app(message(), context(data_path=str(path)))
    assert str(caught.value) == "this node cannot use its data-path; its own log says why"
    assert caught.value.__suppress_context__
    assert "Jane Doe" in node_log.text


def test_the_text_of_a_tokenizer_error_stays_on_the_node(private_node, monkeypatch, node_log):
    def fail(*_):
        raise RuntimeError("no token for 'hiv'")

    monkeypatch.setattr(HashingTokenizer, "encode", fail)
    with pytest.raises(UserError, match="this node cannot use its data-path"):
        train(private_node())
    assert "no token for 'hiv'" in node_log.text


def test_a_missing_column_is_named_in_the_log_of_the_node(private_node, node_log):
    run_config = PRIVATE | {"label-column": "sex"}
    with pytest.raises(UserError, match="cannot use its data-path"):
        client_app.app(message(run_config=run_config), private_node(run_config))
    assert "no column 'sex' (label-column); there are text, label" in node_log.text


def test_the_error_for_a_large_delta_does_not_reveal_the_number_of_examples(private_node, node_log):
    run_config = PRIVATE | {"target-delta": 0.1}
    with pytest.raises(UserError) as caught:
        client_app.app(message(run_config=run_config), private_node(run_config))
    assert str(caught.value) == PRIVACY_REFUSAL
    assert "1 / 40" in node_log.text


def test_a_node_that_cannot_write_its_state_dir_sends_no_update(site, tmp_path, node_log):
    """The error names a folder of the node, so its text must not leave."""
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    node = context(PERSONAL, data_path=site, state_dir=str(blocked / "state"))
    with pytest.raises(UserError) as caught:
        client_app.app(message(run_config=PERSONAL), node)
    assert str(caught.value) == client_app.REASON_STAYS_HERE
    assert f"state-dir = {blocked / 'state'}" in node_log.text


def test_an_error_while_writing_the_ledger_stays_on_the_node(private_node, tmp_path, node_log):
    blocked = tmp_path / "Jane Doe"
    blocked.write_text("")
    reply = train(private_node(state_dir=str(blocked / "state")))
    assert reply.error.reason == client_app.REASON_STAYS_HERE
    assert "Jane Doe" in node_log.text
