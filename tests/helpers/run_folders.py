"""Rows, arrays and configurations for tests of a run's folder."""

from contextlib import contextmanager

import numpy as np

from fedattn_app.config import Config
from fedattn_app.results.run_folder import RunFolder

ARRAYS = {
    "weight": np.float32([[1.5, -0.0, 3], [np.nan, 1e-45, 6]]),
    "bias": np.arange(3, dtype=np.float32),
}
LATER = {name: array + 1 for name, array in ARRAYS.items()}
CLIENTS = [{"partition": 0, "accuracy": 0.25}, {"partition": 1, "accuracy": 0.5}]


def make_config(**settings):
    return Config.from_run_config({key.replace("_", "-"): v for key, v in settings.items()})


def row(server_round):
    return {"round": server_round, "seconds": 0.5, "train": {"loss": 1.0}, "epsilon_max": None}


def clients(server_round):
    return [{"round": server_round, **client} for client in CLIENTS] if server_round else []


def rounds(*numbers):
    return [row(number) for number in numbers]


@contextmanager
def begun(config, earlier=None):
    """The folder of a run that has begun and holds the lock."""
    with RunFolder(config) as folder:
        folder.begin(earlier=earlier)
        yield folder
