"""Clients of a run with DP-SGD, made without Flower, and their tasks."""

import math

import numpy as np
from flwr.app import RecordDict

from fedattn_app.clients.node_state import ContextState
from fedattn_app.clients.private import PrivateClient
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.data.loading import client_data
from fedattn_app.data.triage import LABELS
from fedattn_app.privacy.ledger import Ledger

DELTA = 1e-5


def config_of(**changes):
    """The config of a run with DP-SGD; `changes` are run-config keys with underscores."""
    keys = {"model": "tiny", "vocabulary": 512, "privacy": "dp-sgd", "batch-size": 32}
    if not {"noise_multiplier", "target_epsilon"} & set(changes):
        changes["noise_multiplier"] = 1.0
    return Config.from_run_config(keys | {k.replace("_", "-"): v for k, v in changes.items()})


def data_of(config, num_examples=32, held_out=20):
    """Examples for training and for evaluation: `num_examples` and `held_out` of them."""
    data = client_data(config.data, config.model, 1, 0, 3)

    def resized(examples, count):
        return examples[np.arange(count) % len(examples)]

    return ClientData(resized(data.train, num_examples), resized(data.validation, held_out))


def client_of(
    ledger=None, num_examples=32, held_out=20, run=1, max_epsilon=math.inf, state=None, **changes
):
    """A client with its own empty ledger and state unless these are given."""
    config = config_of(**changes)
    return PrivateClient(
        config,
        LABELS,
        data_of(config, num_examples, held_out),
        0,
        state or ContextState(RecordDict()),
        ledger or Ledger(RecordDict()),
        run,
        max_epsilon,
    )


def fit(client, server_round=1):
    return client.fit(client.get_parameters({}), {"server-round": server_round})


def evaluate(client, server_round=1):
    return client.evaluate(client.get_parameters({}), {"server-round": server_round})


def equal(left, right):
    """Return whether two lists of arrays have the same bits."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))
