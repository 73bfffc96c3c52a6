"""Tasks for worker processes, and their answers."""

import os

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedattn_app.engine.workers import Task


def tasks_for(nodes, **run_config):
    """A training task for each node id in `nodes`."""
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(4.0))})})
    return [
        Task(Message(content, node, "train"), Context(1, node, {}, RecordDict(), run_config))
        for node in nodes
    ]


def reply(message, **metrics):
    """A reply to `message` that has only `metrics`."""
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def metrics_of(answers, key):
    """The metric `key` of each answer."""
    return [answer.reply.content["metrics"][key] for answer in answers]


def reply_pid(message, context):
    """Reply with the id of the process and of the node."""
    return reply(message, pid=os.getpid(), node=context.node_id)
