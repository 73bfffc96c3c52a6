"""Fixtures of the tests on real SuperLinks and SuperNodes."""

import pytest
from helpers.deployment import Deployment


@pytest.fixture
def deployment(tmp_path):
    made = Deployment(tmp_path)
    yield made
    made.stop()
