"""Load tables of texts and labels from files and from the Hugging Face hub.

Nothing here writes to disk, so no copy of private text is left in a cache. Local files are not read
with `datasets`, which reports each load over the network.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from os.path import exists
from typing import Any, Self

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig, as_toml
from fedattn_app.data.files.cells import Cells, FaultyRows, Request, count
from fedattn_app.data.files.layout import describe, file_states, find_splits
from fedattn_app.data.files.parquet_reader import values_of
from fedattn_app.data.files.readers import first_line, read_cells
from fedattn_app.errors import UserError
from fedattn_app.label_text import NO_LABELS, normalise_label, sort_labels, without_surrogates

log = logging.getLogger("fedattn")

NESTED = {dict, list, tuple}


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

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256, in hexadecimal, of the texts, labels and groups: equal for equal rows."""
        digest = sha256()
        for column in (self.texts, self.labels, self.groups or ()):
            cells = [cell.encode("utf-8", "surrogatepass") for cell in column]
            lengths = (len(cell).to_bytes(8, "big") for cell in cells)
            digest.update(len(cells).to_bytes(8, "big"))
            digest.update(b"".join(chain.from_iterable(zip(lengths, cells, strict=True))))
        return digest.hexdigest()

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
            assert self.test is not None
            raise UserError(
                f"data-path: no train.csv, .jsonl or .parquet beside {self.test.source}"
            )
        return self.train

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of all rows."""
        tables = [table.fingerprint if table else "" for table in (self.train, self.test)]
        return sha256(" ".join(tables).encode()).hexdigest()

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

    The validation split serves as test split if there is no other; a line in the log says so.

    Raises `UserError` for files that cannot be found or read, for a missing column, for a training
    row without a label, and for lists in a cell. With `secret`, an error about a single row would
    reveal something about that row, so such a cell counts as empty.
    """
    return _load_files(config, secret, file_states(find_splits(config.data_path)))


@PROCESS_CACHE.keep(max_entries=2)
def _load_files(
    config: DataConfig, secret: bool, states: tuple[tuple[str, int, int], ...]
) -> Splits:
    found = find_splits(config.data_path)
    if found.unused:
        log.warning(
            "data-path = %s: not used: %s", as_toml(config.data_path), ", ".join(found.unused)
        )

    def load(split: str) -> Table:
        request = _request(config, split, secret)
        files = found.files[split]
        parts = [_Rows(read_cells(file, request), request, str(file)) for file in files]
        return _make_table(parts, config, request, describe(files), split)

    return _splits(found.files, load, f"data-path = {as_toml(config.data_path)}", secret)


@PROCESS_CACHE.keep(max_entries=2)
def load_hub(config: DataConfig) -> Splits:
    """Load a hub data set; `dataset` is its id.

    The validation split serves as test split if there is no other; a line in the log says so.

    Raises `UserError` for a data set that cannot be loaded, for a missing ``train`` split or
    column, for a training row without a label, and if a local folder has the name `dataset`.
    """
    import datasets

    key = f"dataset = {as_toml(config.dataset)}"
    if exists(config.dataset):
        # `datasets` would read it, and keep a copy of its texts in a cache.
        raise UserError(
            f'{key}: is a file or folder here; to read it, set dataset = "file" and data-path = '
            f"{as_toml(config.dataset)}; for the hub's data set, start the run in another folder"
        )
    try:
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it raises as well
        splits = datasets.load_dataset(config.dataset)
    except Exception as error:  # the hub, the network and the format raise many types
        raise UserError(
            f"{key}: cannot be loaded from the hub ({first_line(error)}); "
            'offline, use dataset = "file" with data-path, or "triage"'
        ) from None
    if "train" not in splits:
        raise UserError(f"{key}: has no train split, only {', '.join(splits)}")

    def load(split: str) -> Table:
        request, source = _request(config, split), f"dataset {config.dataset}, split {split}"
        rows = _Rows(_hub_cells(splits[split], request, source), request, source)
        return _make_table([rows], config, request, source, split)

    return _splits(splits, load, key)


def _splits(
    names: Mapping[str, object], load: Callable[[str], Table], given: str, secret: bool = False
) -> Splits:
    """Load the splits among `names`, with the validation split as test split if need be."""
    train = load("train") if "train" in names else None
    test = load("test") if "test" in names else None
    if "validation" not in names or train is None:
        return Splits(train, test)
    # Under `secret`, whether rows have labels must not decide what is read.
    if test is not None and (test.labels if secret else _has_labels(test, train)):
        log.warning("%s: the validation split is not used, because there is a test split", given)
        return Splits(train, test)
    reason = "there is no test split" if test is None else "the test split has no labels"
    log.warning("%s: the validation split is used as test split, because %s", given, reason)
    return Splits(train, load("validation"))


