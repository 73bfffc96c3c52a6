"""The rules of a real node's owner: which runs are allowed, and which errors may leave the node.

A real node may start a process for each message, so modules are imported where they are used.
"""

import difflib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context

from fedattn_app.errors import UserError

if TYPE_CHECKING:
    from flwr.app.user_config import UserConfig

    from fedattn_app.config import Config
    from fedattn_app.privacy.protections import Protection

log = logging.getLogger("fedattn")

# The node-config keys that an owner may set. Flower sets the others on every node.
OWNER_KEYS = {"data-path", "state-dir", "model-path", "ledger", "max-epsilon", "max-delta"}
NODE_KEYS = {"partition-id", "num-partitions"} | OWNER_KEYS
LIMIT_KEYS = ("max-epsilon", "max-delta")


def is_real(node: "UserConfig") -> bool:
    """Return whether `node` is the node-config of a real node.

    A real node has at least one of the keys in `OWNER_KEYS`. A simulated node has none of them.
    """
    return not OWNER_KEYS.isdisjoint(node)


@contextmanager
def errors_stay_here(node: "UserConfig", task: str) -> Iterator[None]:
    """Context manager that replaces any error on a real node with a `UserError`.

    The new error names only `task`. The original error is logged on the node and does not leave it,
    because its text may reveal the content of files. On a simulated node errors pass unchanged.

    Args:
        node: the node-config.
        task: what the node was doing, as in "load the model".
    """
    try:
        yield
    except Exception as error:
        if not is_real(node):
            raise
        log.error("%s", error if isinstance(error, UserError) else repr(error))
        raise UserError(f"this node cannot {task}; its own log says why") from None


def check_owner_allows(config: "Config", protection: "Protection", node: "UserConfig") -> None:
    """Raise `UserError` if the node's owner does not allow the run.

    The owner's limits and files come from the node-config `node`. A misspelled key in it raises
    `UserError` too.

    Args:
        config: the settings of the run.
        protection: the protection that the run uses.
        node: the node-config.
    """
    for key in node.keys() - NODE_KEYS:  # other keys may belong to another app
        if near := difflib.get_close_matches(key, NODE_KEYS, n=1, cutoff=0.8):
            raise UserError(f"node-config has {key}: did you mean {near[0]}?")
    limits = [key for key in LIMIT_KEYS if key in node]
    if limits and not protection.protects_on_node:
        raise UserError(
            f'privacy = "{config.privacy.privacy}": this node has a {limits[0]}, so it trains with '
            '"dp-sgd" only'
        )
    if config.privacy.target_delta > limit_of(node, "max-delta"):
        raise UserError(
            f"target-delta = {config.privacy.target_delta:g}: this node has "
            f"max-delta = {node['max-delta']}"
        )
    if not protection.protects_on_node:
        return
    _check_files_named_by_the_run(config, node)
    if not (limits or "data-path" in node):
        return
    if config.privacy.reproducible_noise:
        raise UserError("reproducible-noise = true: protects nobody; this node has data of its own")
    if "state-dir" not in node:
        raise UserError(
            f'privacy = "{config.privacy.privacy}": this node has no state-dir in its node-config, '
            "where its privacy ledger would survive a restart"
        )
    if not Path(str(node["state-dir"])).expanduser().is_absolute():
        raise UserError(
            f"state-dir = {node['state-dir']}: must be an absolute path, so that this node finds "
            "its privacy ledger wherever it is started"
        )


def _check_files_named_by_the_run(config: "Config", node: "UserConfig") -> None:
    """Raise `UserError` if a run with protection on the node could learn from one of its files.

    Whether a file can be used reveals something about its content. A `data-path` of the run might
    be a private folder of the node. A tokenizer can be made so that it fails on one word.
    """
    privacy = config.privacy.privacy
    if is_real(node) and config.data.dataset != "triage" and "data-path" not in node:
        raise UserError(
            f'dataset = {config.data.dataset!r}: with privacy = "{privacy}" this node reads only a '
            "file that its own node-config names (data-path)"
        )
    if config.model.pretrained and "data-path" in node and "model-path" not in node:
        raise UserError(
            f'model = {config.model.model!r}: with privacy = "{privacy}" this node needs a '
            "model-path in its node-config: the folder or hub id of the model that its owner trusts"
        )


def check_node_kept_what_it_needs(
    config: "Config", protection: "Protection", context: Context
) -> None:
    """Raise `UserError` if the state of this node does not allow the run.

    A resumed run may need state that only a `state-dir` keeps. If the ledger has entries, a run
    without protection on the node is refused: ε would no longer cover all that was sent. An
    unreadable ledger raises `UserError` too.
    """
    node, kept = context.node_config, protection.kept_by_clients
    if config.output.resume_from and kept and not node.get("state-dir"):
        raise UserError(f"resume-from: this node has no state-dir and so no {kept} of that run")
    if not protection.protects_on_node and _has_spent(context):
        raise UserError(
            f'privacy = "{config.privacy.privacy}": this node has a privacy ledger, which would '
            "not count what it sends; its owner may name another ledger"
        )


def _has_spent(context: Context) -> bool:
    """Return whether the ledger in this node's `state-dir` has entries.

    Returns False for a node without `state-dir`. Raises `UserError` if the ledger cannot be read.
    """
    node = context.node_config
    with errors_stay_here(node, "read its privacy ledger"):
        path = ledger_path(node)
        if path is None:
            return False
        from fedattn_app.privacy.ledger import Ledger

        return bool(Ledger(context.state, path).entries)


def limit_of(node: "UserConfig", key: str) -> float:
    """Return the value of `key` in the node-config, or infinity if the owner has not set it.

    Raises `UserError` if the value is not a number above 0.
    """
    value = node.get(key, math.inf)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{key} = {value!r}: must be a number above 0")
    return value


def ledger_path(node: "UserConfig") -> Path | None:
    """Return the path of the privacy ledger, or None for a node without `state-dir`.

    Raises `UserError` if the value of `ledger` is not a name of letters, digits, - and _, or if
    `state-dir` is not a usable path.
    """
    from fedattn_app.files import user_path

    name = str(node.get("ledger", "privacy-ledger"))
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"ledger = {name!r}: must be a name of letters, digits, - and _")
    folder = node.get("state-dir")
    return user_path("state-dir", str(folder)) / f"{name}.json" if folder else None
