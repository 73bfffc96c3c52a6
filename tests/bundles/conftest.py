"""Fixtures of the tests of bundles."""

import pytest
from helpers.bundles import bundle_of, pyproject

from fedattn_app.bundles.approvals import Approvals
from fedattn_app.bundles.bundle import read_bundle

FILES = {
    "pyproject.toml": pyproject("someone", "small", "1.0.0"),
    "app.py": "client = None\nserver = None\n",
    "package/__init__.py": "",
    "README.md": "# Small\n",
}


@pytest.fixture
def files():
    """The files of a small app by path; a test may change them."""
    return dict(FILES)


@pytest.fixture
def made():
    """A function that makes a bundle of files and reads it."""
    return lambda files: read_bundle(bundle_of(files), "made.fab")


@pytest.fixture
def approvals(tmp_path):
    return Approvals(tmp_path / "mine" / "approved")
