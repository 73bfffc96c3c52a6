"""Where raw examples come from: files and data hubs.

Files are read with the standard library and pyarrow, every cell as it is written: a reader that
guesses types turns the text "007" into 7 and the label "true" into True, and `datasets` reports
each load of a local file over the network. Nothing here writes, so no copy of private text is left
in a cache.
"""

import csv
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from fedattn_app.config import DataConfig
from fedattn_app.errors import UserError
from fedattn_app.files import user_path

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of `texts` and `labels`, of equal length; `groups` is the ``partition-by`` column."""

    texts: Sequence[str]
    labels: Sequence[str]
    source: str
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Self:
        """Return the texts and labels of these rows."""
        texts, labels = ([column[row] for row in rows] for column in (self.texts, self.labels))
        return replace(self, texts=texts, labels=labels, groups=None)


@dataclass(frozen=True, eq=False)
class Splits:
    """The training and the test rows of a data set; it has one of them at least."""

    train: Table | None
    test: Table | None

    def training(self) -> Table:
        """Return the training rows; raises `UserError` where there are none."""
        if self.train is None:
            raise UserError("data-path: no train.csv, .jsonl or .parquet in the folder")
        return self.train

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of all rows, in alphabetical order."""
        tables = [table for table in (self.train, self.test) if table is not None]
        return tuple(sorted({label for table in tables for label in table.labels}))


def load(config: DataConfig, secret: bool = False) -> Splits:
    """Load the file, folder or hub data set that `config` names, once until it changes on disk.

    Raises `UserError` for what cannot be found or read, lacks a column, or lacks a label. Not so
    for what single rows of a `secret` one hold or lack, since that would tell of them: a label that
    is missing is empty.
    """
    return _load(config, secret, _stamp(config))


@lru_cache(maxsize=2)
def _load(config: DataConfig, secret: bool, stamp: tuple[int, ...]) -> Splits:
    if config.dataset != "file":
        return _load_hub(config)
    tables = {
        split: _table(_read(file), config, str(file), split, secret)
        for split, file in _files(config.data_path).items()
    }
    return Splits(tables.get("train"), tables.get("test"))


def _table(
    columns: Columns, config: DataConfig, source: str, split: str, secret: bool = False
) -> Table:
    grouped = bool(config.partition_by) and split == "train"
    if not columns:
        raise UserError(f"{source}: is empty")
    needed = {"text-column": config.text_column, "label-column": config.label_column}
    if grouped:
        needed["partition-by"] = config.partition_by
    if secret:
        columns = _forgiving(columns, needed.values(), Path(source).suffix.lower())
    for key, column in needed.items():
        if column not in columns:
            raise UserError(
                f"{source}: no column {column!r} ({key}); there are {', '.join(columns)}"
            )
    if not len(columns[config.text_column]):
        raise UserError(f"{source}: holds no examples")
    for column in needed.values():
        if any(isinstance(value, (list, dict)) for value in columns[column]):
            raise UserError(f"{source}: column {column!r} holds lists, not single values")
    labels = _strings(columns[config.label_column])
    if "" in labels and not secret:
        raise UserError(f"{source}: row {labels.index('') + 1} has no label")
    groups = _strings(columns[config.partition_by]) if grouped else None
    if groups and "" in groups:
        raise UserError(
            f"{source}: row {groups.index('') + 1} has no {config.partition_by!r} (partition-by)"
        )
    return Table(_strings(columns[config.text_column]), labels, source, groups)


def _forgiving(columns: Columns, needed: Iterable[str], kind: str) -> Columns:
    """Return `columns`, those that are `needed` with nothing where a row has no single value.

    Of JSON, which columns there are is itself a matter of single rows.
    """
    rows = len(next(iter(columns.values())))
    nothing = [None] * rows
    names = [name for name in needed if name in columns or kind in (".json", ".jsonl")]
    single = {
        name: [
            None if isinstance(value, (list, dict)) else value
            for value in columns.get(name, nothing)
        ]
        for name in names
    }
    return {**columns, **single}


def _strings(values: Sequence[Any]) -> list[str]:
    return ["" if _missing(value) else str(value) for value in values]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _stamp(config: DataConfig) -> tuple[int, ...]:
    """Identify the present content of the files behind `config`."""
    if config.dataset != "file":
        return ()
    states = [file.stat() for file in _files(config.data_path).values()]
    return tuple(number for state in states for number in (state.st_mtime_ns, state.st_size))


def _files(data_path: str) -> dict[str, Path]:
    """Find the file of each split: the path itself, or train.* and test.* in the folder."""
    if not data_path:
        raise UserError('data-path = "": dataset = "file" needs the path of a file or folder')
    path = user_path("data-path", data_path)
    if not path.exists():
        raise UserError(f"data-path = {data_path}: does not exist ({path})")
    if not path.is_dir():
        if path.suffix.lower() not in READERS:
            raise UserError(f"data-path = {data_path}: must end in {', '.join(READERS)}")
        return {"train": path}
    files: dict[str, Path] = {}
    for file in _listed(path):
        if file.stem in ("train", "test") and file.suffix.lower() in READERS:
            if file.stem in files:
                raise UserError(
                    f"data-path = {data_path}: holds both {files[file.stem].name} and {file.name}"
                )
            files[file.stem] = file
    if not files:
        raise UserError(f"data-path = {data_path}: no train.csv, .jsonl or .parquet in it")
    return files


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"data-path = {folder}: cannot be listed ({error.strerror})") from None


def _read(file: Path) -> Columns:
    kind = file.suffix.lower()
    try:
        return READERS[kind](file)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    except (ValueError, OSError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as {kind} ({_first_line(error)})") from None


def _read_csv(file: Path) -> Columns:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            raise ValueError("a column stands twice in the header")
        columns: dict[str, list[str | None]] = {name: [] for name in names}
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more than {len(names)} cells")
            for name in names:
                columns[name].append(row[name])
    return columns


def _read_json(file: Path) -> Columns:
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [_row(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _row(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}") from None


def _read_parquet(file: Path) -> Columns:
    from pyarrow import parquet

    columns: Columns = parquet.read_table(file).to_pydict()
    return columns


READERS = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_json, ".parquet": _read_parquet}


def _load_hub(config: DataConfig) -> Splits:
    import datasets

    source = f"dataset {config.dataset}"
    try:
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it raises as well
        splits = datasets.load_dataset(config.dataset)
    except Exception as error:  # whatever the hub, the network and the format may raise
        raise UserError(
            f"dataset = {config.dataset!r}: cannot be loaded from the hub ({_first_line(error)}); "
            'offline, use dataset = "file" with data-path, or "triage"'
        ) from None
    if "train" not in splits:
        raise UserError(
            f"dataset = {config.dataset!r}: has no train split, only {', '.join(splits)}"
        )
    tables = {
        split: _table(_hub_columns(splits[split]), config, f"{source}, split {split}", split)
        for split in ("train", "test")
        if split in splits
    }
    return Splits(tables["train"], tables.get("test"))


def _hub_columns(split: Any) -> Columns:
    """Return the columns of a `datasets.Dataset`, class numbers as names, -1 as no label."""
    columns: dict[str, Sequence[Any]] = {}
    for name, feature in split.features.items():
        values = split[name][:]
        names = getattr(feature, "names", None)
        if names:
            values = [None if k is None or k < 0 else names[k] for k in values]
        columns[name] = values
    return columns


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
