"""The app on a real SuperLink and two SuperNodes on this machine."""

import csv
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.deployment import ROOT
from helpers.pretrained_folders import make_folder

from fedattn_app.analysis.predictor import Predictor
from fedattn_app.policy.reasons import Reason
from fedattn_app.privacy.accounting import epsilon_of
from fedattn_app.privacy.ledger import Entry
from fedattn_app.results.run_result import RunResult

SITES = ("north", "south")

pytestmark = pytest.mark.timeout(900)


def write_reviews(path, good, bad, count):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for k in range(count):
            words, label = (good, "positive") if k % 2 else (bad, "negative")
            writer.writerow([f"visit {k} was {words}", label])


OPEN = {"allow_unprotected": True}  # for runs without differential privacy


def start_two_sites(deployment, **keys):
    """Start a SuperLink and two SuperNodes, with 240 and 160 examples, and return the SuperNodes.

    `keys` are more keys of the node-config. To a path each site adds its own name.
    """
    folder = deployment.folder
    write_reviews(folder / "north.csv", "good and kind", "bad and slow", 240)
    write_reviews(folder / "south.csv", "kind and quick", "slow and rude", 160)
    deployment.approve(ROOT)
    deployment.start_superlink()
    return [start_site(deployment, site, **keys) for site in SITES]


def start_site(deployment, site, **keys):
    number = SITES.index(site)
    return deployment.start_supernode(
        number,
        partition_id=number,
        num_partitions=2,
        data_path=str(deployment.folder / f"{site}.csv"),
        **{k: f"{v}-{site}" if isinstance(v, Path) else v for k, v in keys.items()},
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
    start_two_sites(deployment, state_dir=deployment.folder / "state", **OPEN)
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
    own = {"state_dir": folder / "state", "model_path": folder / "base"}
    start_two_sites(deployment, **own, **OPEN)
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
    start_two_sites(deployment, state_dir=deployment.folder / "state", **OPEN)
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


FILE = 'dataset="file" labels="negative,positive"'
TINY = f'{FILE} model="tiny" vocabulary=512'
DP = 'privacy="dp-sgd" noise-multiplier=4.0'


@pytest.mark.slow
def test_real_nodes_answer_hostile_runs_with_fixed_sentences(deployment):
    """Before nodes had a policy, these runs read files, or were sent an update without noise."""
    folder = deployment.folder
    (folder / "secret.csv").write_text("name,salary,diagnosis\nJane Doe,1,HIV\n")
    start_two_sites(deployment, state_dir=folder / "state", max_epsilon=4.0, max_delta=1e-5)
    reasons = {
        f'{TINY} strategy="fedsgd" shared="all"': Reason.UNPROTECTED,
        f'{TINY} {DP} text-column="diagnosis"': Reason.USE_DATA,
        f"{TINY} {DP} target-delta=2.4e-3": Reason.DELTA,
    }
    for run_config, reason in reasons.items():
        ran = deployment.flwr("run", str(ROOT), "test", "--stream", "--run-config", run_config)
        output = ran.stdout + ran.stderr
        assert f"client 0 failed: {reason}" in output, output
        assert "round 1: all 2 clients failed" in output
        assert not any(secret in output for secret in ("Jane", "HIV", "salary", "kind", "rude"))
    for site in SITES:
        assert ledger_of(site, deployment) == []


@pytest.mark.slow
def test_a_real_node_without_a_file_is_no_simulated_one(deployment):
    """Before, it read what the run named, and each error told the server more of it."""
    deployment.approve(ROOT)
    deployment.start_superlink()
    for number in range(2):
        deployment.start_supernode(number, partition_id=number, num_partitions=2)
    ran = deployment.flwr("run", str(ROOT), "test", "--stream", "--run-config", TINY)
    assert f"client 1 failed: {Reason.DATA}" in ran.stdout + ran.stderr


@pytest.mark.slow
def test_the_folders_of_a_run_stay_where_the_operator_allows(deployment):
    """A run that is refused needs no node."""
    runs, outside = deployment.folder / "runs", deployment.folder / "outside"
    deployment.environment["FEDATTN_RUNS"] = str(runs)
    deployment.start_superlink()
    for key, text in (("output-dir", "../outside"), ("resume-from", str(outside))):
        run_config = f'{TINY} {key}="{text}"'
        ran = deployment.flwr("run", str(ROOT), "test", "--stream", "--run-config", run_config)
        assert f'{key} = "{text}": must be inside FEDATTN_RUNS = {runs}' in ran.stdout
    assert not outside.exists()
    assert not runs.exists()
