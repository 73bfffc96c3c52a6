"""The Flower ClientApp: translates Messages to a client's `fit` and `evaluate`, and back.

A node answers with named arrays. This is the one place where names are taken off arrays, which a
`NumPyClient` takes as a list, and put back on.
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
    """Answer which partition this node is, so that the server can order the nodes."""
    answer = ConfigRecord(
        {
            "partition-id": int(context.node_config.get("partition-id", -1)),
            "num-partitions": int(context.node_config.get("num-partitions", 0)),
        }
    )
    return Message(RecordDict({"node": answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train locally and answer with the encoded shared arrays and the metrics of `fit`."""
    from fedattn_app.transport.codec import codec_of

    def fit(client: "FrozenClient", parameters: "NDArrays") -> Message:
        arrays, num_examples, metrics = client.fit(parameters, _config(message))
        named = dict(zip(client.shared, arrays, strict=True))
        record = codec_of(client.config).encode(named)
        return _reply(message, num_examples, metrics, {"arrays": record})

    return _answer(message, context, fit)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate locally and answer with the metrics of `evaluate`."""

    def score(client: "FrozenClient", parameters: "NDArrays") -> Message:
        _, num_examples, metrics = client.evaluate(parameters, _config(message))
        return _reply(message, num_examples, metrics, {})

    return _answer(message, context, score)


def _answer(
    message: Message, context: Context, task: "Callable[[FrozenClient, NDArrays], Message]"
) -> Message:
    """Make the client and let it do its `task` with the arrays of `message`."""
    with _logging(context):
        client = make_client(context, _server_round(message))
        parameters = _parameters(message, client)
        try:
            return task(client, parameters)
        except Exception as error:
            return _failed(message, context, client, error)


def _logging(context: Context) -> AbstractContextManager[None]:
    """Print log lines on a real node; in a simulation the server's process prints them."""
    return printing() if is_real(context.node_config) else nullcontext()


def _parameters(message: Message, client: "FrozenClient") -> "NDArrays":
    """Return the arrays of `message` in the client's order."""
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
    """Raise `error`, or answer that the message failed where raising would harm.

    On a real node the reason may name files, and with ``dp-sgd`` depend on examples: it stays
    there. Flower's simulation discards the state, and so the privacy ledger, of a client that
    raises.
    """
    from fedattn_app.clients.base import FrozenMismatchError
    from fedattn_app.errors import UserError
    from fedattn_app.privacy.protections import protection_of

    may_leave = isinstance(error, FrozenMismatchError) or not is_real(context.node_config)
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
