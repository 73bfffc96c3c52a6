"""Fixtures for tests of clients."""

import pytest

from fedattn_app.clients import private as private_client
from fedattn_app.privacy.accounting import Steps


@pytest.fixture
def trainings(monkeypatch):
    """Replace training by a record of the steps that noise would have been drawn for."""
    steps = []

    def record(model, trainable, examples, config, sampling, noise, *_):
        steps.append(Steps(noise.multiplier, sampling.rate, sampling.steps))

    monkeypatch.setattr(private_client, "train_privately", record)
    monkeypatch.setattr(private_client, "_engine", lambda *_: None)
    return steps
