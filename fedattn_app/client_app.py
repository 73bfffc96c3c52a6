"""The Flower ClientApp: translates Messages to a client's `fit` and `evaluate`, and back.

A message holds arrays by name, whereas a `NumPyClient` takes and returns a list. Only this module
converts between the two.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
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

from fedattn_app.clients.factory import make_client
from fedattn_app.clients.node_policy import is_real
from fedattn_app.console import printing
from fedattn_app.flower_compat import failure_reply

if TYPE_CHECKING:
    from flwr.common import NDArrays, Scalar

    from fedattn_app.clients.base import FrozenClient

log = logging.getLogger("fedattn")

REASON_STAYS_HERE = "this node cannot answer; its own log says why"

app = ClientApp()


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Reply with this node's ``partition-id`` (-1 if unset) and ``num-partitions`` (0 if unset).

    The server orders the nodes by partition. ``own-data`` is whether the node has a file of its
    own; without it, the server can split the data set of the run as the nodes do.
    """
    answer = ConfigRecord(
        {
            "partition-id": int(context.node_config.get("partition-id", -1)),
            "num-partitions": int(context.node_config.get("num-partitions", 0)),
            "own-data": "data-path" in context.node_config,
        }
    )
    return Message(RecordDict({"node": answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train locally. Reply with the encoded shared arrays and the metrics of `fit`."""
    from fedattn_app.transport.codec import codec_of

    def fit(client: "FrozenClient", parameters: "NDArrays") -> Message:
        arrays, num_examples, metrics = client.fit(parameters, _config(message))
        named = dict(zip(client.shared, arrays, strict=True))
        record = codec_of(client.config).encode(named)
        return _reply(message, num_examples, metrics, {"arrays": record})

    return _answer(message, context, fit)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate locally. Reply with the metrics of `evaluate`."""

    def score(client: "FrozenClient", parameters: "NDArrays") -> Message:
        _, num_examples, metrics = client.evaluate(parameters, _config(message))
        return _reply(message, num_examples, metrics, {})

    return _answer(message, context, score)


def _answer(
    message: Message, context: Context, task: "Callable[[FrozenClient, NDArrays], Message]"
) -> Message:
    """Make the client, run `task` with the arrays of `message`, and return the reply."""
    with _logging(context):
        client = make_client(context, _server_round(message))
        parameters = _parameters(message, client)
        try:
            return task(client, parameters)
        except Exception as error:
            return _failed(message, context, client, error)


def _logging(context: Context) -> AbstractContextManager[None]:
    """Return a context that prints log lines on a real node.

    In a simulation it does nothing, because the server's process prints them.
    """
    return printing() if is_real(context.node_config) else nullcontext()


def _parameters(message: Message, client: "FrozenClient") -> "NDArrays":
    """Return the arrays of `message` as a list, in the order of the client's shared parameters.

    In a run with warm-up rounds, the frozen parameters follow if the message holds them. Raises
    `ValueError` if the names of the shared parameters differ.
    """
    record = message.content.array_records["arrays"]
    if set(record) != set(client.shared):
        different = sorted(set(record) ^ set(client.shared))
        raise ValueError(
            f"the server shares other parameters than this node: {len(different)} names differ, "
            f"such as {different[0]}"
        )
    parameters = [record[name].numpy() for name in client.shared]
    if client.config.federation.warmup_rounds and "rest" in message.content.array_records:
        rest = message.content.array_records["rest"]
        parameters += [rest[name].numpy() for name in client.frozen]
    return parameters


def _server_round(message: Message) -> int:
    value = message.content.config_records["config"].get("server-round", 0)
    return value if isinstance(value, int) else 0


def _config(message: Message) -> "dict[str, Scalar]":
    record = message.content.config_records["config"]
    return {key: value for key, value in record.items() if not isinstance(value, list)}


def _failed(
    message: Message, context: Context, client: "FrozenClient", error: Exception
) -> Message:
    """Raise `error`, or return a reply that says why the client failed.

    With ``dp-sgd`` the result is a reply: Flower's simulation discards the state, and so the
    privacy ledger, of a client that raises. On a real node two kinds of texts stay in the node's
    log: that of a `UserError`, which may name files, and with ``dp-sgd`` that of any error, which
    may depend on examples. A `MismatchError` is always reported.
    """
    from fedattn_app.clients.agreement import MismatchError
    from fedattn_app.errors import UserError
    from fedattn_app.privacy.protections import protection_of

    may_leave = isinstance(error, MismatchError) or not is_real(context.node_config)
    if protection_of(client.config).protects_on_node:
        log.error("%s: %s", type(error).__name__, error)
        reason = str(error) if may_leave else REASON_STAYS_HERE
        return failure_reply(message, reason)
    if isinstance(error, UserError) and not may_leave:
        log.error("%s", error)
        raise UserError(REASON_STAYS_HERE) from None
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
