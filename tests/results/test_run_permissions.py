"""Other users can neither read what a run writes nor redirect it by links."""

import errno
import os
from pathlib import Path

import pytest
from helpers.permissions import modes_in, umask
from helpers.run_folders import ARRAYS, begun, clients, make_config, row

from fedattn_app.errors import RunFailedError
from fedattn_app.results.checkpoint import ACCOUNTANT, BEST, BUDGETS, CHECKPOINT
from fedattn_app.results.run_result import RunResult
from fedattn_app.results.run_state import STATUS, write_status

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such modes")


def write_every_file(folder):
    """Write every file that a run of two rounds may have."""
    folder.write_budgets({"clients": {}})
    for number in range(3):
        folder.write_accountant({})
        folder.add_round(row(number), clients(number))
        folder.write_checkpoint(number, ARRAYS)
        folder.write_best(number, ARRAYS)
    folder.finish({"accuracy": 0.5}, ARRAYS, {})


FILES = {
    *(".lock", "config.toml", "status.json", "history.jsonl", "clients.jsonl", "summary.json"),
    *("model.safetensors", "best.safetensors", str(CHECKPOINT), str(BEST)),
    *(str(ACCOUNTANT), str(BUDGETS)),
}


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
@pytest.mark.parametrize("output_dir", ["deep/run", ""])
def test_only_this_user_may_read_what_a_run_writes(tmp_path, monkeypatch, mask, output_dir):
    monkeypatch.chdir(tmp_path)
    with umask(mask), begun(make_config(output_dir=output_dir)) as folder:
        write_every_file(folder)
    assert modes_in(folder.path.parent) == {
        "": 0o700,
        folder.path.name: 0o700,
        f"{folder.path.name}/checkpoint": 0o700,
        **{f"{folder.path.name}/{name}": 0o600 for name in FILES},
    }


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o755)
    with umask(0), begun(make_config(output_dir=str(path))) as folder:
        write_every_file(folder)
    assert modes_in(path) == {"": 0o755, "checkpoint": 0o700, **dict.fromkeys(FILES, 0o600)}


@pytest.mark.parametrize("target", ["kept", "gone"])
def test_nothing_is_written_through_a_link(tmp_path, target):
    """Another user may have put links where a run would write, if the folder is open to all."""
    kept, path = tmp_path / "kept", tmp_path / "run"
    kept.write_text("kept")
    (path / "checkpoint").mkdir(parents=True)
    names = FILES - {".lock"}
    for name in names:
        (path / name).symlink_to(tmp_path / target)
        old_name = f".{Path(name).name}.{os.getpid()}"
        (path / name).with_name(old_name).symlink_to(tmp_path / target)
    with begun(make_config(output_dir=str(path))) as folder:
        write_every_file(folder)
    assert not any((path / name).is_symlink() for name in names)
    assert RunResult(path).history == [row(0), row(1), row(2)]
    assert kept.read_text() == "kept"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("target", ["kept", "gone"])
@pytest.mark.parametrize("name", [".lock", "checkpoint"])
def test_a_link_that_cannot_be_replaced_is_refused(refused, tmp_path, name, target):
    kept, path = tmp_path / "kept", tmp_path / "run"
    (kept / "empty").mkdir(parents=True)
    path.mkdir()
    (path / name).symlink_to(tmp_path / target)
    with refused(f"output-dir = {path}", "cannot be written"):
        begun(make_config(output_dir=str(path))).__enter__()
    assert [each.name for each in kept.iterdir()] == ["empty"]
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["history.jsonl", "clients.jsonl"])
def test_a_row_is_not_appended_through_a_link(tmp_path, name):
    kept, path = tmp_path / "kept", tmp_path / "run"
    kept.write_text("kept")
    with begun(make_config(output_dir=str(path))) as folder:
        (path / name).unlink()
        (path / name).symlink_to(kept)
        with pytest.raises(RunFailedError, match=rf"{name}: cannot be written \(it is a link\)"):
            folder.add_round(row(1), clients(1))
    assert kept.read_text() == "kept"


def test_a_full_disk_does_not_make_a_status_write_through_a_link(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = tmp_path / "kept"
    kept.write_text("kept" * 200)
    (tmp_path / STATUS).symlink_to(kept)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_status(tmp_path, "running", 1)
    assert kept.read_text() == "kept" * 200
