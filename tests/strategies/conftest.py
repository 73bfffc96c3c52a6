import pytest

from fedattn_app.engine.local_grid import task_identity


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield
