"""A SuperLink and SuperNodes on this machine, for tests."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FEDATTN = (sys.executable, "-m", "fedattn_app.cli")
MARK = "FEDATTN_TEST_DEPLOYMENT"  # environment variable of every process of a deployment


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for_end(pid, seconds):
    """Wait for a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([handle], [], [], seconds)
    os.close(handle)


class Deployment:
    """A SuperLink and its SuperNodes, each in its own process group; `stop` ends them all."""

    def __init__(self, folder):
        self.folder = folder
        self.port, *self.node_ports = free_ports(3)
        self.environment = os.environ | {
            MARK: str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FEDATTN_APPROVED": str(folder / "approved"),
            "FEDATTN_RUNS": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n'
            f'[superlink.test]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.started = []

    def start(self, name, *command, **environment):
        with self.log_of(name).open("w") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment | environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def start_superlink(self):
        process = self.start(
            "superlink",
            *(BIN / "flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            FLWR_HOME=str(self.folder / "flwr-server"),  # the server is another machine
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            try:  # pause, but notice at once if the SuperLink dies
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        pytest.fail(self.log_of("superlink").read_text())

    def start_supernode(self, number, program=(*FEDATTN, "node"), **node_config):
        """Start the node of a number with `program` and a node-config."""
        pairs = " ".join(
            f"{k.replace('_', '-')}={json.dumps(v, default=str)}" for k, v in node_config.items()
        )
        return self.start(
            f"supernode{number}",
            *(*program, "--insecure", "--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(self.node_ports[number]), "--node-config", pairs),
        )

    def log_of(self, name):
        """The file with the output of a process: ``superlink`` or ``supernode`` and a number."""
        return self.folder / f"{name}.log"

    def flwr(self, *arguments):
        return self.command(BIN / "flwr", *arguments)

    def approve(self, bundle):
        """Approve a bundle, or that of an app's folder, for all nodes of the deployment."""
        approved = self.command(*FEDATTN, "approve", bundle)
        assert approved.returncode == 0, approved.stderr

    def command(self, *words):
        """Run a command in the folder and the environment of the deployment."""
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=300,
        )

    def end(self, process):
        """End a process as its owner does, and return its exit status."""
        process.terminate()
        status = process.wait(60)
        self.started.remove(process)
        return status

    def kill(self, process):
        """Kill a process and all that it has started, and return how many processes that were."""
        group = [pid for pid in self.left() if os.getpgid(pid) == process.pid]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pid in group:
            wait_for_end(pid, seconds=20)
        self.started.remove(process)
        return len(group)

    def stop(self):
        for process in self.started[::-1]:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for pid in self.left():
            wait_for_end(pid, seconds=20)
        left = self.left()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, "processes that did not end by themselves"

    def left(self):
        """Every process on this machine that this deployment has started."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except OSError:  # it ended, or is not ours to read
                continue
        return found
