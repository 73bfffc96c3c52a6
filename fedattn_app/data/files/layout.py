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
_SHARD = re.compile(r"(?P<word>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<hash>-[0-9a-f]+)?")
_WORD = re.compile(r"[^\W\d_]+")
_COPY = re.compile(r"(?P<stem>.+?)(?: \(\d+\)| - Copy(?: \(\d+\))?| copy(?: \d+)?)", re.IGNORECASE)
BACKUPS = ("~", ".bak")
HELD_OUT_WORDS = {"holdout", "heldout"}  # that no split is called, though people call files so

# What marks a folder as a table of which a part of the files is no longer valid, or as another
# format.
TABLES: Mapping[str, str] = {
    "_delta_log": "a Delta Lake table",
    ".hoodie": "a Hudi table",
    "metadata/*.metadata.json": "an Iceberg table",
    "data-*-of-*.arrow": "a data set as save_to_disk of the library `datasets` writes it",
}


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
    if len(data_path.splitlines()) > 1:
        raise UserError(f"{given}: must not contain a line end")
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
    _check_not_table(folder, given)
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
        files = {"train": _parts(folder, "train", given)}
        part_folders = {folder}
    else:
        part_folders = {paths[0].parent for paths in files.values()} - {folder, folder / "data"}
    if not files.keys() & {"train", "test"}:
        raise UserError(f"{given}: no train.csv, .jsonl or .parquet in it{_hint(folder, entries)}")
    used = {path for paths in files.values() for path in paths} | part_folders
    beside = [path for path in entries if _is_named_like_split(path)]
    beside += [path for parts in sorted(part_folders) for path in _list(parts)]
    unused += [_name(path, folder) for path in beside if path not in used and _has_content(path)]
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
                _check_link(path, given)
                versions += [[path]] if suffix else []
            elif suffix or any(suffix_of(part.name) for part in _list(path)):
                versions.append(_parts(path, split, given))
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


def _parts(folder: Path, split: str, given: str) -> list[Path]:
    """Return the data files in a folder that is one split, in the order of their names.

    Empty files are left out: Spark writes them for parts without rows. Raises `UserError` if some
    of the files do not seem to be parts of one table.
    """
    _check_not_table(folder, given)
    where = f"{given}: the folder {folder.name}"
    shards: dict[str, list[Path]] = {}
    parts = []
    for path in _list(folder):
        _check_link(path, given)
        if path.is_dir():
            _check_no_data(path, folder, where)
        elif suffix_of(path.name):
            if _split_of(path) not in (None, split):
                raise UserError(f"{where} holds {path.name}, by its name a part of another split")
            parts.append(path)
            if shard := _SHARD.fullmatch(_stem(path)):
                shards.setdefault(f"{shard['word']}-of-{shard['total']}", []).append(path)
    if not parts:
        raise UserError(f"{where} holds no data files")
    for group in shards.values():
        _complete(group, given)
    by_stem = {_stem(path): path.name for path in parts}
    for stem, name in by_stem.items():
        if (copy := _COPY.fullmatch(stem)) and copy["stem"] in by_stem:
            raise UserError(f"{where} holds both {by_stem[copy['stem']]} and {name}, a copy")
    filled = [path for path in parts if path.stat().st_size]
    suffixes = {suffix_of(path.name): path.name for path in filled}
    if len(suffixes) > 1:
        first, second, *_ = suffixes.values()
        raise UserError(f"{where} holds both {first} and {second}")
    for path in set(parts) - set(filled):
        if suffix_of(path.name) == ".parquet":
            raise UserError(f"{where} holds {path.name}, which is incomplete: it has 0 bytes")
    if not filled:
        raise UserError(f"{where} holds only empty files")
    return filled


def _check_not_table(folder: Path, given: str) -> None:
    for mark, what in TABLES.items():
        if any(folder.glob(mark)):
            raise UserError(f"{given}: {folder.name} is {what}; export it as Parquet")


def _check_link(path: Path, given: str) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{given}: {path}: is a link to a file that is not there")


def _check_no_data(sub: Path, folder: Path, where: str) -> None:
    """Raise `UserError` if there are data files in a sub-folder of a split's folder."""
    for path in sub.rglob("*"):
        name = path.relative_to(folder)
        if suffix_of(path.name) and not any(part.startswith((".", "_")) for part in name.parts):
            raise UserError(
                f"{where} has data files in a sub-folder ({name.as_posix()}), which are not read; "
                "move all parts into one folder, or the others elsewhere"
            )


def _is_named_like_split(path: Path) -> bool:
    words = {word.lower() for word in _WORD.findall(path.name)}
    return not words.isdisjoint(SPLIT_WORDS.keys() | HELD_OUT_WORDS)


def _has_content(path: Path) -> bool:
    """Whether a path is not a backup, an empty folder or a data file of 0 bytes."""
    if path.is_dir():
        return bool(_list(path))
    is_empty = suffix_of(path.name) and path.is_file() and not path.stat().st_size
    return not is_empty and not path.name.lower().endswith(BACKUPS)


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
