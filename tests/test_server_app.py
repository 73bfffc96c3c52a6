"""The ServerApp confines the folders of a run on a server with real nodes, and only there."""

import sys

import pytest
from flwr.app import Context, RecordDict
from flwr.superlink.grid import HttpGrid, InMemoryGrid
from helpers.runs import QUICK

from fedattn_app import client_app, server_app, simulate
from fedattn_app.config import Config
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.flower_compat import task_identity
from fedattn_app.results.confinement import RUNS_VARIABLE
from fedattn_app.results.run_result import RunResult

REAL = HttpGrid(token="none")  # it connects when it is first used


@pytest.fixture(autouse=True)
def _keep_tracebacks(monkeypatch):
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # the app sets it to 0


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "allowed"))
    return tmp_path / "allowed"


def start(grid, **settings):
    run_config = {key.replace("_", "-"): value for key, value in settings.items()}
    server_app.app(grid, Context(1, 0, {}, RecordDict(), run_config))


@pytest.fixture
def started(monkeypatch):
    """The settings and the parent folder of each run that was started."""
    runs = []
    monkeypatch.setattr(server_app, "run", lambda grid, *arguments: runs.append(arguments))
    return runs


@pytest.mark.parametrize("key", ["output_dir", "resume_from"])
def test_a_folder_outside_is_refused_on_a_server_before_anything_is_made(
    refused, tmp_path, root, started, key
):
    with refused(f"{key.replace('_', '-')} = ", f"must be inside {RUNS_VARIABLE} = {root}"):
        start(REAL, **{key: str(tmp_path / "other")})
    assert not started
    assert not list(tmp_path.iterdir())


def test_a_folder_inside_is_used_on_a_server(root, started):
    start(REAL, output_dir="run")
    start(REAL)
    [(named, _), (unnamed, parent)] = started
    assert named.output.output_dir == str(root / "run")
    assert (unnamed.output.output_dir, parent) == ("", str(root))


def test_a_server_without_the_variable_makes_a_folder_itself(refused, monkeypatch, started):
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    with refused("output-dir = ", RUNS_VARIABLE):
        start(REAL, output_dir="run")
    start(REAL)
    assert started == [(Config(), "runs")]


def test_a_simulation_is_not_confined(tmp_path, root, started):
    simulated = object.__new__(InMemoryGrid)
    start(simulated, output_dir=str(tmp_path / "other"))
    start(simulated)
    [(named, _), (_, parent)] = started
    assert (named.output.output_dir, parent) == (str(tmp_path / "other"), "runs")


@pytest.mark.usefixtures("root")
def test_the_local_engine_is_not_confined(tmp_path):
    result = simulate({**QUICK, "num-rounds": 1, "output-dir": str(tmp_path / "run")}, 2, workers=1)
    assert result.path == tmp_path / "run"


def test_a_run_and_one_that_resumes_it_stay_inside(tmp_path, root, refused):
    def run(**settings):
        settings = {**QUICK, **settings}
        with task_identity():
            start(
                LocalGrid(client_app.app, 2, Config.from_run_config(settings).to_run_config()),
                **settings,
            )

    run(**{"num-rounds": 1})
    [first] = root.iterdir()
    run(**{"num-rounds": 2, "resume-from": first.name, "output-dir": "second"})
    assert len(RunResult(root / "second").history) == 3
    first.rename(tmp_path / "moved")
    first.symlink_to(tmp_path / "moved")
    with refused("resume-from = ", "must be inside"):
        run(**{"num-rounds": 2, "resume-from": first.name})
    assert {path.name for path in tmp_path.iterdir()} == {"allowed", "moved"}
