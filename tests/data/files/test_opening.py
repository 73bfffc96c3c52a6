"""Files that are something else than their name says give one line that says what they are."""

import gzip
import io
import os
import zipfile

import pytest
from helpers.data_files import load

from fedattn_app.data.files.cells import Request
from fedattn_app.data.files.readers import read_cells

pytestmark = pytest.mark.usefixtures("fresh_caches")

TEXT = b"text,label\na,b\nc,d\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12345\n"


def zip_archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (zip_archive(), "zip archive or Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100, "old Excel"),
        (gzip.compress(TEXT, mtime=0), "must end in .gz"),
        (POINTER, "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><title>a,b</title>", "web page"),
        (b"\n  <HTML lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (TEXT.decode().encode("utf-16"), "text, not UTF-8"),
        (TEXT.decode().encode("utf-16-be").join([b"\xfe\xff", b""]), "UTF-16"),
        (b"%PDF-1.7", "PDF"),
        (b"ARROW1\0\0", "Arrow file"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet", "train.tsv"])
def test_a_file_of_another_kind_is_named(refused, tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with refused(tmp_path / name, what):
            load(path)


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_parquet_file_with_another_name_is_named(refused, tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1\0\0")
    with refused(tmp_path / name, "is a Parquet file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(TEXT * 1000, mtime=0)[:-20],
        gzip.compress(TEXT * 1000, mtime=0)[:30],
        gzip.compress(TEXT, mtime=0)[:20] + b"\xff" * 20,
        TEXT,
        b"PK\x03\x04",
        b"\x1f\x8b",
    ],
    ids=["cut", "cut early", "damaged", "not compressed", "zip", "header only"],
)
def test_a_damaged_compressed_file_is_refused(refused, tmp_path, content):
    (tmp_path / "train.csv.gz").write_bytes(content)
    with refused(tmp_path / "train.csv.gz", "gzip"):
        load(tmp_path)


def test_what_is_compressed_is_checked_too(refused, tmp_path):
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(POINTER))
    with refused("Git LFS"):
        load(tmp_path)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(TEXT + "é,b\n".encode("latin-1")))
    with refused("line 4 is not UTF-8 text"):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["train.csv", "train.json", "train.parquet", "train.csv.gz"])
@pytest.mark.parametrize("secret", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(refused, tmp_path, name, secret):
    os.mkfifo(tmp_path / name)
    request = Request({"text-column": "text", "label-column": "label"}, secret=secret)
    with refused(tmp_path / name, "is not a regular file"):
        read_cells(tmp_path / name, request)


def test_a_device_is_refused(refused, tmp_path):
    (tmp_path / "train.csv").symlink_to(os.devnull)
    with refused(tmp_path / "train.csv", "is not a regular file"):
        load(tmp_path)
