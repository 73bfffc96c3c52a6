"""Helpers for tests of runs with differential privacy: altered clients, and parts of results."""

import json
from itertools import count

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.results.checkpoint import ACCOUNTANT
from fedattn_app.server.partition_grid import PartitionGrid

CLIENTS = 3
KINDS = ("dp-sgd", "client-dp")
TINY = {"model": "tiny", "vocabulary": 512}


def bits(result):
    return {name: array.tobytes() for name, array in result.arrays.items()}


def epsilons(result, partition):
    """The ε of a client after each round in which it took part."""
    return [row["epsilon"] for row in result.clients if row["partition"] == partition]


def participants(result):
    """The partitions that took part in each round, a list per round."""
    last = result.history[-1]["round"]
    return [
        [row["partition"] for row in result.clients if row["round"] == k]
        for k in range(1, last + 1)
    ]


def app_that_calls(before_evaluation):
    """Our ClientApp, which first calls `before_evaluation` when it has to evaluate."""
    app = ClientApp()

    @app.evaluate()
    def evaluate(message: Message, context):
        before_evaluation()
        return client_app.app(message, context)

    app.train()(client_app.app)
    app.query()(client_app.describe)
    return app


def releases(run):
    """The number of noisy releases that the accountant in a run's folder has counted."""
    accountant = json.loads((run / ACCOUNTANT).read_text())
    return sum(release["count"] for release in accountant["compositions"])


def app_with_metrics_changed_by(change):
    """Our ClientApp, but `change` alters the metrics in node 1's second training reply."""
    app = ClientApp()
    number = count(1)

    @app.train()
    def train(message: Message, context):
        reply = client_app.app(message, context)
        if context.node_config["partition-id"] == 1 and next(number) == 2:
            change(reply.content["metrics"])
        return reply

    app.evaluate()(client_app.app)
    app.query()(client_app.describe)
    return app


def run_with(run_config, client_app, num_rounds=3):
    """Run `client_app` on the local engine and return the result."""
    settings = {"privacy": "dp-sgd", "noise-multiplier": 1.0, **run_config}
    config = Config.from_run_config(settings | {"num-rounds": num_rounds})
    with task_identity():
        grid = LocalGrid(client_app, CLIENTS, dict(config.to_run_config()))
        return server_app.run(PartitionGrid(grid), config)
