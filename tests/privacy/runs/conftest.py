"""Private runs, and the data that they are on."""

from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO

import pytest
from helpers.private_clients import CLIENTS, KINDS, TINY

from fedattn_app.simulation import simulate


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """A file of 240 examples that are easy to tell apart."""
    path = tmp_path_factory.mktemp("opinions") / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(240)]
    path.write_text("\n".join(["text,label", *rows]))
    return {"dataset": "file", "data-path": str(path), "max-length": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory, opinions):
    """A function that runs the built-in model on `opinions` in a new folder.

    It returns the result and all that was printed.
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
def once(run):
    """The same, for runs that several tests look at."""
    return cache(run)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param
