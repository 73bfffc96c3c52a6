import pytest

from fedattn_app.local_engine import task_identity


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield
