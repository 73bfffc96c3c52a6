"""A client refuses a message of a server with other labels, data, tokenizer or parameters."""

import pytest
from flwr.app import RecordDict
from helpers.data_files import write
from helpers.nodes import OPEN, PERSONAL, PRIVATE, SETTINGS, context, message

from fedattn_app import client_app
from fedattn_app.clients.agreement import REASONS, MismatchError, check_agreement, check_own_data
from fedattn_app.clients.factory import make_client
from fedattn_app.errors import UserError
from fedattn_app.policy.reasons import Reason
from fedattn_app.run_identity import RunIdentity

SERVER = RunIdentity(("no", "yes"), "a" * 64, "b" * 64, "c" * 64)
OTHER = {
    "labels-fingerprint": RunIdentity(("yes", "no"), SERVER.frozen, SERVER.tokenizer, "c" * 64),
    "frozen-fingerprint": RunIdentity(SERVER.labels, "0" * 64, SERVER.tokenizer, "c" * 64),
    "tokenizer-fingerprint": RunIdentity(SERVER.labels, SERVER.frozen, "0" * 64, "c" * 64),
    "data-fingerprint": RunIdentity(SERVER.labels, SERVER.frozen, SERVER.tokenizer, "0" * 64),
}


def test_equal_identities_agree():
    check_agreement(SERVER.to_message_config(), SERVER)


@pytest.mark.parametrize("key", REASONS)
def test_a_difference_is_named(key):
    with pytest.raises(MismatchError, match=REASONS[key]):
        check_agreement(SERVER.to_message_config(), OTHER[key])


@pytest.mark.parametrize("key", REASONS)
def test_what_one_side_does_not_have_is_not_compared(key):
    config = SERVER.to_message_config()
    del config[key]
    check_agreement(config, OTHER[key])


def test_an_identity_survives_its_metadata():
    identity = RunIdentity(("a, b", "ü"), "1", "2", "3", "4")
    assert RunIdentity.from_metadata(identity.to_metadata()) == identity


def test_every_message_of_a_run_is_compared_with_the_tokenizer_of_the_node(site):
    client = make_client(context(SETTINGS, data_path=site, **OPEN))
    parameters = client.get_parameters({})
    for call in (client.fit, client.evaluate):
        with pytest.raises(MismatchError, match="tokenizer"):
            call(parameters, {"server-round": 1, "tokenizer-fingerprint": "0" * 64})


def test_a_node_with_its_own_data_does_not_compare_them_with_the_servers(site):
    client = make_client(context(SETTINGS, data_path=site, **OPEN))
    config = {"server-round": 1, "data-fingerprint": "0" * 64}
    assert client.evaluate(client.get_parameters({}), config)[1] > 0


@pytest.mark.parametrize("run_config", [SETTINGS, PERSONAL, PRIVATE])
def test_own_data_that_change_during_a_run_stop_the_node(tmp_path, task_id, caplog, run_config):
    file = write(tmp_path / "site.csv", ["good", "bad"] * 20, ["yes", "no"] * 20)
    own = {"data_path": str(file), "state_dir": str(tmp_path / "state")}
    node = context(run_config, **own, **OPEN)
    assert not client_app.app(message(run_config=run_config), node).has_error()
    write(file, ["good", "bad"] * 21, ["yes", "no"] * 21)
    reply = client_app.app(message(run_config=run_config), node)
    assert reply.error.reason == Reason.USE_DATA
    write(file, ["good", "bad"] * 20, ["yes", "no"] * 20)
    assert not client_app.app(message(run_config=run_config), node).has_error()


def test_the_next_run_takes_the_data_as_they_are_then():
    """Runs may share a state: comparing them would tell whether two columns are equal."""
    state = RecordDict()
    for run in (1, 2):
        check_own_data(state, run, "site.csv", str(run) * 64)
    check_own_data(state, 1, "site.csv", "1" * 64)
    with pytest.raises(UserError, match="has changed"):
        check_own_data(state, 1, "site.csv", "2" * 64)


@pytest.mark.parametrize("column", ["text-column", "label-column"])
def test_runs_with_one_state_do_not_compare_their_columns(tmp_path, task_id, column):
    rows = [f"t{k},t{k},no,no" for k in range(39)] + ["last,other,no,yes"]
    file = tmp_path / "site.csv"
    file.write_text("\n".join(["text,words,label,sex", *rows]) + "\n")
    other = {"text-column": "words", "label-column": "sex"}[column]
    private = PRIVATE | {"target-epsilon": 1e-9, "noise-multiplier": 1.0}
    state = RecordDict()
    for run, changes in ((1, {}), (2, {column: other})):
        node = context(private | changes, data_path=str(file), state_dir=str(tmp_path / "state"))
        node.run_id, node.state = run, state
        reply = client_app.app(message(run_config=private), node)
        assert reply.content["metrics"]["budget-spent"] == 1


def test_personal_parameters_belong_to_the_order_of_the_labels(site):
    names = [
        make_client(context(PERSONAL | {"labels": labels}, data_path=site, **OPEN)).state_name
        for labels in ("no,yes", "yes,no")
    ]
    assert names[0] != names[1]
