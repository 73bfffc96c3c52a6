"""Read a Flower App Bundle so strictly that what is shown of it is what runs.

A bundle is a zip file with the app's files and ``.info/CONTENT``, which lists them with their
hashes. Flower installs what Python's `zipfile` extracts. `read_bundle` takes only bundles for which
that is the same on every machine, and whose files are the text that Python reads: none that
``flwr build`` would not put in, since a compiled file could replace a source file that is shown.
"""

import hashlib
import io
import re
import stat
import tokenize
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from fedattn_app.errors import UserError

CONTENT = ".info/CONTENT"
CONFIG = "pyproject.toml"
TEXT_SUFFIXES = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
MAX_BYTES = 10 * 1024**2  # as in Flower
MAX_BYTES_UNPACKED = 8 * MAX_BYTES
MAX_FILES = 5_000
MAX_CONFIG_BYTES = 64 * 1024  # a longer one could take Python minutes to read
# Of publisher, name and version: Flower makes a folder's name of them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_ENCRYPTED = 0x1  # in the flags of a zip entry


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read.

    Attributes:
        sha256: SHA-256 of the whole bundle, in hexadecimal digits.
        content: the bundle itself.
        name: ``publisher/name`` as in its pyproject.toml; Flower calls it the FAB ID.
        version: the version in its pyproject.toml.
        files: the content of each file by its path, without the list of hashes.
    """

    sha256: str
    content: bytes
    name: str
    version: str
    files: dict[str, str]


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_bundle(content: bytes, source: str) -> Bundle:
    """Return what the bundle `content` has in it.

    Raises `UserError`, which names `source`, if it is not a bundle as ``flwr build`` makes it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = _read_files(archive)
        _check_hashes(files)
        name, version = _name_and_version(files[CONFIG])
    except _DamagedError as error:
        raise UserError(f"{source}: not a bundle that can be approved: {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(f"{source}: not a bundle: {error}") from None
    texts = {path: text.decode() for path, text in files.items() if path != CONTENT}
    return Bundle(sha256_of(content), content, name, version, texts)


class _DamagedError(Exception):
    """Why a zip file is not a bundle; the text names the file in it."""


def _read_files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Return the content of each file of `archive` by its path."""
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise _DamagedError(f"it has {len(entries)} files, more than {MAX_FILES}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_BYTES_UNPACKED:
        raise _DamagedError(f"its files have {unpacked} bytes, more than {MAX_BYTES_UNPACKED}")
    files: dict[str, bytes] = {}
    seen: set[str] = set()  # without case, since some file systems do not tell it apart
    for entry in entries:
        _check_entry(entry)
        if entry.filename.casefold() in seen:
            raise _DamagedError(f"{entry.filename!r} is in it twice")
        seen.add(entry.filename.casefold())
        files[entry.filename] = archive.read(entry)
        _check_text(entry.filename, files[entry.filename])
    for path in seen:
        if inner := {str(folder) for folder in PurePosixPath(path).parents} & seen:
            raise _DamagedError(f"{min(inner)!r} is a file and a folder")
    return files


def _check_entry(entry: zipfile.ZipInfo) -> None:
    """Raise `_DamagedError` for an entry that Flower could unpack in another place or form."""
    path, shown = PurePosixPath(entry.filename), repr(entry.orig_filename)
    if entry.filename != entry.orig_filename or not entry.filename.isprintable():
        raise _DamagedError(f"{shown} has characters that no file name should have")
    if entry.is_dir() or path.is_absolute() or ".." in path.parts or str(path) != entry.filename:
        raise _DamagedError(f"{shown} is not the path of a file")
    if set(entry.filename) & set('\\:,*?"<>|'):
        raise _DamagedError(f"{shown} has a character that not every system allows in a path")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _DamagedError(f"{shown} is compressed in a way that flwr build does not use")
    if entry.filename == CONFIG and entry.file_size > MAX_CONFIG_BYTES:
        raise _DamagedError(f"{shown} has more than {MAX_CONFIG_BYTES} bytes")
    if entry.flag_bits & _ENCRYPTED:
        raise _DamagedError(f"{shown} is encrypted")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _DamagedError(f"{shown} is not a regular file")
    is_left_out = (
        path.suffix not in TEXT_SUFFIXES or path.parts[0] == PurePosixPath(CONTENT).parts[0]
    )
    if is_left_out and entry.filename not in (CONTENT, "LICENSE"):
        raise _DamagedError(f"{shown} is of a kind that flwr build leaves out")


def _check_text(path: str, content: bytes) -> None:
    """Raise `_DamagedError` unless `content` is UTF-8, also when Python reads it."""
    try:
        content.decode()
        if path.endswith(".py"):
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            if encoding not in ("utf-8", "utf-8-sig"):
                raise _DamagedError(f"{path!r} declares the encoding {encoding}; write utf-8")
    except (UnicodeDecodeError, SyntaxError):
        raise _DamagedError(f"{path!r} is not UTF-8 text") from None


def _check_hashes(files: dict[str, bytes]) -> None:
    """Raise `_DamagedError` unless ``.info/CONTENT`` lists just these files, with their hashes."""
    if CONTENT not in files:
        raise _DamagedError(f"it has no {CONTENT}")
    listed: dict[str, str] = {}
    for line in files[CONTENT].decode().strip().split("\n"):
        path, _, rest = line.partition(",")
        sha256, comma, _ = rest.partition(",")
        if not comma or path in listed:
            raise _DamagedError(f"{CONTENT} has the line {line!r}")
        listed[path] = sha256
    for path in {*listed, *files} - {CONTENT}:
        if path not in files:
            raise _DamagedError(f"{CONTENT} lists {path!r}, which is not in it")
        if listed.get(path) != sha256_of(files[path]):
            raise _DamagedError(f"{CONTENT} does not list {path!r} with its hash")
    if CONFIG not in files:
        raise _DamagedError(f"it has no {CONFIG}")


def _name_and_version(config: bytes) -> tuple[str, str]:
    """Return ``publisher/name`` and the version from the text of a bundle's pyproject.toml."""
    try:
        table = tomllib.loads(config.decode())
        app, project = table["tool"]["flwr"]["app"], table["project"]
        values = app["publisher"], project["name"], project["version"]
        app["components"]["clientapp"]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _DamagedError(f"{CONFIG} is not TOML ({error})") from None
    except (KeyError, TypeError):
        raise _DamagedError(
            f"{CONFIG} lacks project.name, project.version, tool.flwr.app.publisher or a clientapp"
        ) from None
    for value in values:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise _DamagedError(f"{CONFIG} has {value!r} as publisher, name or version")
    publisher, name, version = values
    return f"{publisher}/{name}", version
