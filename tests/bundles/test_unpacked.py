"""The folder in which one node unpacks what it runs."""

import os

import pytest

from fedattn_app.bundles.unpacked import folder_for_one_node


def names_in(parent):
    return sorted(path.name for path in parent.iterdir() if path.name != ".lock")


def test_each_node_has_an_empty_folder_that_only_it_uses(tmp_path):
    parent = tmp_path / "home" / "fedattn"
    with folder_for_one_node(parent) as first, folder_for_one_node(parent) as second:
        assert first != second
        for folder in (first, second):
            assert [path.name for path in folder.iterdir()] == [".lock"]
            assert folder.stat().st_mode & 0o777 == 0o700
        assert parent.stat().st_mode & 0o777 == 0o700
        (first / "apps").mkdir()
        assert names_in(parent) == sorted([first.name, second.name])
    assert names_in(parent) == []


def test_what_killed_nodes_left_is_deleted(tmp_path):
    left = tmp_path / "node-abc" / "apps" / "someone.small.1.0.0.12345678"
    left.mkdir(parents=True)
    (left / "app.py").write_text("left")
    with folder_for_one_node(tmp_path) as folder:
        assert names_in(tmp_path) == [folder.name]


def test_the_folder_goes_when_the_node_ends_with_an_exception(tmp_path):
    with pytest.raises(SystemExit), folder_for_one_node(tmp_path):
        raise SystemExit(1)
    assert names_in(tmp_path) == []


def test_a_parent_that_others_can_write_is_refused(tmp_path, refused):
    parent = tmp_path / "fedattn"
    parent.mkdir()
    parent.chmod(0o777)
    with refused(parent, "others can write to it"), folder_for_one_node(parent):
        pass
    parent.rmdir()
    parent.symlink_to(tmp_path)
    with refused(parent, "is a link"), folder_for_one_node(parent):
        pass


def test_a_parent_that_cannot_be_made_is_reported(tmp_path, refused):
    (tmp_path / "file").write_text("")
    parent = tmp_path / "file" / "fedattn"
    with refused(parent, "cannot be written"), folder_for_one_node(parent):
        pass
    assert os.listdir(tmp_path) == ["file"]
