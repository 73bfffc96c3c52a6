"""Flower's own function that takes the code of a run, with the gate around it.

The state and the object store are real, and the connection hands out altered bundles. Each of them
writes a file as soon as one line of it runs.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from helpers.bundles import (
    MANIFEST,
    bundle_of,
    files_of,
    foreign_files,
    manifest_of,
    pyproject,
    zipped,
)

from fedattn_app.bundles.approvals import Approvals
from fedattn_app.bundles.bundle import read_bundle
from fedattn_app.bundles.flower_supernode import Gate, build_bundle
from fedattn_app.bundles.gate import is_still_approved, refusal
from fedattn_app.flower_compat import empty_run, task_identity

ROOT = Path(__file__).parents[2]
client = import_module("flwr.supernode.start_client_internal")

MARK = "import os, pathlib; pathlib.Path(os.environ['MARKER']).touch()\n"
NAME, VERSION = "fedattn/fedattn", "0.1.0"
RUN_IDS = iter(range(10, 10**6))

# Installs and loads a bundle as the process of a ClientApp does.
LOAD = """
import sys
from pathlib import Path
from flwr.cli.install import install_from_fab
from flwr.clientapp.utils import get_load_client_app_fn
path, name, version, sha256 = sys.argv[1:]
install_from_fab(Path(path).read_bytes(), skip_prompt=True)
get_load_client_app_fn("", None, True)(name, version, sha256)
"""


@pytest.fixture(scope="module")
def original():
    """The bundle of this project, which the owner has approved."""
    return build_bundle(ROOT)


@pytest.fixture(scope="module")
def approvals(original, tmp_path_factory):
    made = Approvals(tmp_path_factory.mktemp("owner") / "approved")
    made.add(read_bundle(original, "original.fab"))
    return made


class Node:
    """A node that takes a message of a run, and the code of the run with it."""

    def __init__(self, approvals, tmp_path, *, gated=True, entities=None):
        self.tmp_path = tmp_path
        self.store = ObjectStoreFactory().store()
        self.state = NodeStateFactory(ObjectStoreFactory()).state()
        self.state.set_node_id(7)
        self.refusals = []
        self.gate = None
        if gated:
            self.gate = Gate(
                self.accepts, lambda each: is_still_approved(approvals, each), entities
            )
        self.approvals = approvals
        self.deliveries = 0

    def accepts(self, delivery):
        reason = refusal(self.approvals, delivery)
        self.refusals.append(reason)
        return reason is None

    def take(self, run, fab):
        """Take a message of `run`, for which the server delivers `fab`; return the error reply."""
        with task_identity():
            message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, "query")
        message.metadata.__dict__["_run_id"] = run.run_id
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {key: each.deflate() for key, each in get_all_nested_objects(message).items()}

        def deliver(fab_hash, run_id):
            self.deliveries += 1
            return fab

        pull = client._pull_and_store_message
        arguments = {
            "state": self.state,
            "object_store": self.store,
            "node_config": {"data-path": "/data/notes.csv"},
            "receive": lambda: (message, get_object_tree(message)),
            "get_run": lambda run_id: run,
            "get_fab": deliver,
            "pull_object": lambda run_id, object_id: objects[object_id],
            "confirm_message_received": lambda run_id, message_id: None,
            "trusted_entities": self.gate and self.gate.trusted_entities,
        }
        assert (self.gate.around(pull) if self.gate else pull)(**arguments) == run.run_id
        replies = self.state.get_messages_legacy(is_reply=True)
        return replies[0].error if replies else None

    def stored(self, run):
        """All that the node has stored of a run: the run, its code, tasks and messages."""
        return [
            *([self.state.get_run(run.run_id)] if self.state.get_run(run.run_id) else []),
            *([self.state.get_fab(run.fab_hash)] if self.state.get_fab(run.fab_hash) else []),
            *self.state.get_tasks(),
            *self.state.get_messages_legacy(is_reply=False),
        ]

    def load(self, run, fab):
        """Load the ClientApp of what was stored in a process; return whether a mark was left."""
        path, marker, home = (self.tmp_path / name for name in ("taken.fab", "mark", "flwr"))
        path.write_bytes(fab.content)
        environment = os.environ | {"FLWR_HOME": str(home), "MARKER": str(marker)}
        subprocess.run(
            [sys.executable, "-c", LOAD, path, run.fab_id, run.fab_version, fab.hash_str],
            env=environment,
            cwd=self.tmp_path,
            capture_output=True,
            timeout=120,
        )
        return marker.exists()


def run_of(content, **changes):
    """The record of a run with the code `content`, and the code, as an honest server gives both."""
    sha256 = hashlib.sha256(content).hexdigest()
    run = replace(
        empty_run(next(RUN_IDS)), fab_id=NAME, fab_version=VERSION, fab_hash=sha256, **changes
    )
    return run, Fab(sha256, content, {"valid_license": "yes"})


def with_files(**changes):
    """Alter a bundle: files by path, where None removes one; all hashes are right."""

    def alter(original):
        files = files_of(original)
        for path, content in changes.items():
            files.pop(path, None)
            if content is not None:
                files[path] = content
        return bundle_of(files)

    return alter


def in_file(path, old, new):
    """Alter one file of a bundle, with the right hash."""

    def alter(original):
        files = files_of(original)
        assert old.encode() in files[path]
        return bundle_of(files | {path: files[path].replace(old.encode(), new.encode(), 1)})

    return alter


def rezipped(change=lambda entries: entries, **options):
    """Alter how a bundle is zipped: the entries, or the options of the zip file."""

    def alter(original):
        entries = list(files_of(original).items())
        return zipped([*change(entries), (MANIFEST, manifest_of(dict(entries)))], **options)

    return alter


def flipped(part):
    """Flip one bit at a position, given in parts of 1000 of the bundle."""

    def alter(original):
        altered = bytearray(original)
        altered[len(altered) * part // 1000] ^= 1 << part % 8
        return bytes(altered)

    return alter


CLIENT_APP = "fedattn_app/client_app.py"
ALTERED = {
    **{f"bit flipped at {part / 10} %": flipped(part) for part in range(0, 1000, 59)},
    **{
        f"added {path}": with_files(**{path: MARK})
        for path in (
            *("sitecustomize.py", "usercustomize.py", "conftest.py", "numpy.py", "torch.py"),
            *("flwr/__init__.py", "fedattn_app/json.py", "fedattn_app/data/__main__.py"),
            *("../escaped.py", "../../../.bashrc.py", "/etc/absolute.py", "a,b.py", "x.pth"),
            *("fedattn_app/__pycache__/client_app.cpython-311.pyc", "setup.py"),
        )
    },
    "one line in the client app": in_file(CLIENT_APP, "import", f"{MARK}import"),
    "one byte of a comment": in_file(CLIENT_APP, '"""', '""" '),
    "one line in the package": with_files(**{"fedattn_app/__init__.py": MARK}),
    "another component": lambda original: bundle_of(
        files_of(original)
        | {"pyproject.toml": pyproject("fedattn", "fedattn", VERSION, "evil"), "evil.py": MARK}
    ),
    "another default": in_file("pyproject.toml", "num-rounds = 15", "num-rounds = 16"),
    "a file removed": with_files(**{"fedattn_app/clients/node_policy.py": None}),
    "a foreign app": lambda original: bundle_of(foreign_files()),
    "a foreign app of the same name": lambda original: bundle_of(
        foreign_files(publisher="fedattn", name="fedattn", version=VERSION)
    ),
    "a marked app of the same name": lambda original: bundle_of(
        {"pyproject.toml": pyproject("fedattn", "fedattn", VERSION), "app.py": MARK}
    ),
    "a zip comment": rezipped(comment=b"comment"),
    "stored": rezipped(compression=zipfile.ZIP_STORED),
    "compressed more": rezipped(level=9),
    "another order": rezipped(lambda entries: entries[::-1]),
    "a duplicate": rezipped(lambda entries: [*entries, (CLIENT_APP, MARK)]),
    "a duplicate in front": rezipped(lambda entries: [(CLIENT_APP, MARK), *entries]),
    "a wrong manifest": lambda original: zipped(
        [*(files_of(original) | {CLIENT_APP: MARK}).items(), (MANIFEST, "app.py,1,1")]
    ),
    "no manifest": lambda original: zipped(files_of(original).items()),
    "bytes after the end": lambda original: original + b"\0",
    "bytes before the start": lambda original: MARK.encode() + original,
    "the first half": lambda original: original[: len(original) // 2],
    "all but the last byte": lambda original: original[:-1],
    "twice": lambda original: original * 2,
    "nothing": lambda original: b"",
    "a script": lambda original: MARK.encode(),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_bundle_is_refused_and_nothing_is_stored(alter, original, approvals, tmp_path):
    content = alter(original)
    assert content != original
    node = Node(approvals, tmp_path)
    run, fab = run_of(content)
    error = node.take(run, fab)
    assert (error.code, error.reason) == (
        *(ErrorCode.INVALID_FAB, "The FAB could not be verified."),
    )
    assert node.stored(run) == []
    assert "has not approved the bundle with SHA-256 " + run.fab_hash in node.refusals[0]
    assert os.listdir(tmp_path) == []


def test_fifty_alterations_are_different(original):
    contents = {alter(original) for alter in ALTERED.values()}
    assert len(contents) == len(ALTERED) >= 50


LIES = {
    "another hash of the bundle": lambda run, fab: (run, replace(fab, hash_str="0" * 64)),
    "no hash of the bundle": lambda run, fab: (run, replace(fab, hash_str="")),
    "another hash of the run": lambda run, fab: (replace(run, fab_hash="0" * 64), fab),
    "upper case": lambda run, fab: (
        *(replace(run, fab_hash=run.fab_hash.upper()), replace(fab, hash_str=run.fab_hash.upper())),
    ),
    "the same eight digits": lambda run, fab: (
        *(replace(run, fab_hash=run.fab_hash[:8]), replace(fab, hash_str=run.fab_hash[:8])),
    ),
    "another name": lambda run, fab: (replace(run, fab_id="stranger/foreign"), fab),
    "no name": lambda run, fab: (replace(run, fab_id=""), fab),
    "a path as name": lambda run, fab: (replace(run, fab_id="../fedattn"), fab),
    "another version": lambda run, fab: (replace(run, fab_version="0.1.1"), fab),
    "a path as version": lambda run, fab: (replace(run, fab_version="0.1.0/../../x"), fab),
    "an agent": lambda run, fab: (replace(run, primary_task_type=TaskType.AGENT_APP), fab),
    "a simulation": lambda run, fab: (replace(run, primary_task_type=TaskType.SIMULATION), fab),
    "an unknown task": lambda run, fab: (replace(run, primary_task_type="other"), fab),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lies_about_an_approved_bundle_are_refused(lie, original, approvals, tmp_path):
    run, fab = lie(*run_of(original))
    node = Node(approvals, tmp_path)
    error = node.take(run, fab)
    assert error.code == ErrorCode.INVALID_FAB
    assert node.stored(run) == []
    assert "fedattn/fedattn 0.1.0" in node.refusals[0]
    assert "stranger" not in node.refusals[0]


@pytest.mark.parametrize("task", ["", TaskType.SERVER_APP])
def test_the_approved_bundle_is_taken(task, original, approvals, tmp_path):
    node = Node(approvals, tmp_path)
    run, fab = run_of(original, primary_task_type=task)
    assert node.take(run, fab) is None
    kept, code, started, message = node.stored(run)
    assert kept == run
    assert (code.hash_str, code.content) == (fab.hash_str, original)
    assert started.type == TaskType.CLIENT_APP
    assert message.metadata.run_id == run.run_id
    assert node.refusals == [None]


@pytest.mark.parametrize(
    "name",
    ["one line in the client app", "added fedattn_app/json.py", "a marked app of the same name"],
)
def test_without_the_gate_a_line_of_it_runs(name, original, approvals, tmp_path):
    if name == "added fedattn_app/json.py":  # it runs where it is imported
        content = ALTERED[name](
            in_file(CLIENT_APP, "import", "from fedattn_app import json\nimport")(original)
        )
    else:
        content = ALTERED[name](original)
    node = Node(approvals, tmp_path, gated=False)
    run, fab = run_of(content)
    assert node.take(run, fab) is None
    assert len(node.stored(run)) == 4
    assert node.load(run, fab)


def test_in_its_usual_folder_flower_runs_what_has_the_same_eight_digits(
    original, approvals, tmp_path
):
    """So a node with a gate has a folder of its own, as `tests/deployment` shows."""
    run, fab = run_of(original)
    planted = tmp_path / "flwr" / "apps" / f"fedattn.fedattn.0.1.0.{run.fab_hash[:8]}"
    (planted / "fedattn_app").mkdir(parents=True)
    (planted / "pyproject.toml").write_bytes(files_of(original)["pyproject.toml"])
    (planted / "fedattn_app" / "__init__.py").write_text(MARK)
    node = Node(approvals, tmp_path)
    assert node.take(run, fab) is None
    assert node.load(run, fab)


def test_a_revoked_bundle_is_refused_from_the_next_message_on(original, tmp_path):
    approvals = Approvals(tmp_path / "approved")
    bundle = read_bundle(original, "original.fab")
    approvals.add(bundle)
    node = Node(approvals, tmp_path)
    run, fab = run_of(original)
    assert [node.take(run, fab), node.take(run, fab)] == [None, None]
    assert node.deliveries == 1
    before = len(node.state.get_tasks())
    approvals.remove(bundle.sha256)
    assert node.take(run, fab).code == ErrorCode.INVALID_FAB
    assert len(node.state.get_tasks()) == before
    approvals.add(bundle)
    (approvals.folder / "approved.json").chmod(0o666)
    assert node.take(run, fab).code == ErrorCode.INVALID_FAB
    assert "others can write to it" in node.refusals[-1]


def test_settings_that_the_app_does_not_have_are_refused(original, approvals, tmp_path):
    """Without the gate they end the whole SuperNode."""
    settings = {"no-such-key": 1}
    run, fab = run_of(original, override_config=settings)
    with pytest.raises(ValueError, match="no-such-key"):
        Node(approvals, tmp_path, gated=False).take(run, fab)
    node = Node(approvals, tmp_path)
    assert node.take(run, fab).code == ErrorCode.INVALID_FAB
    assert node.stored(run) == []
    run, fab = run_of(original, override_config={"num-rounds": 3})
    assert node.take(run, fab) is None


def test_a_flower_that_asks_no_gate_runs_nothing(original, approvals, tmp_path):
    """The key of the gate is all that Flower trusts, so that it refuses what was not signed."""
    node = Node(approvals, tmp_path)
    node.gate.around = lambda pull: pull
    run, fab = run_of(original)
    assert node.take(run, fab).code == ErrorCode.INVALID_FAB
    assert node.stored(run) == []


def test_no_key_but_that_of_the_gate_counts(original, approvals, tmp_path):
    """A record that another gate has signed, of an approved bundle or not, opens nothing."""
    other = Gate(lambda delivery: True, lambda sha256: True)
    content = bundle_of(foreign_files())
    run, fab = run_of(content)
    fab.verifications |= other._signature(content)
    assert Node(approvals, tmp_path).take(run, fab).code == ErrorCode.INVALID_FAB


def test_entities_of_the_owner_must_have_signed_an_approved_bundle(original, approvals, tmp_path):
    hub = Gate(lambda delivery: True, lambda sha256: True)
    entities = {"fpk_hub": next(iter(hub.trusted_entities.values()))}
    (record,) = hub._signature(original).values()
    (other,) = hub._signature(b"another bundle").values()
    for verifications, taken in [
        ({"valid_license": "yes", "fpk_hub": record}, True),
        ({"valid_license": "yes"}, False),
        ({"fpk_hub": record}, False),
        ({"valid_license": "yes", "fpk_hub": other}, False),
        ({"valid_license": "yes", "fpk_other": record}, False),
        ({"valid_license": "yes", "fpk_hub": "no JSON"}, False),
        ({"valid_license": "yes", "fpk_hub": "{}"}, False),
    ]:
        node = Node(approvals, tmp_path, entities=entities)
        run, fab = run_of(original)
        error = node.take(run, replace(fab, verifications=verifications))
        assert (error is None) == taken, verifications

    content = bundle_of(foreign_files())
    (record,) = hub._signature(content).values()
    run, fab = run_of(content)
    fab.verifications |= {"fpk_hub": record}
    node = Node(approvals, tmp_path, entities=entities)
    assert node.take(run, fab).code == ErrorCode.INVALID_FAB
