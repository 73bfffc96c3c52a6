"""A stranger's app on a real SuperLink: what it takes from a node, and how the owner refuses it."""

import json
import shutil

import pytest
from flwr.common.constant import ErrorCode
from helpers.bundles import FOREIGN_APP, foreign_files
from helpers.deployment import BIN, ROOT

from fedattn_app.bundles.approvals import Approvals
from fedattn_app.results.run_result import RunResult

pytestmark = pytest.mark.timeout(900)

NOTES = "text,label\n" + "".join(
    f"visit {k} was {word},{label}\n"
    for k in range(20)
    for word, label in [("good", "positive"), ("bad", "negative")]
)


@pytest.fixture
def attack(deployment):
    """A function that runs the stranger's app and returns what it has got, or the error."""
    app = deployment.folder / "foreign"
    app.mkdir()
    for name, text in foreign_files().items():
        (app / name).write_text(text)
    (deployment.folder / "notes.csv").write_text(NOTES)

    def attack():
        out = deployment.folder / "stolen.json"
        out.unlink(missing_ok=True)
        ran = deployment.flwr("run", str(app), "test", "--stream", "--run-config", f'out="{out}"')
        assert out.exists(), ran.stdout + ran.stderr
        return json.loads(out.read_text())

    return attack


def start(deployment, **program):
    return deployment.start_supernode(
        0,
        **program,
        partition_id=0,
        num_partitions=1,
        data_path=deployment.folder / "notes.csv",
        state_dir=deployment.folder / "state",
        max_epsilon=1.0,
        max_delta=1e-5,
    )


def test_a_foreign_app_is_refused_before_a_line_of_it_runs(deployment, attack):
    assert len(FOREIGN_APP.splitlines()) <= 22
    ran = deployment.folder / "foreign-code-ran"
    deployment.start_superlink()
    plain = start(deployment, program=[BIN / "flower-supernode"])
    got = attack()
    assert got["stolen"]["file"] == NOTES
    assert "max-epsilon" in got["stolen"]["config"]
    assert not (deployment.folder / "state").exists()  # no ledger
    assert ran.exists()
    deployment.end(plain)
    ran.unlink()

    deployment.approve(ROOT)
    start(deployment)
    assert attack() == {
        "error": [ErrorCode.INVALID_FAB, "The FAB could not be verified."],
        "stolen": None,
    }
    assert not ran.exists()
    log = deployment.log_of("supernode0").read_text()
    assert "has not approved the bundle with SHA-256" in log
    assert "fedattn approve" in log
    (own,) = (deployment.folder / "flwr" / "fedattn").glob("node-*")
    assert not (own / "apps").exists()


@pytest.mark.slow
def test_the_node_that_refuses_a_stranger_runs_what_its_owner_approved(deployment, attack):
    approvals = Approvals(deployment.folder / "approved")
    deployment.approve(ROOT)
    (approval,) = approvals.entries()
    # What another node has unpacked under the name that Flower gives to the approved bundle.
    name = f"fedattn.fedattn.0.1.0.{approval.sha256[:8]}"
    planted = deployment.folder / "flwr" / "apps" / name / "fedattn_app"
    planted.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", planted.parent)
    marker = deployment.folder / "planted-code-ran"
    (planted / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    deployment.start_superlink()
    node = start(deployment)

    def run(number):
        ran = deployment.flwr(
            *("run", str(ROOT), "test", "--stream", "--run-config"),
            'dataset="file" labels="negative,positive" num-rounds=1 model="tiny" vocabulary=512 '
            'privacy="dp-sgd" noise-multiplier=8.0 min-clients=1 round-timeout=60.0 '
            f'output-dir="{deployment.folder / f"out{number}"}"',
        )
        return ran.stdout + ran.stderr

    assert attack()["error"][0] == ErrorCode.INVALID_FAB
    output = run(1)
    assert "results in" in output, output + deployment.log_of("supernode0").read_text()
    assert [row["clients"] for row in RunResult(deployment.folder / "out1").history] == [0, 1]
    assert attack()["error"][0] == ErrorCode.INVALID_FAB
    assert not (deployment.folder / "foreign-code-ran").exists()

    approvals.remove(approval.sha256)
    output = run(2)
    assert "The FAB could not be verified" in output
    deployment.approve(ROOT)
    assert "results in" in run(3)
    own = list((deployment.folder / "flwr" / "fedattn").glob("node-*/apps/*"))
    assert [path.name for path in own] == [name]
    assert not marker.exists()
    assert deployment.end(node) == 0
    assert not list((deployment.folder / "flwr" / "fedattn").glob("node-*"))
