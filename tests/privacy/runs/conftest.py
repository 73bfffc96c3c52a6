"""Fixtures: a small data set, and runs with differential privacy."""

from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO

import pytest
from helpers.private_clients import CLIENTS, KINDS, TINY

from fedattn_app.simulation import simulate


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """Settings of a file with 240 examples whose labels are easy to predict."""
    path = tmp_path_factory.mktemp("opinions") / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(240)]
    path.write_text("\n".join(["text,label", *rows]))
    return {"dataset": "file", "data-path": str(path), "max-length": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory, opinions):
    """A function that trains the built-in model on `opinions` in a new folder.

    It returns the result and the printed text.
    """

    def new(**settings):
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        data = {} if "dataset" in named else opinions
        folder = {"output-dir": str(tmp_path_factory.mktemp("run") / "out")}
        if "resume-from" in named:
            data = folder = {}
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            model = {} if {"model", "resume-from"} & named.keys() else TINY
            result = simulate(model | folder | data | named, CLIENTS)
        return result, out.getvalue()

    return new


@pytest.fixture(scope="module")
def cached_run(run):
    """The same function with a cache, for runs that several tests use."""
    return cache(run)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param
