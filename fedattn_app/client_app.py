"""The Flower ClientApp: translates Messages to a client's `fit` and `evaluate`, and back.

A message holds arrays by name, whereas a `NumPyClient` takes and returns a list. Only this module
converts between the two.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedattn_app.clients.factory import make_client, policy_of
from fedattn_app.console import printing
from fedattn_app.engine.virtual_node import is_simulated
from fedattn_app.errors import UserError
from fedattn_app.flower_compat import failure_reply
from fedattn_app.policy.reasons import Reason, RefusalError
from fedattn_app.policy.release import wait_for_release

if TYPE_CHECKING:
    from flwr.common import NDArrays, Scalar

    from fedattn_app.clients.base import FrozenClient

Task: TypeAlias = "Callable[[FrozenClient, NDArrays], Message]"

log = logging.getLogger("fedattn")

app = ClientApp()


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Reply with this node's ``partition-id`` (-1 if unset) and ``num-partitions`` (0 if unset).

    The server orders the nodes by partition. ``own-data`` is whether the node has a file of its
    own; without it, the server can split the data set of the run as the nodes do.
    """
    try:
        own_data = bool(policy_of(context).data_path)
    except Exception:  # the node says so when it is asked to train
        own_data = True
    answer = ConfigRecord(
        {
            "partition-id": _whole_number(context, "partition-id", -1),
            "num-partitions": _whole_number(context, "num-partitions", 0),
            "own-data": own_data,
        }
    )
    return Message(RecordDict({"node": answer}), reply_to=message)


def _whole_number(context: Context, key: str, default: int) -> int:
    """Return the value of `key` in the node-config, or `default` if it is no whole number."""
    value = context.node_config.get(key)
    return value if type(value) is int else default


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


def _answer(message: Message, context: Context, task: Task) -> Message:
    """Make the client, run `task` with the arrays of `message`, and return the reply."""
    if is_simulated(context):
        return _simulated_answer(message, context, task)
    began, reply_every = time.monotonic(), 0.0
    with printing():
        try:
            reply_every = policy_of(context).reply_every
            client = make_client(context, _server_round(message))
            reply = task(client, _parameters(message, client))
        except Exception as error:
            reply = failure_reply(message, _reason_of(error))
        wait_for_release(began, reply_every)
        return reply


def _simulated_answer(message: Message, context: Context, task: Task) -> Message:
    """Return the reply of a simulated node, whose errors may say everything.

    With ``dp-sgd`` an error becomes a reply: Flower's simulation discards the state, and so the
    privacy ledger, of a client that raises.
    """
    from fedattn_app.privacy.protections import protection_of

    client = make_client(context, _server_round(message))
    parameters = _parameters(message, client)
    try:
        return task(client, parameters)
    except Exception as error:
        if protection_of(client.config).protects_on_node:
            return failure_reply(message, str(error))
        raise


def _reason_of(error: Exception) -> Reason:
    """Return what the server may know of `error`, and write `error` to the log of this node."""
    log.error("%s", error if isinstance(error, UserError) else repr(error))
    log.debug("the error in full", exc_info=error)
    return error.reason if isinstance(error, RefusalError) else Reason.ANSWER


def _parameters(message: Message, client: "FrozenClient") -> "NDArrays":
    """Return the arrays of `message` as a list, in the order of the client's shared parameters.

    In a run with warm-up rounds, the frozen parameters follow if the message holds them. Raises
    `RefusalError` if the names of the shared parameters differ.
    """
    record = message.content.array_records["arrays"]
    if set(record) != set(client.shared):
        different = sorted(set(record) ^ set(client.shared))
        raise RefusalError(
            Reason.SHARED,
            f"{Reason.SHARED}: {len(different)} names differ, such as {different[0]}",
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
