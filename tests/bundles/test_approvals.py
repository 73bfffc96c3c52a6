"""The owner's list of approved bundles and who may write it."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedattn_app.bundles import approvals as module
from fedattn_app.bundles.approvals import Approvals, approvals_folder
from fedattn_app.files import acquire_lock


@pytest.fixture
def three(files, made):
    """Three bundles with the same name, the last two with a new version."""
    bundles = [made(files)]
    for version in ("1.0.1", "1.1.0"):
        text = files["pyproject.toml"].replace("1.0.0", version)
        bundles.append(made(files | {"pyproject.toml": text}))
    return bundles


def test_nothing_is_approved_at_first(approvals, three):
    assert approvals.entries() == []
    assert approvals.find(three[0].sha256) is None
    assert approvals.last("someone/small") is None
    assert not approvals.folder.parent.exists()


def test_a_bundle_is_approved_once_it_is_added(approvals, three):
    approvals.add(three[0])
    (entry,) = approvals.entries()
    assert (entry.sha256, entry.name, entry.version) == (
        *(three[0].sha256, "someone/small", "1.0.0"),
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry.approved)
    assert approvals.find(three[0].sha256) == entry
    assert approvals.find(three[1].sha256) is None
    assert approvals.find("") is None


def test_the_last_approved_bundle_of_a_name_is_found(approvals, three):
    for bundle in three:
        approvals.add(bundle)
    assert approvals.last("someone/small") == three[2]
    assert approvals.last("someone/else") is None
    approvals.add(three[0])
    assert approvals.last("someone/small") == three[0]
    assert len(approvals.entries()) == 3


def test_only_the_owner_can_read_what_is_written(approvals, three):
    before = os.umask(0)
    try:
        approvals.add(three[0])
    finally:
        os.umask(before)
    for folder in (approvals.folder, approvals.folder.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    names = {path.name for path in approvals.folder.iterdir()}
    assert names == {"approved.json", f"{three[0].sha256}.fab", ".lock"}
    for name in names - {".lock"}:
        assert (approvals.folder / name).stat().st_mode & 0o777 == 0o600


def test_a_copy_that_was_changed_is_not_approved(approvals, three, refused):
    approvals.add(three[0])
    copy = approvals.folder / f"{three[0].sha256}.fab"
    copy.write_bytes(three[1].content)
    assert approvals.find(three[0].sha256) is None
    assert approvals.find(three[1].sha256) is None
    with refused(copy, "missing or changed", f"fedattn revoke {three[0].sha256}"):
        approvals.last("someone/small")
    copy.unlink()
    assert approvals.find(three[0].sha256) is None
    approvals.add(three[0])
    assert approvals.find(three[0].sha256)


def test_a_copy_that_is_not_listed_is_not_approved(approvals, three):
    approvals.add(three[0])
    (approvals.folder / f"{three[1].sha256}.fab").write_bytes(three[1].content)
    assert approvals.find(three[1].sha256) is None


def test_an_approval_is_revoked_by_the_start_of_the_hash(approvals, three, refused):
    for bundle in three:
        approvals.add(bundle)
    assert approvals.remove(three[1].sha256[:8].upper()).version == "1.0.1"
    assert [entry.version for entry in approvals.entries()] == ["1.0.0", "1.1.0"]
    assert not (approvals.folder / f"{three[1].sha256}.fab").exists()
    for prefix in (three[1].sha256, "0" * 64, f"{three[0].sha256}0", "../../.."):
        with refused(repr(prefix), "no approved bundle"):
            approvals.remove(prefix)
    for prefix in ("", three[0].sha256[:7]):
        with refused(repr(prefix), "at least 8 digits"):
            approvals.remove(prefix)
    assert len(approvals.entries()) == 2


def test_a_prefix_of_two_bundles_revokes_none(approvals, three, refused):
    for bundle in three[:2]:
        approvals.add(bundle)
    path = approvals.folder / "approved.json"
    table = json.loads(path.read_text())
    for number, entry in enumerate(table["approved"]):
        entry["sha256"] = f"{'0' * 63}{number}"
    path.write_text(json.dumps(table))
    with refused("more than one"):
        approvals.remove("0" * 8)
    assert len(approvals.entries()) == 2


def test_revoking_without_a_folder_makes_none(approvals, refused):
    with refused("no bundle is approved in", approvals.folder):
        approvals.remove("0" * 8)
    assert not approvals.folder.exists()


@pytest.fixture
def stored(approvals, three):
    approvals.add(three[0])
    return {
        "folder": approvals.folder,
        "list": approvals.folder / "approved.json",
        "copy": approvals.folder / f"{three[0].sha256}.fab",
    }


@pytest.mark.skipif(os.name == "nt", reason="Windows has access lists")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o777])
@pytest.mark.parametrize("part", ["folder", "list"])
def test_what_others_can_write_is_refused(part, mode, stored, approvals, three, refused):
    stored[part].chmod(mode)
    for use in (
        approvals.entries,
        lambda: approvals.find(three[0].sha256),
        lambda: approvals.last("someone/small"),
        lambda: approvals.add(three[1]),
        lambda: approvals.remove(three[0].sha256),
    ):
        with refused(stored[part], "others can write to it", "chmod go-w"):
            use()


@pytest.mark.skipif(os.name == "nt", reason="Windows has access lists")
def test_a_copy_that_others_can_write_is_not_approved(stored, approvals, three):
    stored["copy"].chmod(0o666)
    assert approvals.find(three[0].sha256) is None


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("part", ["folder", "list"])
def test_a_link_is_refused(part, stored, approvals, three, tmp_path, refused):
    elsewhere = tmp_path / "elsewhere"
    stored[part].rename(elsewhere)
    stored[part].symlink_to(elsewhere)
    with refused(stored[part], "is a link"):
        approvals.find(three[0].sha256)
    with refused(stored[part], "is a link"):
        approvals.add(three[1])


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_linked_copy_is_not_approved(stored, approvals, three, tmp_path):
    stored["copy"].rename(tmp_path / "elsewhere")
    stored["copy"].symlink_to(tmp_path / "elsewhere")
    assert approvals.find(three[0].sha256) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has access lists")
@pytest.mark.parametrize("part", ["folder", "list"])
def test_what_belongs_to_another_user_is_refused(
    part, stored, approvals, three, refused, monkeypatch
):
    if os.geteuid() == 0:
        os.chown(stored[part], 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        part = "folder"  # the first of ours that is looked at
    with refused(stored[part], "belongs to another user"):
        approvals.find(three[0].sha256)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            '{"approved": 1}',
            '{"approved": [1]}',
            '{"approved": [{"sha256": "1"}]}',
        ),
        '{"approved": [{"sha256": 1, "name": "a", "version": "b", "approved": "c"}]}',
        '{"approved": [{"sha256": "1", "name": "a", "version": "b", "approved": "c", "d": 1}]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_list_is_refused(text, stored, approvals, three, refused):
    content = text if isinstance(text, bytes) else text.encode()
    stored["list"].write_bytes(content)
    with refused(stored["list"], "not a list of approved bundles"):
        approvals.find(three[0].sha256)
    with refused(stored["list"]):
        approvals.add(three[0])
    assert stored["list"].read_bytes() == content


def test_a_file_in_place_of_the_folder_is_refused(approvals, three, refused):
    approvals.folder.parent.mkdir()
    approvals.folder.write_text("")
    with refused(approvals.folder, "not a folder"):
        approvals.entries()
    with refused(approvals.folder):
        approvals.add(three[0])


def test_a_list_that_another_process_changes_is_waited_for(
    stored, approvals, three, refused, monkeypatch
):
    lock = acquire_lock(approvals.folder / ".lock", 1)
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    with refused(approvals.folder, "cannot be written"):
        approvals.add(three[1])
    monkeypatch.setattr(module, "LOCK_SECONDS", 60)
    with ThreadPoolExecutor() as pool:
        adding = [pool.submit(Approvals(approvals.folder).add, each) for each in three[1:]]
        lock.release()
        for each in adding:
            each.result()
    assert len(approvals.entries()) == 3


def test_the_folder_is_the_option_else_the_variable_else_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDATTN_APPROVED", raising=False)
    assert approvals_folder() == tmp_path / ".fedattn" / "approved"
    monkeypatch.setenv("FEDATTN_APPROVED", str(tmp_path / "other"))
    assert approvals_folder() == tmp_path / "other"
    assert approvals_folder("~/given") == tmp_path / "given"
