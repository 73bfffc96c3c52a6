"""Examples for one client or for the server: loading, splitting over clients, tokenising.

Texts come from the built-in corpus, from a file, or from a data hub through `datasets`. Files are
streamed, so that no cache on disk ever holds a copy of private text. A simulation splits one data
set with flwr-datasets' partitioners; a real node reads its own file whole.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from fedattn_app import triage
from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.errors import UserError
from fedattn_app.tokenizer import HashingTokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CACHED_CLIENTS = 128


@dataclass(frozen=True)
class Examples:
    """N tokenised examples.

    `ids` is int32 (N, T), padded with 0; `lengths` int32 (N,), each at least 1; `labels` int64
    (N,), indices into the label names.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Self:
        """Select examples by a 1-D index, padded to the longest of them."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 1
        return replace(
            self, ids=self.ids[index, :longest], lengths=lengths, labels=self.labels[index]
        )


@dataclass(frozen=True)
class ClientData:
    """One client's examples: to train on, and held out."""

    train: Examples
    validation: Examples


@dataclass(frozen=True)
class _Table:
    """Raw rows: `texts` and `labels` of equal length, and where they come from."""

    texts: Sequence[str]
    labels: Sequence[str]
    source: str

    def __len__(self) -> int:
        return len(self.texts)


def label_names(config: DataConfig) -> tuple[str, ...]:
    """Return the label names in the order of the model's outputs.

    They are those that `labels` gives, else the corpus's own, else those found in the data, in
    alphabetical order. Raises `UserError` when there is neither.
    """
    if config.label_names:
        return config.label_names
    if config.dataset == "triage":
        return triage.LABELS
    if config.dataset == "file" and not config.data_path:
        raise UserError(
            'labels = "": with dataset = "file" and no data-path, name the labels, '
            'for example labels = "negative,positive"'
        )
    train, test = _load_tables(config, _stamp(config))
    return tuple(sorted({*train.labels, *(test.labels if test else ())}))


def server_test_set(config: DataConfig, model: ModelConfig, seed: int) -> Examples | None:
    """Return the examples that the server evaluates on, or None where it has no test split."""
    if config.dataset == "triage":
        notes = triage.test_notes(seed)
        table = _Table([n.text for n in notes], [n.label for n in notes], "triage")
    elif config.dataset == "file" and not config.data_path:
        return None
    else:
        _, test = _load_tables(config, _stamp(config))
        if test is None:
            return None
        table = test
    return _tokenise(table, label_names(config), model)


def client_data(
    config: DataConfig, model: ModelConfig, seed: int, partition: int, num_partitions: int
) -> ClientData:
    """Return the share of client `partition` (0 ≤ partition < num_partitions) of a data set.

    The same arguments give the same examples in every process. A share may be empty.
    """
    return _client_data(config, model, seed, partition, num_partitions, _stamp(config))


def check_split(config: DataConfig, seed: int, num_partitions: int) -> None:
    """Raise `UserError` for a data set that cannot be split over so many clients."""
    if not _generated(config):
        partitioner = _partitioner(config, seed, num_partitions, _stamp(config))
        _check_labels(set(partitioner.dataset["label"]), label_names(config), _source(config))


def private_data(config: DataConfig, model: ModelConfig, seed: int, path: str) -> ClientData:
    """Return all examples of a node's own file or folder at `path`.

    A folder's ``test.*`` is what the node holds out; without one, a share of ``train.*`` is.
    Raises `UserError` where `labels` does not name the labels: a node cannot know those of others.
    """
    if not config.label_names:
        raise UserError(
            'labels = "": nodes with a data-path of their own need the label names in run-config, '
            'for example labels = "negative,positive"'
        )
    own = replace(config, dataset="file", data_path=path)
    return _private_data(own, model, seed, _stamp(own))


@lru_cache(maxsize=CACHED_CLIENTS)
def _client_data(
    config: DataConfig,
    model: ModelConfig,
    seed: int,
    partition: int,
    num_partitions: int,
    stamp: tuple[int, ...],
) -> ClientData:
    labels = label_names(config)
    if _generated(config):
        notes = triage.site_notes(seed, partition)
        table = _Table([n.text for n in notes], [n.label for n in notes], "triage")
    else:
        partitioner = _partitioner(config, seed, num_partitions, stamp)
        table = _from_dataset(partitioner.load_partition(partition), "text", "label", "")
    return _hold_out(_tokenise(table, labels, model), config.validation_fraction, seed, partition)


