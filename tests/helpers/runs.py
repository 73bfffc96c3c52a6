"""Comparison of two runs, a run-config that takes a second, and an app with a failing client."""

from flwr.clientapp import ClientApp

from fedattn_app import client_app

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


def without_times(result):
    """Return everything that a run wrote, with None in place of durations."""
    rows = [{**row, "seconds": None} for row in (*result.history, *result.clients)]
    return rows, {**result.summary, "seconds": None}


def same_arrays(left, right):
    """Return whether two runs have the same parameters, bit for bit."""
    assert left.arrays.keys() == right.arrays.keys()
    return all(left.arrays[k].tobytes() == right.arrays[k].tobytes() for k in left.arrays)
