"""Make the client that answers a message, with the data of its node, if the owner allows it.

A real node may start a process for each message, so modules that only some messages need are
imported where they are used.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from flwr.app import Context

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.clients.node import Node
from fedattn_app.engine.virtual_node import is_simulated
from fedattn_app.policy.owner_policy import OwnerPolicy
from fedattn_app.policy.reasons import Reason, RefusalError
from fedattn_app.policy.rules import check_owner_allows, missing_state

log = logging.getLogger("fedattn")

if TYPE_CHECKING:
    from fedattn_app.clients.base import FrozenClient
    from fedattn_app.config import Config
    from fedattn_app.data.examples import ClientData
    from fedattn_app.privacy.protections import Protection


def policy_of(context: Context) -> OwnerPolicy:
    """Return what the owner of the node of `context` has set; nothing for a simulated node.

    Raises `RefusalError` for a mistake in the node-config.
    """
    return OwnerPolicy() if is_simulated(context) else OwnerPolicy.of_node(context.node_config)


def make_client(context: Context, server_round: int = 0) -> "FrozenClient":
    """Make this node's client from its run-config and node-config.

    Raises `UserError` if the owner does not allow the run, the data cannot be used, or the model
    cannot be loaded. On a real node it is a `RefusalError`, whose reason is all that the server may
    know.

    Args:
        context: Flower's context of the message.
        server_round: the round of the message, from 1, or 0 if it belongs to none.
    """
    from fedattn_app.models.factory import build_tokenizer
    from fedattn_app.privacy.protections import protection_of

    policy = policy_of(context)
    with _failing_with(Reason.RUN_CONFIG, context):
        config = _settings(tuple((k, type(v), v) for k, v in context.run_config.items()))
        if 0 < server_round <= config.federation.warmup_rounds:
            config = replace(config, federation=config.federation.while_warming_up)
    protection = protection_of(config)
    if is_simulated(context):
        if refusal := missing_state(config, policy):
            raise refusal
    else:
        check_owner_allows(config, policy)
        if not protection.protects_on_node:
            with _failing_with(Reason.LEDGER, context):
                _check_nothing_is_spent(config, policy, context)
    with _failing_with(Reason.LOAD_MODEL, context):
        if config.model.pretrained and policy.model_path:
            config = replace(config, model=replace(config.model, model=policy.model_path))
        build_tokenizer(
            config.model
        )  # now, because errors while loading data are reported as others
    with _failing_with(Reason.USE_DATA, context):
        labels, data, partition = _data(config, protection, policy, context)
    kind: type[FrozenClient] = resolve_name(protection.client_class)
    private = protection.protects_on_node
    with _failing_with(Reason.TRAIN_PRIVATELY if private else Reason.LOAD_MODEL, context):
        return kind.on_node(Node(config, labels, data, partition, context, policy))


@contextmanager
def _failing_with(reason: Reason, context: Context) -> Iterator[None]:
    """Context manager that gives `reason` to every error on a real node that has none of its own.

    On a simulated node errors pass unchanged.
    """
    try:
        yield
    except RefusalError:
        raise
    except Exception as error:
        if is_simulated(context):
            raise
        raise RefusalError.because_of(error, reason) from error


def _check_nothing_is_spent(config: "Config", policy: OwnerPolicy, context: Context) -> None:
    """Raise `RefusalError` if the node's ledger has entries, and `UserError` if it cannot be read.

    A run without protection on the node would send what ε does not cover.
    """
    path = policy.ledger_path
    if path is None:
        return
    from fedattn_app.privacy.ledger import Ledger

    if Ledger(context.state, path).entries:
        raise RefusalError(
            Reason.SPENT,
            f'privacy = "{config.privacy.privacy}": this node has a privacy ledger, which would '
            "not count what it sends; its owner may name another ledger",
        )


def _data(
    config: "Config", protection: "Protection", policy: OwnerPolicy, context: Context
) -> "tuple[tuple[str, ...], ClientData, int]":
    """Return the label names, this node's examples, and its partition."""
    from fedattn_app.clients.agreement import check_own_data
    from fedattn_app.data.labels import label_names
    from fedattn_app.data.loading import client_data, private_data

    node, seed = context.node_config, config.federation.seed
    partition = int(node.get("partition-id", 0))
    if not policy.data_path:
        labels = label_names(config.data)
        num_partitions = int(node.get("num-partitions", 1))
        data = client_data(config.data, config.model, seed, partition, num_partitions)
        return labels, data, partition
    # A node with its own file reads no other file, not even for the label names.
    secret = protection.protects_on_node
    data = private_data(config.data, config.model, seed, policy.data_path, secret)
    check_own_data(context.state, context.run_id, policy.data_path, data.source_fingerprint)
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
