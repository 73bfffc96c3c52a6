"""Bundles are read only if what is shown of them is what runs."""

import io
import random
import stat
import struct
import zipfile

import pytest
from helpers.bundles import MANIFEST, bundle_of, manifest_of, pyproject, zipped

from fedattn_app.bundles import bundle as module
from fedattn_app.bundles.bundle import read_bundle
from fedattn_app.errors import UserError


def test_a_bundle_is_read_with_its_hash_name_version_and_files(files, made):
    read = made(files)
    assert (read.name, read.version) == ("someone/small", "1.0.0")
    assert read.files == files
    assert read.content == bundle_of(files)
    assert read.sha256 == module.sha256_of(bundle_of(files))


def entry(name, mode=None, **attributes):
    info = zipfile.ZipInfo(name)
    if mode is not None:
        info.external_attr = mode << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../app.py", "not the path of a file"),
        ("package/../../app.py", "not the path of a file"),
        ("/etc/app.py", "not the path of a file"),
        ("./app.py", "not the path of a file"),
        ("package//module.py", "not the path of a file"),
        ("folder/", "not the path of a file"),
        ("..\\app.py", "not every system allows"),
        ("C:app.py", "not every system allows"),
        ("a,b.py", "not every system allows"),
        ("a\nb.py", "no file name should have"),
        ("a\x1b[2Kb.py", "no file name should have"),
        ("a\u202eyp.py", "no file name should have"),
        ("APP.py", "is in it twice"),
        ("README.md/app.py", "is a file and a folder"),
        ("package/__pycache__/app.cpython-311.pyc", "flwr build leaves out"),
        ("module.so", "flwr build leaves out"),
        ("app.pth", "flwr build leaves out"),
        ("package/LICENSE", "flwr build leaves out"),
        (".info/other.py", "flwr build leaves out"),
    ],
)
def test_paths_that_could_be_unpacked_elsewhere_are_refused(path, reason, files, refused):
    content = bundle_of(files | {path: "x = 1\n"})
    with refused("b.fab: not a bundle that can be approved", reason):
        read_bundle(content, "b.fab")


def test_a_name_with_a_hidden_end_is_refused(files, refused):
    content = bundle_of(files | {"app2.pyx.py": "x = 1\n"}).replace(b"app2.pyx.py", b"app2.py\0.py")
    with refused("b.fab"):
        read_bundle(content, "b.fab")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO])
