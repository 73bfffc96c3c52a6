"""Fixtures of the tests of the command ``fedattn``."""

import sys

import pytest

from fedattn_app.cli import app


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDATTN_APPROVED", str(tmp_path / "approved"))


@pytest.fixture
def fedattn(monkeypatch, capsys):
    """A function that runs the command and returns its exit status, output and errors."""

    def fedattn(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedattn", *map(str, arguments)])
        status = app.main()
        return status, *capsys.readouterr()

    return fedattn
