"""The parts of a SuperNode that ours relies on: a failure says which private part has changed.

``tests/bundles/test_altered_bundles.py`` tests the gate itself.
"""

import json
from dataclasses import replace
from importlib import import_module
from inspect import signature

import pytest
from flwr.supercore.fab import Fab
from helpers.bundles import FOREIGN_APP, files_of, foreign_files

from fedattn_app.bundles.flower_supernode import (
    Gate,
    build_bundle,
    flower_home,
    node_config_of,
    supernode_options,
)
from fedattn_app.errors import UserError


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


def test_flower_leaves_out_what_it_does_not_understand_of_a_node_config():
    """`fedattn node` compares with what was given for this reason."""
    parser = supernode_options("fedattn node")

    def read(text):
        return node_config_of(parser.parse_args(["--node-config", text]))

    assert read('partition-id=0 data-path="/a b" x=1.5 y=true') == {
        "partition-id": 0,
        "data-path": "/a b",
        "x": 1.5,
        "y": True,
    }
    assert read("a=1 max-epsilon 4") == {"a": 1}
    assert node_config_of(parser.parse_args([])) == {}
    with pytest.raises(UserError, match="--node-config"):
        read("a=/no quotes")
