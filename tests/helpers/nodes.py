"""The messages that a node gets, its context, and its privacy ledger."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedattn_app import client_app
from fedattn_app.config import Config
from fedattn_app.models.families import BUILT_IN
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.policy.reasons import Reason
from fedattn_app.privacy.ledger import Ledger

SETTINGS = {"model": "tiny", "vocabulary": 512, "dataset": "file", "labels": "no,yes"}
PERSONAL = SETTINGS | {"local": "personal", "shared": "attention"}
PRIVATE = SETTINGS | {"privacy": "dp-sgd", "noise-multiplier": 1.0, "batch-size": 32}

# Keys with which the owner of a node allows runs without privacy.
OPEN = {"allow_unprotected": True}

# The error that the server gets if the owner or the ledger of a private node stops the training.
PRIVACY_REFUSAL = str(Reason.TRAIN_PRIVATELY)


def context(run_config=SETTINGS, kind=Context, **node_config):
    """Flower's context of a node, a real one unless `kind` is `VirtualContext`."""
    node = {key.replace("_", "-"): value for key, value in node_config.items()}
    return kind(1, 2, node, RecordDict(), Config.from_run_config(run_config).to_run_config())


def message(kind="train", run_config=SETTINGS, **more):
    """A message of round 1 with the initial shared arrays of a model for two labels."""
    config = Config.from_run_config(run_config)
    arrays = get_arrays(build_model(config.model, 2, 1))
    names = scope_of(config.federation.shared, "frozen", BUILT_IN, arrays).shared
    record = ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items() if n in names})
    content = {"arrays": record, "config": ConfigRecord({"server-round": 1}), **more}
    return Message(RecordDict(content), 2, kind)


def as_real(context, **node_config):
    """The context of a simulated node as that of a real one, with more keys in its node-config."""
    keys = {key.replace("_", "-"): value for key, value in node_config.items()}
    node = {**context.node_config, **keys}
    return Context(context.run_id, context.node_id, node, context.state, context.run_config)


def train(node):
    """The reply of a node to a training message of a run with DP-SGD."""
    return client_app.app(message(run_config=PRIVATE), node)


def ledger_of(tmp_path, name="privacy-ledger"):
    """The ledger of a node whose state-dir is the folder `state` in `tmp_path`."""
    return Ledger(RecordDict(), tmp_path / "state" / f"{name}.json")
