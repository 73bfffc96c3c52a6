"""Whole runs in worker processes, and that the processes end with their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import current_process
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from helpers.runs import CLIENTS, same_arrays, without_times

from fedattn_app import client_app, server_app
from fedattn_app.config import Config
from fedattn_app.engine import shared_memory
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate

pytestmark = pytest.mark.skipif(
    not shared_memory.AVAILABLE, reason="memfd_create exists on Linux only"
)

ROOT = Path(__file__).parents[2]

PRIVATE = {"privacy": "dp-sgd", "noise-multiplier": 1.0, "reproducible-noise": True}
SETTINGS = {
    "frozen": {},
    "personal": {"local": "personal", "shared": "attention"},
    "dp-sgd": PRIVATE | {"evaluate-epsilon": 1.0, "shared": "head"},
    "client-dp": {"privacy": "client-dp", "noise-multiplier": 1.0, "reproducible-noise": True},
    "uneven shares": {"partitioner": "dirichlet", "alpha": 0.3, "fraction-train": 0.7},
}


@pytest.fixture
def small(tiny, tmp_path):
    """Run-config of a federation on a few short texts."""
    path = tmp_path / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(60)]
    path.write_text("\n".join(["text,label", *rows]))
    data = {"dataset": "file", "data-path": str(path), "validation-fraction": 0.3}
    return tiny | data | {"max-length": 8, "vocabulary": 128}


@pytest.mark.parametrize("name", SETTINGS)
def test_any_number_of_workers_gives_the_same_bits(small, tmp_path, name):
    one, *others = (
        simulate(
            small | SETTINGS[name] | {"output-dir": str(tmp_path / f"{workers}")},
            CLIENTS,
            workers=workers,
            quiet=True,
        )
        for workers in (1, 2, 3)
    )
    assert one.history[-1]["evaluate"] is not None
    for other in others:
        assert without_times(other) == without_times(one)
        assert same_arrays(other, one)


def test_a_client_whose_process_dies_fails_in_that_round_only(small, tmp_path, caplog):
    flag = tmp_path / "flag"
    app = ClientApp()

    def passing(message, context):
        if context.node_config["partition-id"] == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    for register in (app.train, app.evaluate):
        register()(passing)
    app.query()(client_app.describe)
    config = Config.from_run_config(small)
    grid = LocalGrid(app, CLIENTS, dict(config.to_run_config()), workers=2)
    result = server_app.run(PartitionGrid(grid), config)
    grid.close()
    assert [row["failures"] for row in result.history] == [0, 1, 0]
    trained = [
        (row["round"], row["partition"])
        for row in result.clients
        if row["num_examples"] is not None
    ]
    assert trained == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert "client 1 failed: its process died: exit code -9" in caplog.text


def test_a_process_that_may_not_start_others_does_everything_itself(small, monkeypatch):
    # As in a process of a multiprocessing pool, which may not have children.
    monkeypatch.setitem(current_process()._config, "daemon", True)
    assert simulate(small, CLIENTS, workers=2, quiet=True).summary["rounds"] == 2


# The end of the parent


def alive_in_session(leader):
    """Ids of the living processes in the session that process `leader` started."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # the process has just ended
            continue
        if int(session) == leader and state not in "ZX":
            alive.append(int(path.parent.name))
    return alive


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def named_memory():
    """Named files in shared memory, except those of Ray."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("plasma", "sem."))}


def test_an_interrupt_ends_the_script_and_its_processes(small, tmp_path):
    before = named_memory()
    settings = tmp_path / "settings.toml"
    settings.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in small.items()))
    more = ["--run-config", "num-rounds=100000", "--num-supernodes", "3", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, ROOT / "run_simulation.py", "--run-config", settings, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        # A shell that runs the tests in the background may have made them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as script:
        lines = iter(script.stdout.readline, "")
        assert any(line.startswith("round      2") for line in lines)
        assert len(alive_in_session(script.pid)) == 3
        os.killpg(script.pid, signal.SIGINT)  # all processes receive it, as from a terminal
        _, errors = script.communicate(timeout=60)
    assert script.returncode == 130
    assert [line.split(";")[0] for line in errors.splitlines()] == ["interrupted"]
    assert alive_in_session(script.pid) == []
    assert named_memory() <= before


def test_workers_end_when_their_parent_is_killed():
    code = """if True:
        import time
        from fedattn_app.engine.workers import Workers
        from fedattn_app.flower_compat import task_identity
        from helpers.worker_tasks import tasks_for
        with task_identity():
            answers = Workers(lambda message, context: time.sleep(100), 2).run(tasks_for(range(4)))
            next(answers)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        start_new_session=True,
    ) as parent:
        wait_until(lambda: len(alive_in_session(parent.pid)) == 3)
        parent.kill()
    wait_until(lambda: alive_in_session(parent.pid) == [], 10)
