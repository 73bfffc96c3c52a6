"""What the owner of a real node lets a run do there, and what the run hears of it.

Imports are where they are used: each message to a real node may be a process of its own.
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

log = logging.getLogger("fedattn")

# What the owner of a real node may set beside its number.
OWN_KEYS = {"data-path", "state-dir", "model-path", "ledger", "max-epsilon", "max-delta"}
NODE_KEYS = {"partition-id", "num-partitions"} | OWN_KEYS


def is_real(node: "UserConfig") -> bool:
    """Whether a node has an owner with files and wishes, as no simulated one has."""
    return not OWN_KEYS.isdisjoint(node)


@contextmanager
def kept_here(node: "UserConfig", task: str) -> Iterator[None]:
    """Keep on a real node what goes wrong with a `task`: the reason may name its files."""
    try:
        yield
    except Exception as error:
        if not is_real(node):
            raise
        log.error("%s", error if isinstance(error, UserError) else repr(error))
        raise UserError(f"this node cannot {task}; its own log says why") from None


def check_owner_agrees(config: "Config", node: "UserConfig") -> None:
    """Raise `UserError` for a run that would undo what this node's owner asks for."""
    for key in node.keys() - NODE_KEYS:  # others may belong to another app
        if near := difflib.get_close_matches(key, NODE_KEYS, n=1, cutoff=0.8):
            raise UserError(f"node-config has {key}: did you mean {near[0]}?")
    privacy = config.privacy.privacy
    limits = [key for key in ("max-epsilon", "max-delta") if key in node]
    if limits and privacy != "dp-sgd":
        raise UserError(
            f'privacy = "{privacy}": this node has a {limits[0]}, so it trains with "dp-sgd" only'
        )
    if config.privacy.target_delta > limit_of(node, "max-delta"):
        raise UserError(
            f"target-delta = {config.privacy.target_delta:g}: this node has "
            f"max-delta = {node['max-delta']}"
        )
    if privacy != "dp-sgd":
        return
    _check_nothing_is_asked_of_files(config, node)
    if not (limits or "data-path" in node):
        return
    if config.privacy.reproducible_noise:
        raise UserError("reproducible-noise = true: protects nobody; this node has data of its own")
    if "state-dir" not in node:
        raise UserError(
            'privacy = "dp-sgd": this node has no state-dir in its node-config, where its privacy '
            "ledger would outlive a restart"
        )
    if not Path(str(node["state-dir"])).expanduser().is_absolute():
        raise UserError(
            f"state-dir = {node['state-dir']}: must be an absolute path, so that this node finds "
            "its privacy ledger wherever it is started"
        )


def _check_nothing_is_asked_of_files(config: "Config", node: "UserConfig") -> None:
    """Raise `UserError` for a private run that could learn of files by whether they can be used.

    Data that the run names are read as such that everybody may know, and may be a local folder. A
    tokenizer can be made so that it fails on one word.
    """
    if is_real(node) and config.data.dataset != "triage" and "data-path" not in node:
        raise UserError(
            f'dataset = {config.data.dataset!r}: with privacy = "dp-sgd" this node reads only a '
            "file that its own node-config names (data-path)"
        )
    if config.model.pretrained and "data-path" in node and "model-path" not in node:
        raise UserError(
            f'model = {config.model.model!r}: with privacy = "dp-sgd" this node needs a model-path '
            "in its node-config: its owner's word for that model, a folder or a hub id"
        )


def check_node_remembers(config: "Config", context: Context) -> None:
    """Raise `UserError` for a run that this node's `state-dir`, or the lack of one, speaks against.

    A run that is carried on may need what only a `state-dir` outlives. And what is sent without
    noise is not in a ledger: where there is one already, its ε would no more be all that was spent.
    """
    node = context.node_config
    privacy, kept = config.privacy.privacy, config.kept_by_clients
    if config.output.resume_from and kept and not node.get("state-dir"):
        raise UserError(f"resume-from: this node has no state-dir and so no {kept} of that run")
    if privacy != "dp-sgd" and _has_spent(context):
        raise UserError(
            f'privacy = "{privacy}": this node has a privacy ledger, which would not count what '
            "it sends; its owner may name another ledger"
        )


def _has_spent(context: Context) -> bool:
    """Whether this node's `state-dir` has a ledger with something in it."""
    node = context.node_config
    with kept_here(node, "tell what its privacy ledger holds"):
        path = ledger_path(node)
        if path is None:
            return False
        from fedattn_app.privacy.ledger import Ledger

        return bool(Ledger(context.state, path).entries)


def limit_of(node: "UserConfig", key: str) -> float:
    """Return the limit that the owner gives by `key`, infinite without one."""
    value = node.get(key, math.inf)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{key} = {value!r}: must be a number above 0")
    return value


def ledger_path(node: "UserConfig") -> Path | None:
    """Return where the privacy ledger is, or None for a node without `state-dir`."""
    from fedattn_app.files import user_path

    name = str(node.get("ledger", "privacy-ledger"))
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"ledger = {name!r}: must be a name of letters, digits, - and _")
    folder = node.get("state-dir")
    return user_path("state-dir", str(folder)) / f"{name}.json" if folder else None
