"""Find the files of each split: a single file, a folder as people make it, or as the hub does.

A split is one file (``train.csv``), numbered shards (``train-00000-of-00002.parquet``), or a folder
of parts (``train.parquet/part-00000.parquet``, as Spark writes them). They are in the folder itself
or in its sub-folder ``data``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedattn_app.config import as_toml
from fedattn_app.errors import UserError
from fedattn_app.files import user_path

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
COMPRESSED = ".gz"  # may follow every suffix but .parquet

# The names of files of each split, as in the library `datasets`.
SPLIT_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
# The folders in which table formats list the files that are still part of a table.
TABLE_FORMATS: Mapping[str, str] = {
    "_delta_log": "Delta Lake",
    ".hoodie": "Apache Hudi",
    "metadata": "Apache Iceberg",
}
NO_PARTS = ("README", "README.md", "LICENSE")
# Other files that hold data, which people may expect to be read.
OTHER_DATA = (".zip", ".xlsx", ".xls", ".txt", ".bz2", ".xz", ".zst", ".gz", ".arrow", ".feather")
_SHARD = re.compile(r"(?P<word>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<hash>-[0-9a-f]+)?")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split of a data set.

    Args:
        files: The files of the splits ``train``, ``test`` and ``validation``, those that there are.
        unused: The names of files that look as if they belonged to a split and do not.
    """

    files: Mapping[str, Sequence[Path]]
    unused: Sequence[str] = ()


def suffix_of(name: str) -> str:
    """Return the suffix of a file that can be read, in lower case; empty for other names."""
    lower = name.lower()
    for suffix in SUFFIXES:
        for ending in (suffix, suffix + COMPRESSED):
            if lower.endswith(ending) and ending != ".parquet" + COMPRESSED:
                return ending
    return ""


def find_splits(data_path: str) -> SplitFiles:
    """Return the files of each split of the file or folder `data_path`.

    Raises `UserError` if it does not exist, cannot be listed, has no split or two versions of a
    split, or lacks a shard.
    """
    if not data_path:
        raise UserError('data-path = "": dataset = "file" needs the path of a file or folder')
    path = user_path("data-path", data_path)
    given = f"data-path = {as_toml(data_path)}"
    if not path.exists():
        raise UserError(f"{given}: does not exist ({as_toml(str(path))})")
    if path.is_dir():
        return _search_folder(path, given)
    if not suffix_of(path.name):
        raise UserError(
            f"{given}: must be a folder or end in {', '.join(SUFFIXES)}, or one of them and .gz"
        )
    shard = _SHARD.fullmatch(_stem(path))
    is_part = shard is not None and int(shard["total"]) > 1
    return SplitFiles({"train": [path]}, ["its other shards"] if is_part else [])


def _search_folder(folder: Path, given: str) -> SplitFiles:
    entries = _list(folder)
    if (folder / "data").is_dir():
        entries += _list(folder / "data")
    files: dict[str, list[Path]] = {}
    unused: list[str] = []
    for split in ("train", "test", "validation"):
        versions = _versions(split, entries, given)
        if len(versions) > 1:
            names = [_name(paths[0], folder) for paths in versions]
            if split != "validation" or "test" not in files:
                raise UserError(f"{given}: holds both {names[0]} and {names[1]}")
            unused += names
        elif versions:
            files[split] = versions[0]
    if suffix_of(folder.name) and not files:
        return SplitFiles({"train": _parts(folder, given, "train")})
    if not files.keys() & {"train", "test"}:
        raise UserError(f"{given}: no train.csv, .jsonl or .parquet in it{_hint(folder, entries)}")
    used = {path for paths in files.values() for path in paths}
    folders = {path.parent for path in used}
    unused += [
        _name(path, folder) for path in entries if path not in used | folders and _is_expected(path)
    ]
    return SplitFiles(files, list(dict.fromkeys(unused)))


def _versions(split: str, entries: Sequence[Path], given: str) -> list[list[Path]]:
    """Return the ways in which `entries` hold the split, as lists of files. One is right."""
    versions: list[list[Path]] = []
    shards: dict[tuple[Path, str, str], list[Path]] = {}
    for path in entries:
        stem, suffix = _stem(path), suffix_of(path.name)
        shard = _SHARD.fullmatch(stem)
        if shard and suffix and SPLIT_WORDS.get(shard["word"].lower()) == split:
            group = path.parent, f"{shard['word'].lower()}{suffix}", shard["total"]
            shards.setdefault(group, []).append(path)
        elif SPLIT_WORDS.get(stem.lower()) == split:
            if not path.is_dir():
                versions += [[path]] if suffix else []
            elif suffix or any(suffix_of(part.name) for part in _list(path)):
                versions.append(_parts(path, given, split))
    return versions + [_complete(paths, given) for paths in shards.values()]


