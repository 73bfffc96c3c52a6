"""The folders of runs on a shared server are inside the one that its operator has named."""

import logging

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedattn_app import server_app
from fedattn_app.config import Config
from fedattn_app.errors import UserError
from fedattn_app.results.operator_folder import within_operators_folder

KEYS = ("output-dir", "resume-from")


@pytest.fixture
def root(tmp_path):
    """The operator's folder, beside one that is not for runs, and with a link out of it."""
    folder = tmp_path / "root"
    for path in (folder / "inside", tmp_path / "outside", tmp_path / "root-of-another"):
        path.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "good-link").symlink_to(folder / "inside")
    return folder


def folders(root, **output):
    """The folders of a run with these keys, on a server with the folder `root`."""
    keys = {key.replace("_", "-"): value for key, value in output.items()}
    environment = {"FEDATTN_RUNS": str(root)} if root else {}
    settings, new_runs = within_operators_folder(Config.from_run_config(keys), environment)
    return settings.output.output_dir, settings.output.resume_from, new_runs


@pytest.mark.parametrize("value", ["a", "a/b", "./a", "inside/../a", "{root}/a", "good-link/a"])
def test_a_folder_inside_is_taken(root, value):
    output, resumed, _ = folders(root, output_dir=value.format(root=root), resume_from="inside")
    assert output.startswith(f"{root}/")
    assert resumed == f"{root}/inside"


OUTSIDE = [
    *("/", "/etc", "..", "../outside", "../absent", "a/../../outside", "link", "link/a", "loop/a"),
    *("{root}", ".", "{root}-of-another", "{root}/../outside", "a\0b", "loop"),
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", OUTSIDE)
def test_a_folder_outside_is_refused_whatever_is_there(refused, root, key, value):
    value = value.format(root=root)
    before = sorted(root.parent.rglob("*"))
    with refused(f"{key} = ", f"must be a folder inside FEDATTN_RUNS = {root}"):
        folders(root, **{key: value})
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("key", KEYS)
def test_without_a_folder_for_runs_none_may_be_named(refused, key):
    with refused(f'{key} = "a"', "FEDATTN_RUNS"):
        folders(None, **{key: "a"})


def test_a_run_that_names_no_folder_gets_a_new_one(root):
    assert folders(root) == ("", "", str(root))
    assert folders(None) == ("", "", "runs")


class SharedGrid(Grid):
    """The grid of a server that has no nodes, and is not that of a simulation."""

    run = None

    def set_run(self, run):
        pass

    def create_message(self, *args, **kwargs):
        raise AssertionError

    def get_node_ids(self):
        return []

    push_messages = pull_messages = send_and_receive = create_message


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("operator", [True, False])
def test_the_server_app_refuses_before_anything_is_read_or_made(
    root, tmp_path, monkeypatch, caplog, key, operator
):
    if operator:
        monkeypatch.setenv("FEDATTN_RUNS", str(root))
    else:
        monkeypatch.delenv("FEDATTN_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.tracebacklimit", 1000, raising=False)
    run_config = Config().to_run_config() | {key: str(tmp_path / "outside" / "run")}
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.CRITICAL), pytest.raises(UserError, match="FEDATTN_RUNS"):
        server_app.app(SharedGrid(), Context(1, 1, {}, RecordDict(), run_config))
    assert sorted(tmp_path.rglob("*")) == before
