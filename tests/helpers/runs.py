"""Run an app or compare two runs; a run-config that takes a second, and an app that fails."""

from flwr.clientapp import ClientApp

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.server.partition_grid import PartitionGrid

CLIENTS = 3

# The smallest model, four rounds, no evaluation by clients.
QUICK = {
    "model": "tiny",
    "vocabulary": 512,
    "max-length": 16,
    "num-rounds": 4,
    "learning-rate": 0.01,
    "fraction-evaluate": 0.0,
}


class FailingClientApp(ClientApp):
    """Our ClientApp, except that client 1 raises when it should train."""

    def __call__(self, message, context):
        failing = context.node_config["partition-id"] == 1
        if failing and message.metadata.message_type == "train":
            raise RuntimeError("out of order")
        return client_app.app(message, context)


def app_that(train):
    """Our ClientApp, which calls `train` before a client trains."""
    app = ClientApp()

    @app.train()
    def train_after(message, context):
        train()
        return client_app.app(message, context)

    app.evaluate()(client_app.app)
    app.query()(client_app.app)
    return app


def run_app(app, config, num_supernodes=CLIENTS):
    """Run the server with the ClientApp `app` on a local grid."""
    config = Config.from_run_config(config)
    with task_identity():
        grid = LocalGrid(app, num_supernodes, dict(config.to_run_config()))
        return server_app.run(PartitionGrid(grid), config)


def without_times(result):
    """Return everything that a run wrote, with None in place of durations."""
    rows = [{**row, "seconds": None} for row in (*result.history, *result.clients)]
    return rows, {**result.summary, "seconds": None}


def same_arrays(left, right):
    """Return whether two runs have the same parameters, bit for bit."""
    assert left.arrays.keys() == right.arrays.keys()
    return all(left.arrays[k].tobytes() == right.arrays[k].tobytes() for k in left.arrays)