def _complete(shards: Sequence[Path], given: str) -> list[Path]:
    """Return the shards in their order. Raises `UserError` if one is missing or there twice."""
    by_number: dict[int, Path] = {}
    total = 0
    for path in shards:
        shard = _SHARD.fullmatch(_stem(path))
        assert shard is not None
        number, total = int(shard["number"]), int(shard["total"])
        if number in by_number:
            raise UserError(f"{given}: holds both {by_number[number].name} and {path.name}")
        by_number[number] = path
    first = int(total in by_number)  # some programs count from 1
    if missing := sorted(set(range(first, first + total)) - set(by_number)):
        raise UserError(
            f"{given}: shard {missing[0]:05d} of {total} is missing beside {shards[0].name}; "
            f"{len(by_number)} of {total} are there"
        )
    return [by_number[number] for number in sorted(by_number)]


def _parts(folder: Path, given: str, split: str) -> list[Path]:
    """Return the data files in a folder that is one split, in the order of their names.

    Empty files are left out: Spark writes them for parts without rows. Raises `UserError` where the
    folder holds more than the parts of one split, or less.
    """
    within = f"{given}: the folder {folder.name}"
    for log_folder in TABLE_FORMATS.keys() & {path.name for path in folder.iterdir()}:
        raise UserError(
            f"{within} is a table of {TABLE_FORMATS[log_folder]}, which keeps removed rows in its "
            "files; export it to one Parquet file"
        )
    entries = _list(folder)
    parts = [path for path in entries if suffix_of(path.name)]
    for path in entries:
        if path.is_dir() or not suffix_of(path.name):
            if path.name not in NO_PARTS:
                raise UserError(f"{within} holds {path.name}, which is not one of its parts")
        elif not path.exists():
            raise UserError(f"{within} holds {path.name}, a link to nowhere")
        elif _split_of(path) not in (None, split):
            raise UserError(f"{within} holds {path.name}, whose name tells another split")
    parts = [path for path in parts if path.stat().st_size or suffix_of(path.name) == ".parquet"]
    if not parts:
        raise UserError(f"{within} holds no data files")
    suffixes = {suffix_of(path.name): path.name for path in parts}
    if len(suffixes) > 1:
        first, second, *_ = suffixes.values()
        raise UserError(f"{within} holds both {first} and {second}")
    shards = [path for path in parts if _SHARD.fullmatch(_stem(path))]
    return _complete(shards, given) if len(shards) == len(parts) else parts


def _hint(folder: Path, entries: Sequence[Path]) -> str:
    """Return what the user may have meant by a folder without a training split."""
    for sub in entries:
        if sub.is_dir() and any(_split_of(path) == "train" for path in _list(sub)):
            return f"; there is one in {_name(sub, folder)}"
    names = [path.name for path in entries if _split_of(path) or suffix_of(path.name)]
    return f"; there are {', '.join(names[:5])}" if names else ""


def _list(folder: Path) -> list[Path]:
    """Return what is in a folder, without hidden files and those of Spark and Office."""
    try:
        return sorted(
            path for path in folder.iterdir() if not path.name.startswith((".", "_", "~"))
        )
    except OSError as error:
        raise UserError(
            f"data-path = {as_toml(str(folder))}: cannot be listed ({error.strerror})"
        ) from None


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path.name))]


def _split_of(path: Path) -> str | None:
    """Return the split that the first word of the name tells, if it does."""
    word = _WORD.match(path.name)
    return SPLIT_WORDS.get(word[0].lower()) if word else None


def _is_expected(path: Path) -> bool:
    """Return whether one would expect a file or folder to be read as a split, by its name."""
    words = {word.lower() for word in _WORD.findall(path.name)}
    if not words & SPLIT_WORDS.keys():
        return False
    if path.is_dir():
        return _stem(path).lower() in SPLIT_WORDS
    return bool(suffix_of(path.name)) or path.name.lower().endswith(OTHER_DATA)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def file_states(splits: SplitFiles) -> tuple[tuple[str, int, int], ...]:
    """Return the path, modification time (ns) and size of each file: they tell whether it changed.

    Raises `UserError` for a file that is not there, such as a broken link.
    """
    return tuple(_state(path) for paths in splits.files.values() for path in paths)


def _state(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return str(path), stat.st_mtime_ns, stat.st_size


def describe(paths: Iterable[Path]) -> str:
    """Return the name of a split in errors: its file, or the first and how many there are."""
    first, *others = paths
    return f"{first} and {len(others)} more" if others else str(first)