@lru_cache(maxsize=1)
def _private_data(
    config: DataConfig, model: ModelConfig, seed: int, stamp: tuple[int, ...]
) -> ClientData:
    train, test = _load_tables(config, stamp)
    examples = _tokenise(train, config.label_names, model)
    if test is None:
        return _hold_out(examples, config.validation_fraction, seed, 0)
    return ClientData(examples, _tokenise(test, config.label_names, model))


def _hold_out(examples: Examples, fraction: float, seed: int, partition: int) -> ClientData:
    order = torch.from_numpy(np.random.default_rng([seed, partition]).permutation(len(examples)))
    held_out = int(fraction * len(examples))
    return ClientData(train=examples[order[held_out:]], validation=examples[order[:held_out]])


def _tokenise(table: _Table, labels: Sequence[str], model: ModelConfig) -> Examples:
    _check_labels(set(table.labels), labels, table.source)
    index = {name: number for number, name in enumerate(labels)}
    ids, lengths = HashingTokenizer(model.vocabulary, model.max_length).encode(table.texts)
    return Examples(
        torch.from_numpy(ids),
        torch.from_numpy(lengths),
        torch.tensor([index[name] for name in table.labels], dtype=torch.int64),
    )


def _check_labels(found: set[str], known: Sequence[str], source: str) -> None:
    unknown = sorted(found - set(known))
    if unknown:
        raise UserError(
            f"{source}: label {unknown[0]!r} is unknown; the labels are {', '.join(known)}"
        )


def _generated(config: DataConfig) -> bool:
    """Whether each client's examples are written for it alone, so that nothing is split."""
    return config.dataset == "triage" and config.partitioner in ("auto", "natural")


@lru_cache(maxsize=4)
def _partitioner(
    config: DataConfig, seed: int, num_partitions: int, stamp: tuple[int, ...]
) -> "Partitioner":
    """Make the flwr-datasets partitioner over the shuffled training split."""
    from flwr_datasets import partitioner as fds

    made: Partitioner
    column = config.partition_by or "site"
    match config.partitioner:
        case "dirichlet":
            made = fds.DirichletPartitioner(
                num_partitions, "label", config.alpha, min_partition_size=0, seed=seed
            )
        case "pathological":
            made = fds.PathologicalPartitioner(
                num_partitions,
                "label",
                config.classes_per_client,
                class_assignment_mode="deterministic",
                seed=seed,
            )
        case "natural":
            made = fds.NaturalIdPartitioner(column)
        case "linear":
            made = fds.LinearPartitioner(num_partitions)
        case "square":
            made = fds.SquarePartitioner(num_partitions)
        case _:
            made = fds.IidPartitioner(num_partitions)
    dataset = _training_dataset(config, seed, num_partitions, stamp)
    _check_partitioning(config, dataset, column, num_partitions)
    # Partitioners that cut slices expect rows in random order.
    made.dataset = dataset.shuffle(seed=seed)
    return made


def _check_partitioning(
    config: DataConfig, dataset: "Dataset", column: str, num_partitions: int
) -> None:
    if len(dataset) < num_partitions:
        raise UserError(
            f"{num_partitions} clients: the data set has only {len(dataset)} training examples"
        )
    if config.partitioner == "pathological":
        classes = len(set(dataset["label"]))
        if config.classes_per_client > classes:
            raise UserError(
                f"classes-per-client = {config.classes_per_client}: the data has {classes} labels"
            )
    if config.partitioner == "natural":
        if column not in dataset.column_names:
            raise UserError(
                f"partition-by = {column!r}: no such column; there are "
                + ", ".join(dataset.column_names)
            )
        values = len(set(dataset[column]))
        if values != num_partitions:
            raise UserError(
                f"partition-by = {column!r}: the column has {values} values, "
                f"so the run needs {values} clients, not {num_partitions}"
            )


