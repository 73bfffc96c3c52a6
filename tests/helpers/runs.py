"""What two runs are compared by, and clients that fail."""

from flwr.clientapp import ClientApp

from fedattn_app import client_app


class Failing(ClientApp):
    """Our clients, of whom number 1 cannot train."""

    def __call__(self, message, context):
        failing = context.node_config["partition-id"] == 1
        if failing and message.metadata.message_type == "train":
            raise RuntimeError("out of order")
        return client_app.app(message, context)


def settled(result):
    """Everything a run wrote but its clocks."""
    keep = [{**row, "seconds": None} for row in (*result.history, *result.clients)]
    return keep, {**result.summary, "seconds": None}


def same_arrays(left, right):
    assert left.arrays.keys() == right.arrays.keys()
    return all(left.arrays[k].tobytes() == right.arrays[k].tobytes() for k in left.arrays)


# A run that takes a second: the smallest model, four rounds, no evaluation by clients.
QUICK = {
    "model": "tiny",
    "vocabulary": 512,
    "max-length": 16,
    "num-rounds": 4,
    "learning-rate": 0.01,
    "fraction-evaluate": 0.0,
}
