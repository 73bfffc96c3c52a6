import pytest

from fedattn_app.flower_compat import task_identity


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield
