"""Files and folders that other users of the machine can neither read nor change."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from helpers.permissions import mode_of, modes_in, umask

from fedattn_app.files import (
    acquire_lock,
    append,
    check_private_folder,
    make_private_folder,
    open_state_folder,
    remove_leftovers,
    write_atomically,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such modes")

OTHER_USER = 54321
NAMES = ("ledger.json", ".ledger.json.count", ".ledger.json.lock", "personal-0-ab.safetensors")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture
def as_root():
    if os.geteuid():
        pytest.skip("only root may give a file away")


def write(path, content=b"new"):
    write_atomically(path, content)


def lock(path):
    acquire_lock(path, 1).release()


WRITERS = {"write": write, "append": lambda path: append(path, b"new"), "lock": lock}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_only_this_user_may_read_a_new_file(tmp_path, writer, mask):
    with umask(mask):
        writer(tmp_path / "file")
    assert mode_of(tmp_path / "file") == 0o600


@pytest.mark.parametrize("target", ["kept", "gone"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_nothing_is_written_through_a_link(tmp_path, writer, target):
    kept, link = tmp_path / "kept", tmp_path / "file"
    kept.write_text("kept")
    link.symlink_to(target)
    if writer is write:  # the link itself is replaced
        writer(link)
        assert not link.is_symlink()
        assert link.read_bytes() == b"new"
    else:
        with pytest.raises(OSError, match="it is a link"):
            writer(link)
    assert kept.read_text() == "kept"
    assert not (tmp_path / "gone").exists()


def test_the_temporary_name_cannot_be_guessed(tmp_path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *pair: (names.append(pair[0]), replace(*pair)))
    for _ in range(3):
        write(tmp_path / "file")
    assert len(set(names)) == 3
    assert {Path(name).parent for name in names} == {tmp_path}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die():
        os.fsync = die
        write(tmp_path / "file")

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert mode_of(left) == 0o600
    others = {
        ".file.fedattn",
        "file.abcd_123.fedattn",
        ".file.71",
        ".file.tmp",
        ".x.Abcd_123.fedattn",
    }
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".a.folder_1.fedattn").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others | {".a.folder_1.fedattn"}


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_every_folder_that_is_made_is_private(tmp_path, mask):
    with umask(mask):
        make_private_folder(tmp_path / "a" / "b" / "c")
        make_private_folder(tmp_path / "a" / "b" / "c")
    assert modes_in(tmp_path / "a") == dict.fromkeys(("", "b", "b/c"), 0o700)


# The folder of a node


def test_a_folder_that_is_missing_or_ours_is_accepted(tmp_path, folder):
    for name in NAMES:
        (folder / name).touch(0o644)
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link", tmp_path / "gone", tmp_path / "gone" / "deeper"):
        check_private_folder("state-dir", path)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777, 0o2770])
@pytest.mark.parametrize("name", ["state", "link"])
def test_a_folder_that_others_can_write_is_refused(refused, tmp_path, folder, name, mode):
    (tmp_path / "link").symlink_to(folder)
    folder.chmod(mode)
    with refused(f"state-dir = {tmp_path / name}: others can write to it; chmod 700 it"):
        check_private_folder("state-dir", tmp_path / name)


@pytest.mark.parametrize("name", ["state", "link"])
def test_a_folder_that_anyone_can_replace_is_refused(refused, tmp_path, name):
    above = tmp_path / "above"
    make_private_folder(above / "deep" / "state")
    (tmp_path / "link").symlink_to(above / "deep" / "state")
    path = tmp_path / "link" if name == "link" else above / "deep" / "state"
    above.chmod(0o777)
    with refused(f"state-dir = {path}: anyone can replace it in {above}"):
        check_private_folder("state-dir", path)
    above.chmod(0o1777)  # as /tmp: only the owner may rename
    check_private_folder("state-dir", path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_others_can_write_is_refused(refused, folder, name):
    (folder / name).touch()
    for mode in (0o620, 0o602, 0o666):
        (folder / name).chmod(mode)
        with refused(f"state-dir = {folder}: {name} in it: others can write to it", "chmod go-w"):
            check_private_folder("state-dir", folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["kept", "gone"])
def test_a_link_in_place_of_a_file_is_refused(refused, tmp_path, folder, name, target):
    (tmp_path / "kept").touch()
    (folder / name).symlink_to(tmp_path / target)
    with refused(f"state-dir = {folder}: {name} in it: is a link"):
        check_private_folder("state-dir", folder)


@pytest.mark.usefixtures("as_root")
def test_what_belongs_to_another_user_is_refused(refused, tmp_path, folder):
    (folder / "ledger.json").touch()
    os.chown(folder / "ledger.json", OTHER_USER, OTHER_USER)
    with refused(f"state-dir = {folder}: ledger.json in it: belongs to another user"):
        check_private_folder("state-dir", folder)
    (tmp_path / "link").symlink_to(folder)
    os.chown(tmp_path / "link", OTHER_USER, OTHER_USER, follow_symlinks=False)
    with refused(f"state-dir = {tmp_path / 'link'}: it belongs to another user"):
        check_private_folder("state-dir", tmp_path / "link")
    os.chown(folder, OTHER_USER, OTHER_USER)
    with refused(f"state-dir = {folder}: it belongs to another user"):
        check_private_folder("state-dir", folder)


def test_other_files_and_folders_may_lie_in_the_folder(folder):
    (folder / "data").mkdir()
    (folder / "data").chmod(0o777)
    (folder / "notes.csv").symlink_to("elsewhere")
    (folder / ".ledger.json.abcd_123.fedattn").touch()
    (folder / ".ledger.json.abcd_123.fedattn").chmod(0o666)
    check_private_folder("state-dir", folder)


def test_a_loop_of_links_and_a_file_hold_nothing(refused, folder):
    (folder / "loop").symlink_to("loop")
    (folder / "file").touch()
    check_private_folder("state-dir", folder / "loop")
    with pytest.raises(OSError, match="exists"):
        open_state_folder("state-dir", folder / "loop")
    with refused(f"state-dir = {folder / 'file'}: cannot be used (Not a directory)"):
        check_private_folder("state-dir", folder / "file")


def test_a_folder_of_ours_is_closed_to_others(refused, tmp_path, folder):
    folder.chmod(0o755)
    open_state_folder("state-dir", folder)
    assert mode_of(folder) == 0o700
    (folder / "data").mkdir()
    folder.chmod(0o755)
    open_state_folder("state-dir", folder)  # it may be the home of somebody else's files
    assert mode_of(folder) == 0o755
    folder.chmod(0o770)
    with refused("others can write to it"):
        open_state_folder("state-dir", folder)
    assert mode_of(folder) == 0o770
    with umask(0):
        open_state_folder("state-dir", tmp_path / "new" / "one")
    assert modes_in(tmp_path / "new") == {"": 0o700, "one": 0o700}
