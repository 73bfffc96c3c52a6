"""Replies as clients would send them, for tests of a strategy."""

import re
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedattn_app.engine.local_grid import LocalGrid


def grid(num_nodes):
    return LocalGrid(ClientApp(), num_nodes, {})


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def reply(node, num_examples=1, loss=1.0, more=None, **arrays):
    """Return a reply to a training message with `arrays`; `more` are further metrics."""
    metrics = {"num-examples": num_examples, "loss": loss, **(more or {})}
    content = RecordDict({"arrays": record(**arrays), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def failed_reply(node):
    return Message(Error(1, "boom"), reply_to=Message(RecordDict(), node, "train"))


def after_round(rule, before, replies, server_round=1):
    """Run one round of `rule` from the arrays `before`, and return the arrays after it."""
    nodes = grid(max(2, len(replies)))  # Flower waits for two
    list(rule.configure_train(server_round, record(**before), ConfigRecord(), nodes))
    arrays, _ = rule.aggregate_train(server_round, replies)
    return {name: array.numpy() for name, array in arrays.items()}


def documented_rule():
    """Return the code of the rule in docs/strategies.md, and its class."""
    text = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    namespace = {}
    exec(compile(code, "docs/strategies.md", "exec"), namespace)
    return code, namespace["Midrange"]


def random_arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "b": (3,), "s": ()}
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
