"""Fixtures that several test files use."""

from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from fedattn_app.errors import UserError

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def refused():
    """A context whose code must raise a one-line `UserError` that says every one of `parts`."""

    @contextmanager
    def context(*parts):
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        for part in parts:
            assert str(part) in message

    return context


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets that lies beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture
def tiny(tmp_path):
    """Run-config of a federation that trains in a second or two."""
    return {
        "model": "tiny",
        "vocabulary": 512,
        "num-rounds": 2,
        "output-dir": str(tmp_path / "run"),
    }


@pytest.fixture(scope="session")
def pretrained_folder(tmp_path_factory):
    """A function that makes the folder of a tiny pretrained model once for the same arguments.

    The arguments are those of `make_folder`, without the path. Tests copy what they change.
    """
    from pretrained_folders import make_folder

    @cache
    def folder(family, *args, **changes):
        return make_folder(family, tmp_path_factory.mktemp(family), *args, **changes)

    return folder
