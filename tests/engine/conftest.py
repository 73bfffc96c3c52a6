"""Fixtures for tests of the local engine."""

from multiprocessing import active_children

import pytest

from fedattn_app.flower_compat import task_identity


@pytest.fixture(autouse=True)
def _leaves_no_process():
    """Allow this process to make messages, and require that the test leaves no child process."""
    with task_identity():
        yield
    assert active_children() == []
