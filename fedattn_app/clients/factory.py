"""Make the client that answers a message, with the data of its node, if the owner allows it.

A real node may start a process for each message, so modules that only some messages need are
imported where they are used.
"""

import logging
from dataclasses import replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from flwr.app import Context

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.clients.node import Node
from fedattn_app.clients.node_policy import (
    check_node_kept_what_it_needs,
    check_owner_allows,
    errors_stay_here,
)

log = logging.getLogger("fedattn")

if TYPE_CHECKING:
    from fedattn_app.clients.base import FrozenClient
    from fedattn_app.config import Config
    from fedattn_app.data.examples import ClientData
    from fedattn_app.privacy.protections import Protection


def make_client(context: Context, server_round: int = 0) -> "FrozenClient":
    """Make this node's client from its run-config and node-config.

    Raises `UserError` if the owner does not allow the run, the data cannot be used, or the model
    cannot be loaded. On a real node the error's text contains nothing that must stay on the node.

    Args:
        context: Flower's context of the message.
        server_round: the round of the message, from 1, or 0 if it belongs to none.
    """
    from fedattn_app.models.factory import build_tokenizer
    from fedattn_app.privacy.protections import protection_of

    config = _settings(tuple((k, type(v), v) for k, v in context.run_config.items()))
    if 0 < server_round <= config.federation.warmup_rounds:
        config = replace(config, federation=config.federation.while_warming_up)
    protection = protection_of(config)
    node = context.node_config
    check_owner_allows(config, protection, node)
    check_node_kept_what_it_needs(config, protection, context)
    with errors_stay_here(node, "load the model"):
        if config.model.pretrained and "model-path" in node:
            config = replace(config, model=replace(config.model, model=str(node["model-path"])))
        build_tokenizer(
            config.model
        )  # now, because errors while loading data are reported as others
    labels, data, partition = _data(config, protection, context)
    kind: type[FrozenClient] = resolve_name(protection.client_class)
    task = "train with these privacy settings" if protection.protects_on_node else "load the model"
    with errors_stay_here(node, task):
        return kind.on_node(Node(config, labels, data, partition, context))


def _data(
    config: "Config", protection: "Protection", context: Context
) -> "tuple[tuple[str, ...], ClientData, int]":
    """Return the label names, this node's examples, and its partition."""
    from fedattn_app.clients.agreement import check_own_data
    from fedattn_app.data.labels import label_names
    from fedattn_app.data.loading import client_data, private_data

    node, seed = context.node_config, config.federation.seed
    partition = int(node.get("partition-id", 0))
    if "data-path" not in node:
        labels = label_names(config.data)
        num_partitions = int(node.get("num-partitions", 1))
        data = client_data(config.data, config.model, seed, partition, num_partitions)
        return labels, data, partition
    # A node with its own file reads no other file, not even for the label names.
    with errors_stay_here(node, "use its data-path"):
        path, secret = str(node["data-path"]), protection.protects_on_node
        data = private_data(config.data, config.model, seed, path, secret)
        check_own_data(context.state, path, data.source_fingerprint)
    if not len(data.train):
        log.warning("this node has no examples, and trains nothing")
    if protection.fraction_evaluate and not len(data.validation):
        log.warning(
            "this node holds out none of its %d examples at validation-fraction = %g, and reports "
            "no scores",
            len(data.train),
            config.data.validation_fraction,
        )
    return config.data.label_names, replace(data, source_fingerprint=""), partition


@PROCESS_CACHE.keep(max_entries=2)
def _settings(run_config: "tuple[tuple[str, type, bool | int | float | str], ...]") -> "Config":
    """Read the run-config. The cache key includes the types, because 1 and True are equal."""
    from fedattn_app.config import Config

    return Config.from_run_config({key: value for key, _, value in run_config})
