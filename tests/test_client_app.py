"""What leaves a node, message by message."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedattn_app import client_app
from fedattn_app.config import Config
from fedattn_app.errors import UserError
from fedattn_app.local_engine import LocalGrid, task_identity
from fedattn_app.model import build_model
from fedattn_app.parameters import get_arrays
from fedattn_app.scopes import BUILT_IN, scope_of


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
    assert "Jane Doe" in caplog.text  # the node itself is told all


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


def test_a_state_dir_that_cannot_be_written_sends_no_update(site, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    node = context(PERSONAL, data_path=site, state_dir=str(blocked / "state"))
    with pytest.raises(UserError, match="state-dir"):
        client_app.app(message(run_config=PERSONAL), node)


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
