"""Load tables of texts and labels from files and from the Hugging Face hub.

Nothing here writes to disk, so no copy of private text is left in a cache. Local files are not read
with `datasets`, which reports each load over the network.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig, as_toml
from fedattn_app.data.readers import READERS, Columns, first_line, read_columns
from fedattn_app.errors import UserError
from fedattn_app.files import user_path
from fedattn_app.label_text import normalise_label, sort_labels


@dataclass(frozen=True, eq=False)
class Table:
    """N rows of text and label.

    Args:
        texts: N texts.
        labels: N label names, which are normalised here; an empty text stands for a missing label.
            None at all if the table has no column of labels, as only test rows may.
        source: The name of the table in error messages, for example the file's path.
        groups: N values of the column ``partition-by``, which are normalised like labels; None if
            the table has no such column.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    source: str
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "groups"):
            if column := getattr(self, name):
                label = {cell: normalise_label(cell) for cell in set(column)}
                object.__setattr__(self, name, [label[cell] for cell in column])

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Self:
        """Return the texts and labels of `rows`, in their order, without groups."""
        texts, labels = ([column[row] for row in rows] for column in (self.texts, self.labels))
        return replace(self, texts=texts, labels=labels, groups=None)


@dataclass(frozen=True, eq=False)
class Splits:
    """The training and test rows of a data set. At least one of them is not None."""

    train: Table | None
    test: Table | None

    def training(self) -> Table:
        """Return the training rows; raises `UserError` if there are none."""
        if self.train is None:
            raise UserError("data-path: no train.csv, .jsonl or .parquet in the folder")
        return self.train

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the training rows, or of the test rows if only these are there.

        Numbers come first, by value, then all others by alphabet.
        """
        table = self.test if self.train is None else self.train
        assert table is not None
        return tuple(sort_labels(set(table.labels) - {""}))


def load_files(config: DataConfig, secret: bool = False) -> Splits:
    """Load the file or folder `data_path`. The result is cached until the files change on disk.

    Raises `UserError` for files that cannot be found or read, for a missing column, for a training
    row without a label, and for lists in a cell. With `secret`, an error about a single row would
    reveal something about that row, so such a cell counts as empty.
    """
    return _load_files(config, secret, _file_states(config))


@PROCESS_CACHE.keep(max_entries=2)
def _load_files(config: DataConfig, secret: bool, states: tuple[int, ...]) -> Splits:
    tables = {
        split: _make_table(read_columns(file), config, str(file), split, secret)
        for split, file in _split_files(config.data_path).items()
    }
    return Splits(tables.get("train"), tables.get("test"))


@PROCESS_CACHE.keep(max_entries=2)
def load_hub(config: DataConfig) -> Splits:
    """Load the splits ``train`` and ``test`` of a hub data set; `dataset` is its id.

    Raises `UserError` for a data set that cannot be loaded, for a missing ``train`` split or
    column, and for a training row without a label.
    """
    import datasets

    source = f"dataset {config.dataset}"
    try:
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it raises as well
        splits = datasets.load_dataset(config.dataset)
    except Exception as error:  # the hub, the network and the format raise many types
        raise UserError(
            f"dataset = {as_toml(config.dataset)}: cannot be loaded from the hub "
            f"({first_line(error)}); "
            'offline, use dataset = "file" with data-path, or "triage"'
        ) from None
    if "train" not in splits:
        raise UserError(
            f"dataset = {as_toml(config.dataset)}: has no train split, only {', '.join(splits)}"
        )
    tables = {
        split: _make_table(_hub_columns(splits[split]), config, f"{source}, split {split}", split)
        for split in ("train", "test")
        if split in splits
    }
    return Splits(tables["train"], tables.get("test"))


def _hub_columns(split: Any) -> Columns:
    """Return the columns of a `datasets.Dataset`, with class names in place of class numbers.

    The class number -1 means that there is no label.
    """
    columns: dict[str, Sequence[Any]] = {}
    for name, feature in split.features.items():
        values = split[name][:]
        names = getattr(feature, "names", None)
        if names:
            values = [None if k is None or k < 0 else names[k] for k in values]
        columns[name] = values
    return columns


def _make_table(
    columns: Columns, config: DataConfig, source: str, split: str, secret: bool = False
) -> Table:
    """Return a table of the columns that `config` names, after checking them."""
    has_groups = bool(config.partition_by) and split == "train"
    if not columns:
        raise UserError(f"{source}: is empty")
    needed = {"text-column": config.text_column, "label-column": config.label_column}
    if has_groups:
        needed["partition-by"] = config.partition_by
    if secret:
        columns = _without_lists(columns, needed.values(), Path(source).suffix.lower())
    if split == "test" and config.label_column not in columns:
        del needed["label-column"]
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
    labels = [normalise_label(cell) for cell in columns.get(config.label_column, ())]
    if "" in labels and split == "train" and not secret:
        raise UserError(f"{source}: row {labels.index('') + 1} has no label")
    groups = None
    if has_groups:
        groups = [normalise_label(cell) for cell in columns[config.partition_by]]
    if groups and "" in groups:
        raise UserError(
            f"{source}: row {groups.index('') + 1} has no {config.partition_by!r} (partition-by)"
        )
    return Table(_as_strings(columns[config.text_column]), labels, source, groups)


def _without_lists(columns: Columns, needed: Iterable[str], suffix: str) -> Columns:
    """Return `columns` where every list or object in a `needed` column is None.

    A JSON file has a column as soon as one row has it. Whether it is there would reveal something
    about that row, so a missing column is added, all None.
    """
    num_rows = len(next(iter(columns.values())))
    names = [name for name in needed if name in columns or suffix in (".json", ".jsonl")]
    single_values = {
        name: [
            None if isinstance(value, (list, dict)) else value
            for value in columns.get(name, [None] * num_rows)
        ]
        for name in names
    }
    return {**columns, **single_values}


def _as_strings(values: Sequence[Any]) -> list[str]:
    return ["" if _is_missing(value) else str(value) for value in values]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _file_states(config: DataConfig) -> tuple[int, ...]:
    """Return the modification time (ns) and size of each file: the key of the cache."""
    stats = [file.stat() for file in _split_files(config.data_path).values()]
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))


def _split_files(data_path: str) -> dict[str, Path]:
    """Return the file of each split: the path itself, or train.* and test.* in the folder."""
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
    for file in _list_folder(path):
        if file.stem in ("train", "test") and file.suffix.lower() in READERS:
            if file.stem in files:
                raise UserError(
                    f"data-path = {data_path}: holds both {files[file.stem].name} and {file.name}"
                )
            files[file.stem] = file
    if not files:
        raise UserError(f"data-path = {data_path}: no train.csv, .jsonl or .parquet in it")
    return files


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"data-path = {folder}: cannot be listed ({error.strerror})") from None
