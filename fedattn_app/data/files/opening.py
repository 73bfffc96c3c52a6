"""Open a file of data, and tell from its first bytes that it is of another kind."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TextIO, cast

from fedattn_app.data.files.layout import COMPRESSED, suffix_of
from fedattn_app.errors import UserError

HEAD_BYTES = 1024
# What a file really is, by its first bytes, and what to do about it.
OTHER_CONTENT: Mapping[bytes, str] = {
    b"PK\x03\x04": "is a zip archive or Excel workbook; unpack it or save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save it as CSV UTF-8",
    b"\x1f\x8b": "is compressed with gzip; its name must end in .gz",
    b"PAR1": "is a Parquet file; its name must end in .parquet",
    b"ARROW1": "is an Arrow file; save it as Parquet",
    b"%PDF": "is a PDF document",
    b"version https://git-lfs": "is a Git LFS pointer, not the data; fetch them: git lfs pull",
    b"\xff\xfe": "is UTF-16 or UTF-32 text, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 or UTF-32 text, not UTF-8; save it as UTF-8",
}
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")


def open_text(file: Path) -> TextIO:
    """Open a file as UTF-8, decompressed if its name ends in .gz; line ends are kept.

    Raises `OSError` if it cannot be opened.
    """
    opened = gzip.open if _is_compressed(file) else open
    return cast(TextIO, opened(file, "rt", encoding="utf-8-sig", newline=""))


def check_content(file: Path) -> None:
    """Raise `UserError` if the first bytes show that the file is not what its name says.

    Raises `OSError` or `EOFError` if the file cannot be read.
    """
    is_parquet = suffix_of(file.name) == ".parquet"
    with _open_bytes(file) as stream:
        head = stream.read(HEAD_BYTES)
    if is_parquet and head.startswith(b"PAR1"):
        return
    for start, what in OTHER_CONTENT.items():
        if head.startswith(start):
            raise UserError(f"{file}: {what}")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB_PAGES):
        raise UserError(f"{file}: is a web page (HTML or XML), not data; download the file itself")
    if is_parquet:
        raise UserError(f"{file}: is not a Parquet file, or is incomplete")


def undecodable_line(file: Path) -> int | None:
    """Return the number of the first line that is not UTF-8, from 1; None if all are."""
    with _open_bytes(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _open_bytes(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if _is_compressed(file) else file.open("rb")


def _is_compressed(file: Path) -> bool:
    return suffix_of(file.name).endswith(COMPRESSED)
