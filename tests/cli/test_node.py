"""What ``fedattn node`` makes of its options; `tests/deployment` starts real nodes."""

import logging
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers.bundles import bundle_of, pyproject

from fedattn_app.bundles.approvals import Approvals
from fedattn_app.bundles.bundle import read_bundle
from fedattn_app.bundles.flower_supernode import Delivery

client = import_module("flwr.supernode.start_client_internal")
command = import_module("flwr.supernode.cli.flower_supernode")
OPTIONS = ("--insecure", "--superlink", "127.0.0.1:1", "--node-config", "partition-id=0 a='--help'")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What a SuperNode saw that would have been started; it ends at once."""
    saw = {}

    def flower_supernode():
        saw["config"] = command._parse_supernode_lifespan_config()
        saw["environment"] = dict(os.environ)
        saw["home"] = sorted(path.name for path in Path(os.environ["FLWR_HOME"]).iterdir())
        saw["pull"] = client._pull_and_store_message
        raise SystemExit(0)

    monkeypatch.setattr(command, "flower_supernode", flower_supernode)
    # `run_supernode` changes these for good, as its process is the SuperNode's.
    monkeypatch.setattr(client, "_pull_and_store_message", client._pull_and_store_message)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    return saw


def test_a_node_has_flowers_options_a_gate_and_a_folder_of_its_own(fedattn, started, tmp_path):
    before = client._pull_and_store_message
    with pytest.raises(SystemExit):
        fedattn("node", *OPTIONS, "--port", "9000", "--max-retries=3")
    config, environment = started["config"], started["environment"]
    assert (config.server_address, config.insecure, config.port) == ("127.0.0.1:1", True, 9000)
    assert config.max_retries == 3
    assert config.node_config == {"partition-id": 0, "a": "--help"}
    assert list(config.trusted_entities) == ["fedattn-approved"]
    assert started["pull"] is not before
    assert Path(environment["FLWR_HOME"]).parent == tmp_path / "flwr" / "fedattn"
    assert started["home"] == [".lock", "runtime.key", "runtime.pem", "trusted.json"]
    assert environment["PATH"].startswith(f"{Path(sys.executable).parent}{os.pathsep}")
    assert not Path(environment["FLWR_HOME"]).exists()


def test_the_gate_asks_the_folder_of_the_option(fedattn, started, tmp_path, monkeypatch, caplog):
    content = bundle_of({"pyproject.toml": pyproject("someone", "small")})
    bundle = read_bundle(content, "small.fab")
    Approvals(tmp_path / "others").add(bundle)
    gates = []
    monkeypatch.setattr(
        "fedattn_app.bundles.flower_supernode.run_supernode",
        lambda *arguments: gates.append(arguments[2:]),
    )
    for given in ([], ["--approved", "others"]):
        assert fedattn("node", *OPTIONS, *given)[0] == 0
    delivery = Delivery(content, (bundle.sha256,) * 2, "someone/small", "1.0.0", True)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    assert [accepts(delivery) for accepts, _ in gates] == [False, True]
    assert [still_accepts(bundle.sha256) for _, still_accepts in gates] == [False, True]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("Refused to run this code: the owner of this node has not approved")
    assert bundle.sha256 in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["stray"], "unrecognized arguments: stray"),
        (["--port", "0"], "--port"),
        (["--node-config"], "expected one argument"),
        (["--isolation", "process"], "fedattn node takes subprocess only"),
        (["--isolation=process"], "fedattn node takes subprocess only"),
        (["--allow-runtime-dependency-installation"], "packages that the owner has not approved"),
        (["--allow-runtime"], "packages that the owner has not approved"),
        (["--approved"], "requires an argument"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, reason, fedattn, started):
    status, output, errors = fedattn("node", *OPTIONS, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert reason in errors
    assert len(errors.splitlines()) == 1
    assert not started


def test_a_list_that_others_can_write_stops_the_start(fedattn, started, tmp_path):
    (tmp_path / "approved").mkdir()
    (tmp_path / "approved").chmod(0o777)
    status, _, errors = fedattn("node", *OPTIONS)
    assert status == 2
    assert "others can write to it" in errors
    assert not started


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_our_options_and_flowers(option, fedattn, started):
    status, output, errors = fedattn("node", option)
    assert (status, errors) == (0, "")
    ours, flowers = output.split("Options of Flower:")
    assert "--approved FOLDER" in ours
    assert "--node-config" in flowers
    assert "usage: fedattn node" in flowers
