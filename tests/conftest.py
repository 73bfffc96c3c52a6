"""Fixtures that several test files use."""

import gc
import logging
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from helpers.nodes import PRIVATE, context
from helpers.pretrained_folders import FAMILIES_TESTED, LABELS, make_folder
from transformers import AutoModelForSequenceClassification

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.engine import local_grid as local_engine
from fedattn_app.errors import UserError
from fedattn_app.flower_compat import task_identity
from fedattn_app.models.fast_linear import is_faster, is_supported

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # some tests import its scripts
SHARED_DATA = ROOT.parent / "shared" / "data"
SLOW_TEST_TIMEOUT = 1800  # seconds; other tests have the limit in pyproject.toml


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_TIMEOUT))


def pytest_report_header():
    """Say by which library linear layers multiply in this session: see `models.fast_linear`."""
    used = "oneDNN" if is_faster() else "torch"
    return f"linear layers: {used}; oneDNN {'is' if is_supported() else 'is not'} supported"


@pytest.fixture
def refused():
    """A context whose code must raise a one-line `UserError` that contains all `parts`."""

    @contextmanager
    def context(*parts):
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        for part in parts:
            assert str(part) in message

    return context


@pytest.fixture(scope="module")
def one_thread():
    """One torch thread, which is faster than two for models this small."""
    with local_engine.one_thread():
        yield


@pytest.fixture
def no_garbage():
    """Close what earlier tests have left open for the garbage collector."""
    gc.collect()


@pytest.fixture
def python():
    """A function that runs code in a new Python process, with arguments and environment."""

    def run(code, *arguments, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**kept, "FLWR_TELEMETRY_ENABLED": "0", **environment},
            timeout=200,
        )

    return run


# Data and runs


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets next to the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture
def fresh_caches():
    """Clear what earlier tests have cached."""
    PROCESS_CACHE.clear()


@pytest.fixture
def tiny(tmp_path):
    """Run-config of a federation that trains for a second or two."""
    return {
        "model": "tiny",
        "vocabulary": 512,
        "num-rounds": 2,
        "output-dir": str(tmp_path / "run"),
    }


# Nodes


@pytest.fixture
def task_id():
    """Identify the process to Flower as one that may make messages."""
    with task_identity():
        yield


@pytest.fixture
def site(tmp_path):
    """The path of a file with 40 examples, for a node's `data-path`."""
    path = tmp_path / "site.csv"
    path.write_text("text,label\n" + "fine and good,yes\nbad and slow,no\n" * 20)
    return str(path)


@pytest.fixture
def private_node(site, tmp_path):
    """A function that makes the context of a real node with its own data and a state-dir."""

    def node(run_config=PRIVATE, **node_config):
        own = {"data_path": site, "state_dir": str(tmp_path / "state"), **node_config}
        return context(run_config, **own)

    return node


@pytest.fixture
def node_log(caplog):
    """`caplog`, which also has what a real node logs and Python's root logger does not get."""
    logging.getLogger("fedattn").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("fedattn").removeHandler(caplog.handler)


# Pretrained models


@pytest.fixture(scope="session")
def pretrained_folder(tmp_path_factory):
    """A function that makes the folder of a tiny pretrained model, once per set of arguments.

    The arguments are those of `make_folder` without the path. Tests must copy what they change.
    """

    @cache
    def folder(family, *args, **changes):
        return make_folder(family, tmp_path_factory.mktemp(family), *args, **changes)

    return folder


@pytest.fixture(params=FAMILIES_TESTED)
def family(request):
    """The model family of the folders below."""
    return request.param


@pytest.fixture
def encoder_folder(family, pretrained_folder):
    """A folder with weights but no head, as most models are published."""
    return pretrained_folder(family)


@pytest.fixture
def classifier_folder(family, pretrained_folder):
    """A folder with weights and a head for `LABELS`."""
    return pretrained_folder(family, AutoModelForSequenceClassification, labels=LABELS)


@pytest.fixture
def folder_copy(request, pretrained_folder, tmp_path_factory):
    """A copy of the folder with weights but no head, which a test may damage.

    The family is BERT unless the test uses the fixture `family`. The path contains no word that an
    error text should contain.
    """
    names = request.fixturenames
    family = request.getfixturevalue("family") if "family" in names else "bert"
    path = tmp_path_factory.mktemp("scratch") / "copy"
    return Path(shutil.copytree(pretrained_folder(family), path))
