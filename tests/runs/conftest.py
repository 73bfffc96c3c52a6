"""Fixtures for tests of whole runs."""

import pytest
from helpers.runs import CLIENTS

from fedattn_app.simulation import simulate


@pytest.fixture
def ran(tiny):
    """The result of the run that `tiny` describes."""
    return simulate(tiny, CLIENTS, quiet=True)
