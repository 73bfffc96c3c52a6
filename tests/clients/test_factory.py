"""The client of a node: where its state and its ledger are, and which examples it has."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from helpers.data_files import write
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
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.engine.virtual_node import VirtualContext
from fedattn_app.models.batch import PADDING_MULTIPLE
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.policy.reasons import Reason
from fedattn_app.privacy.ledger import Ledger

pytestmark = pytest.mark.usefixtures("task_id")


def allowed_of(settings):
    """The keys with which a node's owner allows a run with these settings."""
    private = settings.get("privacy") == "dp-sgd"
    return {"max_epsilon": 1e3, "max_delta": 0.01} if private else OPEN


# Few examples


@pytest.mark.parametrize(
    ("num_rows", "more", "said"),
    [
        (9, {}, True),
        (10, {}, False),
        (40, {"validation-fraction": 0.0}, True),
        (9, {"fraction-evaluate": 0.0}, False),
        (9, {**PRIVATE, "target-delta": 0.01}, False),  # no node evaluates
        (9, {**PRIVATE, "target-delta": 0.01, "evaluate-epsilon": 4.0}, True),
    ],
)
def test_the_log_of_a_node_says_that_it_holds_out_nothing(tmp_path, node_log, num_rows, more, said):
    own = write(
        tmp_path / "own.csv",
        ["some text"] * num_rows,
        ["no", "yes"] * (num_rows // 2) + ["no"] * (num_rows % 2),
    )
    settings = SETTINGS | more
    node = context(
        settings, data_path=str(own), state_dir=str(tmp_path / "state"), **allowed_of(settings)
    )
    client_app.app(message(run_config=settings), node)
    text = f"this node holds out none of its {num_rows} examples at validation-fraction"
    assert (text in node_log.text) is said


# The state between messages


def test_personal_parameters_are_saved_in_the_state_dir(site, tmp_path, node_log):
    own = {"data_path": site, "state_dir": str(tmp_path / "state"), **OPEN}
    node = context(PERSONAL, partition_id=3, **own)
    client_app.app(message(run_config=PERSONAL), node)
    (file,) = (tmp_path / "state").iterdir()
    assert file.name.startswith("personal-3-")
    assert not node.state.array_records
    assert node_log.text == ""


def test_a_real_node_without_a_state_dir_logs_a_warning(site, node_log):
    node = context(PERSONAL, data_path=site, **OPEN)
    client_app.app(message(run_config=PERSONAL), node)
    assert "no state-dir in node-config" in node_log.text
    assert node.state


def test_a_simulated_node_without_a_state_dir_logs_nothing(node_log):
    settings = {"model": "tiny", "vocabulary": 512, "local": "personal", "shared": "attention"}
    node = context(settings, VirtualContext, partition_id=0, num_partitions=2)
    arrays = get_arrays(build_model(Config.from_run_config(settings).model, 6, 1))
    record = ArrayRecord({n: Array(a) for n, a in arrays.items() if ".attention." in n})
    content = {"arrays": record, "config": ConfigRecord({"server-round": 1})}
    client_app.app(Message(RecordDict(content), 2, "train"), node)
    assert node_log.text == ""
    assert node.state


# The ledger


def test_epsilon_includes_the_entries_from_before_a_restart(private_node, tmp_path):
    before, after = (train(private_node()).content["metrics"]["epsilon"] for _ in range(2))
    assert len(ledger_of(tmp_path).entries) == 2
    assert before < after


def test_a_simulated_node_keeps_its_ledger_in_its_context():
    settings = {"model": "tiny", "vocabulary": 512, "privacy": "dp-sgd", "noise-multiplier": 1.0}
    node = context(
        settings | {"reproducible-noise": True}, VirtualContext, partition_id=0, num_partitions=2
    )
    client = make_client(node)
    client.data = ClientData(client.data.train[np.arange(8)], client.data.validation)
    *_, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    (entry,) = Ledger(node.state).entries
    assert make_client(node).epsilon == entry.epsilon == metrics["epsilon"]


@pytest.mark.parametrize("content", ["", "[]", "privacy?"])
def test_a_ledger_that_cannot_be_read_stops_the_node(private_node, tmp_path, node_log, content):
    file = tmp_path / "state" / "privacy-ledger.json"
    file.parent.mkdir()
    file.write_text(content)
    assert train(private_node()).error.reason == PRIVACY_REFUSAL
    assert f"{file}: is not a readable privacy ledger" in node_log.text
    assert file.read_text() == content


def test_a_ledger_that_was_removed_stops_the_node(private_node, tmp_path, node_log):
    node = private_node()
    train(node)
    (tmp_path / "state" / "privacy-ledger.json").unlink()
    assert train(node).error.reason == PRIVACY_REFUSAL
    assert "lacks entries that this node has written" in node_log.text
    # A node without its old context does not start an empty ledger either.
    assert train(private_node()).error.reason == PRIVACY_REFUSAL


def test_a_node_that_lost_its_ledger_refuses_runs_without_privacy_too(private_node, tmp_path):
    train(private_node())
    (tmp_path / "state" / "privacy-ledger.json").unlink()
    reply = client_app.app(message(), private_node(SETTINGS, **OPEN))
    assert reply.error.reason == Reason.LEDGER


# The examples


def test_a_node_with_its_own_file_reads_no_other_file(private_node, tmp_path, node_log):
    path = tmp_path / "other.csv"
    path.write_text("name,diagnosis\nJane Doe,flu\n")
    run_config = PRIVATE | {"labels": "", "data-path": str(path)}
    reply = client_app.app(message(run_config=PRIVATE), private_node(run_config))
    assert reply.error.reason == Reason.USE_DATA
    assert "diagnosis" not in node_log.text


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
def test_a_single_odd_row_causes_no_error(private_node, tmp_path, node_log, row, rows):
    """The server chooses labels and columns: a refusal would be an exact answer that costs no ε."""
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
    assert f"{path}: 1 of {rows + 1} examples have no effect" in node_log.text
    assert {entry.kind for entry in ledger_of(tmp_path).entries} >= {"train"}


def test_the_padding_for_one_text_does_not_change_the_scores_of_others(private_node, tmp_path):
    """A mask hides finite numbers only; a server could send a model that turns padding into NaN."""
    run_config = PRIVATE | {"evaluate-epsilon": 1e6, "shared": "all"}
    request = message("evaluate", run_config)
    record = request.content["arrays"]
    embedding = record["embedding.weight"].numpy().copy()
    embedding[0] = 3e38
    record["embedding.weight"] = Array(embedding)
    counts = []
    for number, last in enumerate(("bad " * PADDING_MULTIPLE, "bad " * (PADDING_MULTIPLE + 1))):
        folder = tmp_path / f"site {number}"
        for split in ("train", "test"):
            write(folder / f"{split}.csv", ["bad " * PADDING_MULTIPLE] * 39 + [last], ["no"] * 40)
        own = {"data_path": str(folder), "ledger": f"ledger-{number}", "max_epsilon": 1e7}
        node = private_node(run_config, **own)
        metrics = client_app.app(request, node).content["metrics"]
        counts.append([metrics[f"{kind}-{k}"] for kind in ("predicted", "correct") for k in (0, 1)])
    assert np.abs(np.subtract(*counts)).max() <= 1
