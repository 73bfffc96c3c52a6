"""The Flower ClientApp: translates Messages to a client's `fit` and `evaluate`, and back.

Each message may be a process of its own on a real node, so what only some messages need is
imported where it is used.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedattn_app.clients.node_policy import (
    check_node_remembers,
    check_owner_agrees,
    is_real,
    kept_here,
    ledger_path,
    limit_of,
)
from fedattn_app.console import printing
from fedattn_app.flower_compat import failure_reply

if TYPE_CHECKING:
    from flwr.common import NDArrays, Scalar

    from fedattn_app.clients.base import FrozenClient
    from fedattn_app.clients.node_state import NodeState
    from fedattn_app.config import Config
    from fedattn_app.data.examples import ClientData

log = logging.getLogger("fedattn")

NOT_TOLD = "this node cannot answer; its own log says why"

app = ClientApp()


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Tell which partition this node is, so that the server can order the nodes."""
    answer = ConfigRecord(
        {
            "partition-id": int(context.node_config.get("partition-id", -1)),
            "num-partitions": int(context.node_config.get("num-partitions", 0)),
        }
    )
    return Message(RecordDict({"node": answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train locally and answer with the named shared arrays and the metrics of `fit`."""
    from fedattn_app.transport.lazy_array import lazy_record

    def fit(client: "FrozenClient", given: "NDArrays") -> Message:
        arrays, num_examples, metrics = client.fit(given, _config(message))
        record = lazy_record(dict(zip(client.shared, arrays, strict=True)))
        return _reply(message, num_examples, metrics, {"arrays": record})

    return _answer(message, context, fit)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate locally and answer with the loss and the metrics of `evaluate`."""

    def score(client: "FrozenClient", given: "NDArrays") -> Message:
        _, num_examples, metrics = client.evaluate(given, _config(message))
        return _reply(message, num_examples, metrics, {})

    return _answer(message, context, score)


def _answer(
    message: Message, context: Context, task: "Callable[[FrozenClient, NDArrays], Message]"
) -> Message:
    """Make the client and let it do its `task` with the arrays of `message`."""
    with _logging(context):
        client = client_fn(context, _round(message))
        given = _arrays(message, client)
        try:
            return task(client, given)
        except Exception as error:
            return _failed(message, context, error)


def _logging(context: Context) -> AbstractContextManager[None]:
    """Print our lines on a real node, into its own log; elsewhere the server's process does."""
    return printing() if is_real(context.node_config) else nullcontext()


def client_fn(context: Context, server_round: int = 0) -> "FrozenClient":
    """Make this node's client from its run-config and node-config, for a round if it says which."""
    from fedattn_app.clients.base import FrozenClient, PersonalClient
    from fedattn_app.data.loading import client_data, label_names, private_data
    from fedattn_app.models.factory import build_tokenizer

    config = _settings(tuple((k, type(v), v) for k, v in context.run_config.items()))
    if 0 < server_round <= config.federation.warmup_rounds:
        config = replace(config, federation=config.federation.while_warming_up)
    node = context.node_config
    check_owner_agrees(config, node)
    check_node_remembers(config, context)
    seed = config.federation.seed
    partition = int(node.get("partition-id", 0))
    # With a file of its own the node reads no other: not even for the labels.
    labels = config.data.label_names if "data-path" in node else label_names(config.data)
    with kept_here(node, "load the model"):
        if config.model.pretrained and "model-path" in node:
            config = replace(config, model=replace(config.model, model=str(node["model-path"])))
        build_tokenizer(config.model)  # kept for the data, whose errors may be told
    if "data-path" in node:
        with kept_here(node, "use its data-path"):
            secret = config.privacy.privacy == "dp-sgd"
            data = private_data(config.data, config.model, seed, str(node["data-path"]), secret)
    else:
        num_partitions = int(node.get("num-partitions", 1))
        data = client_data(config.data, config.model, seed, partition, num_partitions)
    if config.privacy.privacy == "dp-sgd":
        return _private_client(context, config, labels, data, partition)
    with kept_here(node, "load the model"):
        if config.federation.local == "personal":
            return PersonalClient(config, labels, data, partition, _state(context))
        return FrozenClient(config, labels, data, partition)


@lru_cache(maxsize=2)
def _settings(run_config: "tuple[tuple[str, type, bool | int | float | str], ...]") -> "Config":
    """Read the run-config; types are in the key, since 1 and True are the same key otherwise."""
    from fedattn_app.config import Config

    return Config.from_run_config({key: value for key, _, value in run_config})


def _private_client(
    context: Context, config: "Config", labels: tuple[str, ...], data: "ClientData", partition: int
) -> "FrozenClient":
    from fedattn_app.clients.private import PrivateClient
    from fedattn_app.privacy.ledger import Ledger

    node = context.node_config
    with kept_here(node, "train with these privacy settings"):
        return PrivateClient(
            config,
            labels,
            data,
            partition,
            _state(context),
            Ledger(context.state, ledger_path(node)),
            context.run_id,
            limit_of(node, "max-epsilon"),
        )


def _state(context: Context) -> "NodeState":
    from fedattn_app.clients.node_state import ContextState, FolderState
    from fedattn_app.files import user_path

    folder = context.node_config.get("state-dir")
    if folder:
        return FolderState(user_path("state-dir", str(folder)))
    if is_real(context.node_config):
        log.warning("no state-dir in node-config: personal parameters end with the run")
    return ContextState(context.state)


def _arrays(message: Message, client: "FrozenClient") -> "NDArrays":
    record = message.content.array_records["arrays"]
    if set(record) != set(client.shared):
        odd = sorted(set(record) ^ set(client.shared))
        raise ValueError(
            f"the server shares other parameters than this node: {len(odd)} names are in one of "
            f"the two only, such as {odd[0]}"
        )
    given = [record[name].numpy() for name in client.shared]
    warmed = client.config.federation.warmup_rounds
    rest = message.content.array_records.get("rest") if warmed else None
    return given + ([rest[name].numpy() for name in client.frozen] if rest else [])


def _round(message: Message) -> int:
    value = message.content.config_records["config"].get("server-round", 0)
    return value if isinstance(value, int) else 0


def _config(message: Message) -> "dict[str, Scalar]":
    record = message.content.config_records["config"]
    return {key: value for key, value in record.items() if not isinstance(value, list)}


def _failed(message: Message, context: Context, error: Exception) -> Message:
    """Raise `error`, or under ``dp-sgd`` answer that it failed without saying why.

    The reason may tell of files, and under ``dp-sgd`` of examples. Flower's simulation forgets the
    state, and so the ledger, of a client that raises.
    """
    from fedattn_app.clients.base import FrozenMismatchError
    from fedattn_app.errors import UserError

    told = isinstance(error, FrozenMismatchError) or not is_real(context.node_config)
    if context.run_config.get("privacy") == "dp-sgd":
        log.error("%s: %s", type(error).__name__, error)
        reason = str(error) if told else NOT_TOLD
        return failure_reply(message, reason)
    if isinstance(error, UserError) and not told:
        log.error("%s", error)
        raise UserError(NOT_TOLD) from None
    raise error


def _reply(
    message: Message,
    num_examples: int,
    metrics: "Mapping[str, Scalar]",
    records: Mapping[str, ArrayRecord],
) -> Message:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    content = RecordDict(
        {**records, "metrics": MetricRecord({"num-examples": num_examples, **numbers})}
    )
    return Message(content, reply_to=message)