def _has_labels(test: Table, train: Table) -> bool:
    return bool(set(test.labels) - (NO_LABELS - set(train.labels)))


def _request(config: DataConfig, split: str, secret: bool = False) -> Request:
    """Return the columns of a split that `config` names. Only training rows need them all."""
    columns = {"text-column": config.text_column, "label-column": config.label_column}
    if split != "train":
        return Request(columns, frozenset(["label-column"]), secret, config.label_names)
    if config.partition_by:
        columns["partition-by"] = config.partition_by
    return Request(columns, secret=secret, labels=config.label_names)


def _hub_cells(split: Any, request: Request, source: str) -> Cells:
    """Return the wanted columns of a `datasets.Dataset`, with the names of its classes."""
    stored = list(split.features)
    found = {name: stored[at] for name, at in request.find(stored, source).items()}
    table = split.select_columns(list(found.values())).with_format("arrow")[:]
    faulty = FaultyRows(source, secret=False)
    columns = {}
    for name, column in found.items():
        classes = getattr(split.features[column], "names", None) or ()
        columns[name] = values_of(table.column(column), classes, name, faulty)
    return Cells(columns)


class _Rows:
    """The cells of one file, checked and turned into text."""

    def __init__(self, cells: Cells, request: Request, source: str) -> None:
        self._cells = cells
        self._secret = request.secret
        self._source = source
        if cells.malformed:
            log.warning(
                "%s: %s could not be read and count as empty; the first is %s",
                source,
                count(len(cells.malformed), "row"),
                cells.place(cells.malformed[0]),
            )
        for name, column in cells.columns.items():
            kinds = list(map(type, column))
            if not request.secret and (nested := NESTED & set(kinds)):
                row = min(map(kinds.index, nested))
                what = "an object" if kinds[row] is dict else "a list"
                where = f"{source}: {cells.place(row)}"
                raise UserError(f"{where}: column {name!r} holds {what}, not a single value")

    def __len__(self) -> int:
        return len(self._cells)

    def texts(self, column: str) -> list[str]:
        """Return the texts of a column; cells without a value are empty."""
        return [
            "" if _is_missing(cell) else without_surrogates(str(cell))
            for cell in self._cells.columns[column]
        ]

    def labels(self, column: str, name: str | None) -> list[str]:
        """Return the normalised labels of a column; none if there is no such column.

        Raises `UserError` for the first missing one, which is called `name` in the error, unless
        that is None.
        """
        cells = self._cells.columns.get(column, ())
        keys = [(type(cell), None if _is_missing(cell) else cell) for cell in cells]
        spelling = {key: normalise_label(key[1]) for key in set(keys)}  # 1 and True are equal
        labels = [spelling[key] for key in keys]
        if name and not self._secret and "" in labels:
            place = self._cells.place(labels.index(""))
            others = labels.count("") - 1
            raise UserError(
                f"{self._source}: {place} has no {name}"
                f"{f', nor have {others} other rows' * bool(others)}"
            )
        return labels


def _make_table(
    parts: Sequence[_Rows], config: DataConfig, request: Request, source: str, split: str
) -> Table:
    """Return one table of the rows of all files of a split."""
    is_train = split == "train"

    def joined(column: Callable[[_Rows], list[str]]) -> list[str]:
        return list(chain.from_iterable(map(column, parts)))

    texts = joined(lambda part: part.texts(config.text_column))
    if not texts:
        raise UserError(f"{source}: holds no examples")
    num_empty = texts.count("")
    if num_empty == len(texts) and not request.secret:
        raise UserError(
            f"{source}: column {config.text_column!r} (text-column) is empty in every row"
        )
    if num_empty:
        log.warning("%s: %d of %d texts are empty", source, num_empty, len(texts))
    labels = joined(lambda part: part.labels(config.label_column, "label" if is_train else None))
    groups = None
    if "partition-by" in request.columns:
        name = f"{config.partition_by!r} (partition-by)"
        groups = joined(lambda part: part.labels(config.partition_by, name))
    return Table(texts, labels, source, groups)


def _is_missing(value: Any) -> bool:
    kind = type(value)
    return value is None or (kind is float and math.isnan(value)) or kind in NESTED
