"""The app on a real SuperLink and two SuperNodes on this machine."""

import csv
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.pretrained_folders import make_folder

from fedattn_app.analysis.predictor import Predictor
from fedattn_app.privacy.accounting import epsilon_of
from fedattn_app.privacy.ledger import Entry
from fedattn_app.results.run_result import RunResult

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SITES = ("north", "south")

pytestmark = pytest.mark.timeout(900)


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
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FEDATTN_RUNS": str(folder),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n'
            f'[superlink.test]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.started = []

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [BIN / command[0], "--insecure", *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def start_superlink(self):
        process = self.start(
            "superlink",
            *("flower-superlink", "--disable-runtime-dependency-installation"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
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
        pytest.fail((self.folder / "superlink.log").read_text())

    def start_supernode(self, number, **node_config):
        pairs = " ".join(
            f"{k.replace('_', '-')}={json.dumps(v, default=str)}" for k, v in node_config.items()
        )
        return self.start(
            f"supernode{number}",
            *("flower-supernode", "--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(self.node_ports[number]), "--node-config", pairs),
        )

    def flwr(self, *arguments):
        return subprocess.run(
            [BIN / "flwr", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=300,
        )

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
        """Every process on this machine that was started with our FLWR_HOME."""
        mark = f"FLWR_HOME={self.folder / 'flwr'}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except OSError:  # it ended, or is not ours to read
                continue
        return found


@pytest.fixture
def deployment(tmp_path):
    made = Deployment(tmp_path)
    yield made
    made.stop()


def write_reviews(path, good, bad, count):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for k in range(count):
            words, label = (good, "positive") if k % 2 else (bad, "negative")
            writer.writerow([f"visit {k} was {words}", label])


def start_two_sites(deployment, **folders):
    """Start a SuperLink and two SuperNodes, with 240 and 160 examples, and return the SuperNodes.

    `folders` maps node-config keys to paths, to which each site adds its own name.
    """
    folder = deployment.folder
    write_reviews(folder / "north.csv", "good and kind", "bad and slow", 240)
    write_reviews(folder / "south.csv", "kind and quick", "slow and rude", 160)
    deployment.start_superlink()
    return [start_site(deployment, site, **folders) for site in SITES]


def start_site(deployment, site, **folders):
    number = SITES.index(site)
    return deployment.start_supernode(
        number,
        partition_id=number,
        num_partitions=2,
        data_path=str(deployment.folder / f"{site}.csv"),
        **{key: f"{start}-{site}" for key, start in folders.items()},
    )


def run_on_sites(deployment, settings):
    """Run the app for two rounds on the reviews; `settings` is added to the run-config."""
    output = deployment.folder / "out"
    run_config = (
        'dataset="file" labels="negative,positive" num-rounds=2 local-epochs=3 '
        f'output-dir="{output}" {settings}'
    )
    ran = deployment.flwr("run", str(ROOT), "test", "--stream", "--run-config", run_config)
    assert f"results in {output}" in ran.stdout, ran.stdout + ran.stderr
    return RunResult(output)


def predictor_of(site, deployment, result):
    """A predictor with the run's shared parameters and the site's personal ones."""
    (personal,) = (deployment.folder / f"state-{site}").glob("personal-*.safetensors")
    return Predictor.load(result.path, personal)


def test_two_sites_train_on_files_of_their_own(deployment):
    start_two_sites(deployment, state_dir=deployment.folder / "state")
    result = run_on_sites(
        deployment, 'model="tiny" vocabulary=512 shared="attention" local="personal"'
    )
    assert [(row["round"], row["clients"], row["failures"]) for row in result.history] == [
        *((0, 0, 0), (1, 2, 0), (2, 2, 0))
    ]
    sizes = [(row["partition"], row["num_examples"]) for row in result.clients]
    assert sizes == [(0, 216), (1, 144)] * 2
    assert result.summary["accuracy"] > 0.9
    for site in SITES:
        predicted = predictor_of(site, deployment, result).predict(
            ["visit 3 was kind", "visit 4 was slow"]
        )
        assert predicted == ["positive", "negative"]

    listed = json.loads(deployment.flwr("list", "test", "--format", "json").stdout)
    traffic = listed["runs"][0]["network-traffic"]
    # Flower also counts its own framing, about 4 KB per message.
    messages = 2 * (1 + 2 * 2)
    for key, direction in (("inbound-bytes", "bytes_up"), ("outbound-bytes", "bytes_down")):
        ours = sum(row[direction] for row in result.history)
        assert ours <= traffic[key] <= ours + messages * 8_000


@pytest.mark.slow
def test_two_sites_adapt_a_base_model_from_their_own_folders(deployment):
    folder = deployment.folder
    bases = [folder / name for name in ("base-north", "base-south", "base-server")]
    for base in bases:
        make_folder("bert", base)
    start_two_sites(deployment, state_dir=folder / "state", model_path=folder / "base")
    result = run_on_sites(
        deployment, f'model="{bases[-1]}" max-length=32 learning-rate=0.01 shared="lora-a"'
    )
    assert [(row["clients"], row["failures"]) for row in result.history[1:]] == [(2, 0)] * 2
    assert result.summary["accuracy"] > 0.9
    for base in bases:
        shutil.rmtree(base)
    for site in SITES:
        with (folder / f"{site}.csv").open() as file:
            texts, labels = zip(*list(csv.reader(file))[1:], strict=True)
        predicted = predictor_of(site, deployment, result).predict(texts)
        assert sum(a == b for a, b in zip(predicted, labels, strict=True)) > 0.9 * len(texts)


@pytest.mark.slow
def test_two_sites_train_asynchronously(deployment):
    start_two_sites(deployment, state_dir=deployment.folder / "state")
    buffered = 'strategy="fedbuff" fedbuff-concurrency=2 fedbuff-buffer-size=1'
    result = run_on_sites(deployment, f'model="tiny" vocabulary=512 {buffered}')
    assert [(row["clients"], row["failures"]) for row in result.history] == [(0, 0), (1, 0), (1, 0)]
    assert result.summary["strategy"] == "fedbuff"
    assert {row["partition"] for row in result.clients} <= {0, 1}


PRIVATE = 'vocabulary=512 privacy="dp-sgd" noise-multiplier=1.0'


def ledger_of(site, deployment):
    """The entries of one site's privacy ledger, or none if it has no ledger yet."""
    path = deployment.folder / f"state-{site}" / "privacy-ledger.json"
    return json.loads(path.read_text())["entries"] if path.exists() else []


def epsilons(result, site):
    """The ε that one site reported in each round."""
    partition = SITES.index(site)
    return [row["epsilon"] for row in result.clients if row["partition"] == partition]


@pytest.mark.slow
def test_the_privacy_loss_of_two_sites_adds_up_over_runs(deployment):
    start_two_sites(deployment, state_dir=deployment.folder / "state")
    reported = {site: [] for site in SITES}
    for number in (1, 2):
        result = run_on_sites(deployment, f'model="tiny" {PRIVATE}')
        assert [row["failures"] for row in result.history] == [0, 0, 0]
        for site in SITES:
            reported[site] += epsilons(result, site)
        assert result.summary["epsilon"] == max(each[-1] for each in reported.values())
        result.path.rename(deployment.folder / f"run{number}")
    for site in SITES:
        entries = ledger_of(site, deployment)
        assert reported[site] == sorted(set(reported[site]))
        assert reported[site] == [entry["epsilon"] for entry in entries]
        assert [entry["server_round"] for entry in entries] == [1, 2, 1, 2]
        assert len({entry["run"] for entry in entries}) == 2
        spent = [Entry(**entry).mechanism for entry in entries]
        assert reported[site][-1] == pytest.approx(epsilon_of(spent, 1e-5))


@pytest.mark.slow
def test_a_site_killed_during_training_has_recorded_the_rounds_cost(deployment):
    states = {"state_dir": deployment.folder / "state"}
    north, _ = start_two_sites(deployment, **states)
    settings = f'model="tiny" batch-size=1 round-timeout=90.0 min-replies=1 {PRIVATE}'
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_on_sites, deployment, settings)
        while not (before := ledger_of("north", deployment)):
            assert not running.done()
            time.sleep(0.02)
        assert deployment.kill(north) > 1, "the client was not a process of its own"
        killed = running.result()
    assert ledger_of("north", deployment) == before
    assert [(entry["server_round"], entry["steps"]) for entry in before] == [(1, 3 * 128)]
    assert epsilons(killed, "north") == []  # it was killed within a round
    assert len(epsilons(killed, "south")) == 2
    killed.path.rename(deployment.folder / "killed")

    start_site(deployment, "north", **states)
    again = run_on_sites(deployment, f'model="tiny" {PRIVATE}')
    after = ledger_of("north", deployment)
    assert after[:1] == before
    assert [entry["server_round"] for entry in after] == [1, 1, 2]
    reported = epsilons(again, "north")
    assert before[0]["epsilon"] < reported[0] < reported[1] == after[-1]["epsilon"]


@pytest.mark.slow
def test_the_folders_of_a_run_stay_where_the_operator_allows(deployment):
    outside = deployment.folder / "outside"
    deployment.environment["FEDATTN_RUNS"] = str(deployment.folder / "runs")
    start_two_sites(deployment, state_dir=deployment.folder / "state")
    quick = 'model="tiny" vocabulary=512 dataset="file" labels="negative,positive" num-rounds=1'

    def run(settings):
        arguments = ("run", str(ROOT), "test", "--stream", "--run-config", f"{quick} {settings}")
        return deployment.flwr(*arguments).stdout

    allowed = f"must be inside FEDATTN_RUNS = {deployment.folder / 'runs'}"
    for text in (str(outside), "../outside", str(deployment.folder / "north.csv")):
        for key in ("output-dir", "resume-from"):
            assert f'{key} = "{text}": {allowed}' in run(f'{key}="{text}"')
    assert not outside.exists()
    assert not (deployment.folder / "runs").exists()
    assert f"results in {deployment.folder / 'runs' / 'first'}" in run('output-dir="first"')
    assert f"results in {deployment.folder / 'runs'}{os.sep}" in run("")
    assert len(list((deployment.folder / "runs").iterdir())) == 2