def _training_dataset(
    config: DataConfig, seed: int, num_partitions: int, stamp: tuple[int, ...]
) -> "Dataset":
    from datasets import Dataset

    if config.dataset == "triage":
        notes = [note for site in range(num_partitions) for note in triage.site_notes(seed, site)]
        columns: dict[str, Any] = {
            "text": [note.text for note in notes],
            "label": [note.label for note in notes],
            "site": [note.site for note in notes],
        }
        return Dataset.from_dict(columns)
    train, _ = _load_splits(config, stamp)
    table = _from_dataset(train, config.text_column, config.label_column, _source(config))
    columns = {"text": table.texts, "label": table.labels}
    if config.partition_by in train.column_names:
        columns[config.partition_by] = train[config.partition_by]
    return Dataset.from_dict(columns)


def _load_tables(config: DataConfig, stamp: tuple[int, ...]) -> tuple[_Table, _Table | None]:
    train, test = (
        split and _from_dataset(split, config.text_column, config.label_column, _source(config))
        for split in _load_splits(config, stamp)
    )
    assert train is not None
    return train, test


def _from_dataset(split: "Dataset", text: str, label: str, source: str) -> _Table:
    for key, column in (("text-column", text), ("label-column", label)):
        if column not in split.column_names:
            raise UserError(
                f"{source}: no column {column!r} ({key}); there are "
                + ", ".join(split.column_names)
            )
    labels: list[Any] = split[label][:]
    if None in labels:
        raise UserError(f"{source}: row {labels.index(None) + 1} has no label")
    names = getattr(split.features[label], "names", None)
    return _Table(
        texts=["" if value is None else str(value) for value in split[text]],
        labels=[names[value] for value in labels] if names else [str(value) for value in labels],
        source=source,
    )


def _source(config: DataConfig) -> str:
    return config.data_path if config.dataset == "file" else f"dataset {config.dataset}"


def _stamp(config: DataConfig) -> tuple[int, ...]:
    """Identify the present content of the files behind `config`, so that caches notice a change."""
    if config.dataset != "file" or not config.data_path:
        return ()
    states = [file.stat() for file in _files(config.data_path).values()]
    return tuple(number for state in states for number in (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=2)
def _load_splits(config: DataConfig, stamp: tuple[int, ...]) -> tuple["Dataset", "Dataset | None"]:
    return _load_files(config.data_path) if config.dataset == "file" else _load_hub(config.dataset)


def _files(data_path: str) -> dict[str, Path]:
    """Find the file of each split: the path itself, or train.* and test.* in the folder."""
    if not data_path:
        raise UserError('data-path = "": dataset = "file" needs the path of a file or folder')
    path = Path(data_path).expanduser()
    if not path.exists():
        raise UserError(f"data-path = {data_path}: does not exist ({path.absolute()})")
    files = {"train": path}
    if path.is_dir():
        files = {
            file.stem: file
            for file in sorted(path.iterdir())
            if file.stem in ("train", "test") and file.suffix.lower() in FORMATS
        }
        if "train" not in files:
            raise UserError(f"data-path = {data_path}: no train.csv, .jsonl or .parquet in it")
    elif path.suffix.lower() not in FORMATS:
        raise UserError(f"data-path = {data_path}: must end in {', '.join(FORMATS)}")
    return files


def _load_files(data_path: str) -> tuple["Dataset", "Dataset | None"]:
    splits = {split: _load_file(file) for split, file in _files(data_path).items()}
    return splits["train"], splits.get("test")


def _load_file(file: Path) -> "Dataset":
    import datasets

    kind = FORMATS[file.suffix.lower()]
    # Words such as "NA" and "null" are text here, not missing values.
    options = {"keep_default_na": False} if kind == "csv" else {}
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its errors reach us as exceptions
    try:
        rows = datasets.load_dataset(
            kind, data_files=str(file), split="train", streaming=True, **options
        )
        dataset = datasets.Dataset.from_list(list(rows))
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    except (ValueError, OSError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: cannot be read as {kind} ({reason})") from None
    if not len(dataset):
        raise UserError(f"{file}: holds no examples")
    return dataset


def _load_hub(name: str) -> tuple["Dataset", "Dataset | None"]:
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset = {name!r}: cannot be loaded from the hub ({reason}); offline, use "
            'dataset = "file" with data-path, or "triage"'
        ) from None
    if "train" not in splits:
        raise UserError(f"dataset = {name!r}: has no train split, only {', '.join(splits)}")
    return splits["train"], splits.get("test")
