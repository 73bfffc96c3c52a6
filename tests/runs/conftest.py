"""Fixtures for tests of whole runs."""

import pytest
from helpers.runs import CLIENTS

from fedattn_app.simulation import simulate


@pytest.fixture
def ran(tiny):
    """The result of the run that `tiny` describes."""
    return simulate(tiny, CLIENTS, quiet=True)


@pytest.fixture
def few_texts(tmp_path):
    """The part of a command line's run-config that trains for a moment, on a file of 40 texts."""
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(40)]
    (tmp_path / "few.csv").write_text("\n".join(["text,label", *rows]))
    data = f'dataset="file" data-path="{tmp_path.as_posix()}/few.csv"'
    return f'{data} model="tiny" vocabulary=128 max-length=8'
