"""A SuperNode that runs approved code only, from the parts of Flower that are not its public API.

As in `flower_compat`, each part was seen in flwr 1.41.0 and 1.42.0, and
``tests/bundles/test_flower_supernode.py`` says which one a new version breaks.

=======================================  ==========================================================
private part                             why the public API is not enough
=======================================  ==========================================================
``flwr.common.config``                   How a SuperNode reads its node-config.
``flwr.cli.build.build_fab_from_disk``   The command ``flwr build`` alone writes a file.
``flwr.supercore.utils.get_flwr_home``   Where Flower keeps its files, by its own rules.
``…flower_supernode``, its options       A SuperNode can be started as a command only.
``…_pull_and_store_message``             The one place where a SuperNode takes a run's code.
``…_verify_fab``                         How Flower verifies what the owner's entities signed.
``…primitives.asymmetric_ed25519``       How Flower signs a bundle.
``…set_run_series_context``              Where a SuperNode takes a task's node-config.
``…get_fused_config_from_fab``           Whether Flower can put a run's settings together.
=======================================  ==========================================================

What is written with ``…`` is a part of a SuperNode. `flwr.supernode` and `flwr.cli` are imported
where they are used, since a run needs neither.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from click import ClickException
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, UserConfig
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import FAB_HASH_TRUNCATION
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign
from flwr.supercore.run import Run

from fedattn_app.bundles.certificate import write_certificate
from fedattn_app.errors import UserError

APPROVAL_KEY_ID = "fedattn-approved"  # how the gate's own signature is called


def build_bundle(folder: Path) -> bytes:
    """Return the bundle that ``flwr build`` makes of the app in `folder`.

    Raises `UserError` if there is no app in it that can be built.
    """
    from flwr.cli.build import build_fab_from_disk

    try:
        return build_fab_from_disk(folder)
    except Exception as error:  # Flower, its parsers and the file system each have their own
        raise UserError(f"{folder}: cannot be built: {' '.join(str(error).split())}") from None


def flower_home() -> Path:
    """Return the folder where Flower keeps its files."""
    from flwr.supercore.utils import get_flwr_home

    return get_flwr_home()


@dataclass(frozen=True)
class Delivery:
    """The code of a run as a server delivers it, with all that the server says about it.

    Attributes:
        content: the bundle, or something else in its place.
        hashes: the SHA-256 of the bundle in hexadecimal digits, as given at two places.
        name: ``publisher/name`` of the app.
        version: the version of the app.
        starts_client_app: whether Flower would run the app's ClientApp, and not an agent.
    """

    content: bytes
    hashes: tuple[str, str]
    name: str
    version: str
    starts_client_app: bool


def supernode_options(program: str) -> argparse.ArgumentParser:
    """Return the parser of the options of ``flower-supernode``.

    It raises `UserError` for a wrong option. `program` is the name of the command in its texts.
    """
    flower_supernode = import_module("flwr.supernode.cli.flower_supernode")

    def fail(message: str) -> NoReturn:
        raise UserError(message)

    parser: argparse.ArgumentParser = flower_supernode._parse_args_run_supernode()
    parser.prog = program
    parser.error = fail  # type: ignore[method-assign]
    return parser


def node_config_of(options: argparse.Namespace) -> UserConfig:
    """Return the node-config among the parsed `options` of a SuperNode, as Flower reads it.

    Flower leaves out what it does not understand. Raises `UserError` if it understands nothing.
    """
    from flwr.common.config import parse_config_args

    try:
        return parse_config_args([options.node_config] if options.node_config else None)
    except ClickException as error:
        raise UserError(f"--node-config: {error.format_message()}") from None


def run_supernode(
    arguments: Sequence[str],
    home: Path,
    accepts: Callable[[Delivery], bool],
    still_accepts: Callable[[str], bool],
) -> None:
    """Turn this process into a ``flower-supernode`` with a gate for the code of a run.

    Flower itself refuses the code that it cannot verify: it sends the server an error, and stores
    and unpacks nothing. So the gate signs what it accepts, with a key that exists in this process
    only, and Flower trusts that key alone. A version of Flower that no longer asks the gate would
    refuse all code.

    Args:
        arguments: the options of ``flower-supernode``. If they name trusted entities, code must be
            signed by one of these and be accepted by the gate.
        home: an empty folder, where Flower unpacks the code of this node. In Flower's usual folder
            it runs what was unpacked before under the same name and eight digits of the hash.
        accepts: says whether a run's code may run; asked before any of it is looked at.
        still_accepts: the same for code accepted before, by its hash; asked for each message.
    """
    # Functions in their packages have the names of these modules.
    client = import_module("flwr.supernode.start_client_internal")
    command = import_module("flwr.supernode.cli.flower_supernode")
    options = supernode_options("flower-supernode").parse_args(arguments)
    entities = command._try_obtain_trusted_entities(options.trusted_entities)
    gate = Gate(accepts, still_accepts, entities)
    trusted = home / "trusted.json"  # JSON is YAML, too
    trusted.write_text(json.dumps(gate.trusted_entities))
    pull = "_pull_and_store_message"
    setattr(client, pull, gate.around(getattr(client, pull)))
    _keep_node_config(node_config_of(options))
    own = [] if options.ssl_certfile else write_certificate(home, options.host)
    scripts = [str(Path(sys.executable).parent), os.environ.get("PATH") or os.defpath]
    os.environ.update(FLWR_HOME=str(home), PATH=os.pathsep.join(scripts))
    sys.argv = ["flower-supernode", *arguments, *own, "--trusted-entities", str(trusted)]
    command.flower_supernode()


def _keep_node_config(node_config: UserConfig) -> None:
    """Give every context of this process the owner's `node_config`.

    A process that runs a task sends its context back, and Flower would take another node-config
    from it. Flower does not check who sends it, so another user of the machine could.
    """
    state = import_module("flwr.supernode.nodestate.in_memory_nodestate").InMemoryNodeState
    take = state.set_run_series_context

    def take_with_own_config(self: Any, series_id: int, context: Context) -> None:
        take(self, series_id, replace(context, node_config=dict(node_config)))

    state.set_run_series_context = take_with_own_config


class Gate:
    """Lets the function with which a SuperNode pulls a message take accepted code only.

    Args:
        accepts: see `run_supernode`.
        still_accepts: see `run_supernode`.
        entities: public keys of the entities of which one must have signed the code, too, by id.
    """

    def __init__(
        self,
        accepts: Callable[[Delivery], bool],
        still_accepts: Callable[[str], bool],
        entities: dict[str, str] | None = None,
    ) -> None:
        self._accepts = accepts
        self._still_accepts = still_accepts
        self._entities = entities
        self._key = Ed25519PrivateKey.generate()
        self._folders: dict[str, str] = {}  # hash of the code by the digits that name its folder

    @property
    def trusted_entities(self) -> dict[str, str]:
        """The public key of the gate by its id, as Flower takes it."""
        key = self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return {APPROVAL_KEY_ID: key.decode()}

    def around(self, pull: Callable[..., int | None]) -> Callable[..., int | None]:
        """Return Flower's function `pull` with this gate around what it gets from the server."""

        def gated(
            *,
            state: Any,
            get_run: Callable[[int], Run],
            get_fab: Callable[[str, int], Fab],
            **others: Any,
        ) -> int | None:
            runs: dict[int, Run] = {}

            def remember(run_id: int) -> Run:
                runs[run_id] = get_run(run_id)
                return runs[run_id]

            def check(fab_hash: str, run_id: int) -> Fab:
                return self._check(get_fab(fab_hash, run_id), runs[run_id])

            known = _KnownRuns(state, self._still_accepts)
            return pull(state=known, get_run=remember, get_fab=check, **others)

        return gated

    def _check(self, fab: Fab, run: Run) -> Fab:
        """Return `fab` signed by the gate, or an empty one without a signature."""
        delivery = Delivery(
            fab.content,
            (fab.hash_str, run.fab_hash),
            run.fab_id,
            run.fab_version,
            run.primary_task_type in ("", TaskType.SERVER_APP),
        )
        # Any text counts as a licence. With one, Flower's log speaks of the missing signature.
        licence = {"valid_license": "fedattn"}
        if not (
            self._accepts(delivery)
            and self._is_signed_by_an_entity(fab)
            and _has_config(fab, run)
            and self._has_own_folder(fab)
        ):
            return Fab(fab.hash_str, b"", licence)
        return Fab(fab.hash_str, fab.content, licence | self._signature(fab.content))

    def _has_own_folder(self, fab: Fab) -> bool:
        """Return whether no other code is unpacked where Flower would look for this one."""
        digits = fab.hash_str[:FAB_HASH_TRUNCATION]
        return self._folders.setdefault(digits, fab.hash_str) == fab.hash_str

    def _is_signed_by_an_entity(self, fab: Fab) -> bool:
        """Return whether one of the owner's entities has signed `fab`, if there are any."""
        from flwr.supernode.start_client_internal import _verify_fab

        if not self._entities:
            return True
        try:
            return bool(fab.verifications["valid_license"]) and _verify_fab(fab, self._entities)
        except Exception:  # a damaged record is no signature
            return False

    def _signature(self, content: bytes) -> dict[str, str]:
        """Return the gate's signature of `content`, as Flower stores it."""
        signed_at = int(time.time())
        digest = hashlib.sha256(content).digest()
        signature = self._key.sign(create_message_to_sign(digest, signed_at))
        encoded = base64.urlsafe_b64encode(signature).decode()
        return {APPROVAL_KEY_ID: json.dumps({"signed_at": signed_at, "signature": encoded})}


def _has_config(fab: Fab, run: Run) -> bool:
    """Return whether the settings of `run` are ones of its app: others would end the SuperNode."""
    try:
        get_fused_config_from_fab(fab.content, run)
    except Exception:
        logging.getLogger("flwr").error("Refused a run whose settings are not those of its app")
        return False
    return True


class _KnownRuns:
    """The state of a SuperNode, in which a run is unknown once its code is no longer accepted.

    Flower then pulls the code again, and the gate refuses it.
    """

    def __init__(self, state: Any, still_accepts: Callable[[str], bool]) -> None:
        self._state = state
        self._still_accepts = still_accepts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_run(self, run_id: int) -> Run | None:
        """Return a run by its id, or None if it is not known or its code not accepted."""
        run: Run | None = self._state.get_run(run_id)
        return run if run and self._still_accepts(run.fab_hash) else None
