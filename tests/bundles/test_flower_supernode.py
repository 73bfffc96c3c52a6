"""The parts of a SuperNode that ours relies on: a failure says which private part has changed.

``tests/bundles/test_altered_bundles.py`` tests the gate itself.
"""

import json
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from helpers.bundles import FOREIGN_APP, files_of, foreign_files

from fedattn_app.bundles import flower_supernode
from fedattn_app.bundles.certificate import write_certificate
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


def test_a_task_cannot_change_the_node_config(monkeypatch):
    """Flower takes what a process sends back, and does not ask which process it is."""
    module = import_module("flwr.supernode.nodestate.in_memory_nodestate")
    kind = module.InMemoryNodeState
    monkeypatch.setattr(kind, "set_run_series_context", kind.set_run_series_context)
    flower_supernode._keep_node_config({"max-epsilon": 1.0})
    state = NodeStateFactory(ObjectStoreFactory()).state()
    forged = {"max-epsilon": 1e6, "allow-unprotected": True}
    records = RecordDict({"kept": ConfigRecord({"a": 1})})
    state.set_run_series_context(5, Context(1, 2, forged, records, {"num-rounds": 3}))
    kept = state.get_run_series_context(5)
    assert kept.node_config == {"max-epsilon": 1.0}
    assert (kept.state, kept.run_config) == (records, {"num-rounds": 3})


def test_the_certificate_of_a_node_is_that_of_its_own_port(tmp_path):
    """A server without the key, on the same port, is not taken for the SuperNode."""
    for name in ("node", "stranger"):
        (tmp_path / name).mkdir()
    options = write_certificate(tmp_path / "node", "127.0.0.1")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert Path(given["--ssl-keyfile"]).stat().st_mode & 0o777 == 0o600
    write_certificate(tmp_path / "stranger", "127.0.0.1")

    def connects(folder):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "runtime.pem", folder / "runtime.key")
        client = ssl.create_default_context(cafile=given["--ssl-ca-certfile"])
        ends = socket.socketpair()
        with ThreadPoolExecutor() as pool:
            accepted = pool.submit(server.wrap_socket, ends[0], server_side=True)
            try:
                client.wrap_socket(ends[1], server_hostname="127.0.0.1").close()
                accepted.result(10).close()
            except ssl.SSLError:
                return False
            finally:
                for end in ends:
                    end.close()
        return True

    assert connects(tmp_path / "node")
    assert not connects(tmp_path / "stranger")


def test_two_bundles_that_flower_would_unpack_in_one_folder_are_not_both_accepted():
    gate = Gate(lambda delivery: True, lambda sha256: True)
    assert gate._has_own_folder(Fab("0123456789", b"", {}))
    assert gate._has_own_folder(Fab("0123456789", b"", {}))
    assert not gate._has_own_folder(Fab("01234567ff", b"", {}))
    assert gate._has_own_folder(Fab("f0123456", b"", {}))
