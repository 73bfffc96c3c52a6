"""``fedattn policy check`` answers as the node would."""

import pytest

POLICY = """
data-path = "/data/notes.csv"
state-dir = "/var/lib/fedattn"
max-epsilon = 4
max-local-epochs = 3
"""
PRIVATE = 'dataset="file" labels="no,yes" privacy="dp-sgd" target-epsilon=2'


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def test_a_run_that_the_owner_allows_is_accepted(fedattn, policy):
    assert fedattn("policy", "check", policy, PRIVATE) == (0, "accepted\n", "")


def test_every_reason_is_given_and_what_the_server_learns(fedattn, policy):
    run_config = 'dataset="file" labels="no,yes" local-epochs=4 model="their/model"'
    status, out, err = fedattn("policy", "check", policy, run_config)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    refused = [line for line in lines if line.startswith("refused: ")]
    assert [line.split()[1] for line in refused] == ["privacy", "model", "local-epochs"]
    assert 'refused: privacy = "none": ' in out
    assert "the server is told: this node trains only with" in out
    assert len(lines) == 2 * len(refused)


def test_a_run_config_may_be_a_file_and_pairs_after_it(fedattn, policy, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(PRIVATE.replace(" ", "\n"))
    assert fedattn("policy", "check", policy, file)[0] == 0
    assert fedattn("policy", "check", policy, file, "local-epochs=4")[0] == 1


@pytest.mark.parametrize(
    ("content", "run_config", "said"),
    [
        ("max-epsilonn = 4", PRIVATE, "did you mean max-epsilon"),
        ("max-epsilon = 0", PRIVATE, "max-epsilon = 0: must be above 0"),
        (POLICY, "local-epoch=4", "did you mean local-epochs"),
        (POLICY, 'privacy="dp-sgd"', "target-epsilon"),
        (POLICY, "nonsense", "key=value"),
        (POLICY, "absent.toml", "absent.toml"),
    ],
)
def test_a_mistake_is_one_line(fedattn, policy, content, run_config, said):
    policy.write_text(content)
    status, out, err = fedattn("policy", "check", policy, run_config)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["check"], ["check", "p.toml"], ["chek"], []])
def test_wrong_arguments_are_one_line_or_the_help(fedattn, arguments):
    status, out, err = fedattn("policy", *arguments)
    assert status in (0, 2)
    assert len(err.splitlines()) <= 1 or "Usage" in out + err


def test_a_node_does_not_start_with_a_mistake_in_its_policy(fedattn, policy, monkeypatch):
    monkeypatch.setattr(
        "fedattn_app.bundles.flower_supernode.run_supernode", lambda *_: pytest.fail("started")
    )
    policy.write_text("max-epsilon = 0")
    status, out, err = fedattn("node", "--insecure", "--node-config", f'policy="{policy}"')
    assert (status, out) == (2, "")
    assert err == "error: max-epsilon = 0: must be above 0\n"


@pytest.mark.parametrize("text", ["partition-id", "data-path=/no quotes", "=", "a=1 max-epsilon 4"])
def test_a_node_does_not_start_with_a_node_config_of_which_a_part_is_lost(
    fedattn, monkeypatch, text
):
    monkeypatch.setattr(
        "fedattn_app.bundles.flower_supernode.run_supernode", lambda *_: pytest.fail("started")
    )
    status, _, err = fedattn("node", "--insecure", "--node-config", text)
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_a_node_does_not_start_without_its_data(fedattn, monkeypatch, tmp_path):
    started = "fedattn_app.bundles.flower_supernode.run_supernode"
    monkeypatch.setattr(started, lambda *_: pytest.fail("started"))
    given = f'data-path="{tmp_path}/nots.csv"'
    status, _, err = fedattn("node", "--insecure", "--node-config", given)
    assert (status, err) == (2, f"error: data-path = {tmp_path}/nots.csv: is not there\n")
