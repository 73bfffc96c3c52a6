"""Each function against Flower's own objects: a failure says which private part has changed."""

import json
from dataclasses import replace
from importlib import import_module
from inspect import signature

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.fab import Fab
from helpers.bundles import FOREIGN_APP, files_of, foreign_files

from fedattn_app import flower_compat
from fedattn_app.flower_compat import (
    LOCAL_RUN_ID,
    SERVER_NODE_ID,
    Gate,
    Run,
    build_bundle,
    empty_run,
    failure_reply,
    flower_home,
    message_with_metadata,
    protobuf_size,
    set_message_id,
    set_source_node,
    supernode_options,
    task_identity,
)


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


@pytest.fixture
def message():
    return Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, "train")


def test_a_message_takes_the_given_id_and_its_reply_refers_to_it(message):
    set_message_id(message, "number one")
    assert message.metadata.message_id == "number one"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "number one"


def test_a_reply_takes_the_given_sender(message):
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.src_node_id == 7
    set_source_node(reply, 3)
    assert reply.metadata.src_node_id == 3


def test_a_message_is_made_from_metadata_and_content(message):
    content = RecordDict({"config": ConfigRecord({"b": 2})})
    made = message_with_metadata(message.metadata, content)
    assert isinstance(made, Message)
    assert made.content is content
    assert made.metadata.dst_node_id == 7
    assert made.metadata.message_type == "train"


def test_a_failure_is_a_reply_with_flowers_error_code(message):
    set_message_id(message, "number one")
    reply = failure_reply(message, "out of memory")
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "out of memory")
    assert reply.metadata.src_node_id == 7
    assert reply.metadata.reply_to_message_id == "number one"


def test_the_protobuf_size_is_the_length_of_what_is_sent():
    array = Array(np.zeros((3, 4)))
    assert array.stype == flower_compat.NUMPY_FORMAT
    content = RecordDict({"a": ArrayRecord({"w": array}), "c": ConfigRecord({"b": 2})})
    assert protobuf_size(content) == len(recorddict_to_proto(content).SerializeToString())


def test_an_empty_run_has_the_given_id_and_the_type_that_a_grid_takes():
    run = empty_run(5)
    assert run.run_id == 5
    assert Grid.set_run.__annotations__["run"] in (Run, "Run")


def test_messages_can_be_made_inside_the_identity_only(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(flower_compat.TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 7, "train")
    with task_identity():
        metadata = Message(RecordDict(), 7, "train").metadata
        assert (metadata.run_id, metadata.src_node_id) == (LOCAL_RUN_ID, SERVER_NODE_ID)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 7, "train")


# What a SuperNode with a gate needs; tests/bundles/test_altered_bundles.py has the gate itself


def test_an_app_is_built_and_a_folder_without_one_refused(tmp_path, refused):
    with refused(f"{tmp_path}: cannot be built: pyproject.toml not found"):
        build_bundle(tmp_path)
    for name, text in foreign_files().items():
        (tmp_path / name).write_text(text)
    assert files_of(build_bundle(tmp_path))["app.py"] == FOREIGN_APP.encode()
    (tmp_path / "a" / "b" / "c" / "d" / "e" / "f" / "g" / "h" / "i" / "j" / "k").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c" / "d" / "e" / "f" / "g" / "h" / "i" / "j" / "k" / "l.py").touch()
    with refused(f"{tmp_path}: cannot be built"):
        build_bundle(tmp_path)


def test_flowers_home_is_that_of_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert flower_home() == tmp_path


def test_the_options_of_a_supernode_are_those_that_a_node_looks_at(tmp_path, refused):
    parser = supernode_options("fedattn node")
    assert parser.prog == "fedattn node"
    options = parser.parse_args([])
    assert options.isolation == "subprocess"
    assert options.runtime_dependency_install is False
    assert options.trusted_entities is None
    given = parser.parse_args(["--trusted-entities", "a", "--trusted-entities", str(tmp_path)])
    assert given.trusted_entities == tmp_path  # the last one, which is that of the gate
    with refused("--no-such"):
        parser.parse_args(["--no-such"])


def test_flower_pulls_code_in_the_function_that_has_the_gate():
    client = import_module("flwr.supernode.start_client_internal")
    assert "_pull_and_store_message" in client.start_client_internal.__code__.co_names
    taken = signature(client._pull_and_store_message).parameters
    assert {"state", "get_run", "get_fab", "trusted_entities"} <= set(taken)
    command = import_module("flwr.supernode.cli.flower_supernode")
    assert command.start_client_internal is client.start_client_internal
    entities = command._try_obtain_trusted_entities
    assert entities(None) is None
    assert callable(command._parse_supernode_lifespan_config)


def test_flower_reads_and_verifies_what_a_gate_signs(tmp_path):
    gate = Gate(lambda delivery: True, lambda sha256: True)
    path = tmp_path / "trusted.json"
    path.write_text(json.dumps(gate.trusted_entities))
    command = import_module("flwr.supernode.cli.flower_supernode")
    trusted = command._try_obtain_trusted_entities(path)
    assert trusted == gate.trusted_entities
    command._validate_public_keys_ed25519(trusted)
    verify = import_module("flwr.supernode.start_client_internal")._verify_fab
    signed = Fab("", b"bundle", {"valid_license": "any", **gate._signature(b"bundle")})
    assert verify(signed, trusted)
    assert not verify(replace(signed, content=b"other"), trusted)
    assert not verify(replace(signed, content=b"bundle", verifications={}), trusted)