def test_entries_that_are_no_regular_files_are_refused(kind, files, refused):
    entries = [*files.items(), (entry("link.py", kind | 0o777), "/etc/passwd")]
    listed = manifest_of(files | {"link.py": "/etc/passwd"})
    with refused("'link.py' is not a regular file"):
        read_bundle(zipped([*entries, (MANIFEST, listed)]), "b.fab")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_that_is_there_twice_is_refused(files, refused):
    entries = [*files.items(), ("app.py", files["app.py"]), (MANIFEST, manifest_of(files))]
    with refused("'app.py' is in it twice"):
        read_bundle(zipped(entries), "b.fab")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (lambda files: None, "has no .info/CONTENT"),
        (lambda files: "", "has the line ''"),
        (lambda files: manifest_of(files).replace(",", ";"), "has the line"),
        (lambda files: manifest_of(files) + "\napp.py,1,1", "has the line"),
        (lambda files: manifest_of(files | {"app.py": "other"}), "'app.py' with its hash"),
        (lambda files: manifest_of({"app.py": files["app.py"]}), "with its hash"),
        (lambda files: manifest_of(files | {"gone.py": ""}), "'gone.py', which is not in it"),
    ],
)
def test_the_list_of_hashes_must_be_that_of_the_files(manifest, reason, files, refused):
    text = manifest(files)
    entries = [*files.items(), *([] if text is None else [(MANIFEST, text)])]
    with refused("b.fab", reason):
        read_bundle(zipped(entries), "b.fab")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"# caf\xe9\n", "not UTF-8 text"),
        (b"# -*- coding: latin-1 -*-\n", "declares the encoding iso-8859-1"),
        (b"#!/usr/bin/python\n# coding=utf-7\n# +AAo-import os\n", "declares the encoding utf-7"),
        (b"# coding: unicode_escape\n# \\nimport os\n", "the encoding unicode_escape"),
        (b"# coding: no-such\n", "not UTF-8 text"),
    ],
)
def test_source_that_python_reads_otherwise_than_it_is_shown_is_refused(
    text, reason, files, refused
):
    with refused("'app.py'", reason):
        read_bundle(bundle_of(files | {"app.py": text}), "b.fab")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[project", "is not TOML"),
        ("", "lacks project.name"),
        (pyproject().replace("clientapp", "other"), "lacks"),
        ("project = 1\n[tool.flwr]\napp = 2\n", "lacks"),
        (pyproject(version="1/../../x"), "'1/../../x'"),
        (pyproject(name="../x"), "'../x'"),
        (pyproject(publisher=""), "''"),
        (pyproject().replace('"1.0.0"', "1"), "has 1 as"),
    ],
)
def test_a_bundle_needs_a_name_and_a_version_that_make_a_folder(text, reason, files, refused):
    with refused("b.fab", "pyproject.toml", reason):
        read_bundle(bundle_of(files | {"pyproject.toml": text}), "b.fab")
    with refused("has no pyproject.toml"):
        read_bundle(bundle_of({"app.py": ""}), "b.fab")


def test_zip_bombs_are_refused_before_they_are_unpacked(files, refused, monkeypatch):
    bomb = bundle_of(files | {"bomb.py": b" " * (module.MAX_BYTES_UNPACKED + 1)})
    assert len(bomb) < 100_000
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with refused("bytes, more than"):
        read_bundle(bomb, "b.fab")
    many = zipped([(f"{k}.py", "") for k in range(module.MAX_FILES + 1)])
    with refused("5001 files, more than 5000"):
        read_bundle(many, "b.fab")


def test_a_size_that_is_not_true_is_refused(files, refused):
    content = bundle_of(files | {"bomb.py": b" " * 1_000_000})
    true, false = struct.pack("<L", 1_000_000), struct.pack("<L", 10)
    assert content.count(true) == 2
    with refused("b.fab"):
        read_bundle(content.replace(true, false), "b.fab")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" * 20])
def test_what_is_no_zip_file_is_refused(content, refused):
    with refused("b.fab: not a bundle"):
        read_bundle(content, "b.fab")


def test_damage_anywhere_is_refused_or_changes_the_hash(files, made):
    content = bytearray(bundle_of(files))
    draw = random.Random(0)
    refusals, sha256 = 0, made(files).sha256
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        try:
            read = read_bundle(bytes(damaged), "b.fab")
        except UserError:  # any other exception would end the command with a traceback
            refusals += 1
        else:
            assert read.sha256 != sha256
    assert refusals > len(content) / 2
    for end in range(0, len(content), 7):
        with pytest.raises(UserError):
            read_bundle(bytes(content[:end]), "b.fab")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_than_that_of_flwr_build_are_refused(method, files, refused):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for path, text in {**files, MANIFEST: manifest_of(files)}.items():
            archive.writestr(path, text)
    with refused("compressed in a way that flwr build does not use"):
        read_bundle(buffer.getvalue(), "b.fab")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("x = " + "[" * 20_000, "is not TOML"),
        ("a" + ".a" * 200_000 + " = 1", "has more than 65536 bytes"),
    ],
)
def test_a_configuration_that_hangs_or_crashes_its_reader_is_refused(files, refused, more, reason):
    config = f"{more}\n{files['pyproject.toml']}"
    with refused("b.fab: not a bundle that can be approved", reason):
        read_bundle(bundle_of(files | {"pyproject.toml": config}), "b.fab")
