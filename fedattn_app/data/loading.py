"""The examples of a client of a simulation, of a node with its own file, and of the server."""

from dataclasses import replace

import numpy as np
import torch

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.data.dataset_kinds import kind_of
from fedattn_app.data.examples import ClientData, Examples
from fedattn_app.data.labels import check_labels, has_labels, label_names, label_numbers
from fedattn_app.data.partition import num_rows_by_client, rows_by_client
from fedattn_app.data.sources import Table, load_files
from fedattn_app.errors import UserError
from fedattn_app.models.factory import build_tokenizer
from fedattn_app.models.tokenizer import Tokenizer

MAX_CACHED_CLIENTS = 1024


def server_has_data(config: DataConfig) -> bool:
    """Whether the server can read the data set, so that a simulation splits it."""
    return kind_of(config).server_has_data(config)


def data_fingerprints(config: DataConfig, seed: int) -> tuple[str, str]:
    """Return the SHA-256 (hex) of the training rows that are split, and of the test rows.

    Each is empty if the server has no such rows, or if they are computed from the seed.
    """
    kind = kind_of(config)
    training = kind.training_fingerprint(config)
    test = kind.test_table(config, seed)
    return training, test.fingerprint if test else ""


def server_test_set(config: DataConfig, model: ModelConfig, seed: int) -> Examples | None:
    """Return the examples that the server evaluates on, or None if there are none with labels.

    Raises `UserError` for data that cannot be read, for an unknown label, and for a test split of
    which only some rows have a label.
    """
    table = kind_of(config).test_table(config, seed)
    if table is None or not has_labels(table, config):
        return None
    return _examples(table, label_names(config), build_tokenizer(model))


def check_split(config: DataConfig, seed: int, num_partitions: int) -> None:
    """Raise `UserError` if the data set cannot be split over `num_partitions` clients."""
    kind = kind_of(config)
    if not kind.has_client_tables(config):
        table = kind.training_table(config, seed, num_partitions)
        check_labels(table, label_names(config))
        rows_by_client(config, table, num_partitions, seed)


def examples_per_client(
    config: DataConfig, seed: int, num_partitions: int
) -> list[tuple[int, int]]:
    """Return how many examples each client of a simulation trains on, and how many it holds out.

    Raises `UserError` if the data set cannot be split over `num_partitions` clients.
    """
    check_split(config, seed, num_partitions)
    kind = kind_of(config)
    if kind.has_client_tables(config):
        sizes = [kind.client_table_size(seed, client) for client in range(num_partitions)]
    else:
        table = kind.training_table(config, seed, num_partitions)
        sizes = num_rows_by_client(rows_by_client(config, table, num_partitions, seed))
    held_out = [num_held_out(size, config.validation_fraction) for size in sizes]
    return [(size - held, held) for size, held in zip(sizes, held_out, strict=True)]


def num_held_out(num_examples: int, fraction: float) -> int:
    """Return how many of a client's examples are held out: a `fraction`, rounded down."""
    return int(fraction * num_examples)


def client_data(
    config: DataConfig, model: ModelConfig, seed: int, partition: int, num_partitions: int
) -> ClientData:
    """Return the examples of client `partition` in a simulation, possibly none.

    The same arguments give the same examples in every process.

    Args:
        config: The data set and how to split it.
        model: The model, whose tokenizer encodes the texts.
        seed: Seed of the split and of the choice of the examples to hold out.
        partition: The client's number, 0 ≤ partition < num_partitions.
        num_partitions: The number of clients.

    Raises:
        UserError: If the data cannot be read or cannot be split over that many clients.
    """
    kind = kind_of(config)
    table = None
    if not kind.has_client_tables(config):
        table = kind.training_table(config, seed, num_partitions)
    return _client_data(config, build_tokenizer(model), seed, partition, num_partitions, table)


def private_data(
    config: DataConfig, model: ModelConfig, seed: int, path: str, secret: bool = False
) -> ClientData:
    """Return all examples of a node's own file or folder.

    The held-out examples are those of ``test.*`` in the folder if these have labels, or else a
    share of the training examples.

    Args:
        config: The columns, the label names and the share to hold out.
        model: The model, whose tokenizer encodes the texts.
        seed: Seed of the choice of the examples to hold out.
        path: The file or folder.
        secret: Whether an error about a single row would reveal too much, as in private training.
            An unknown or missing label is then `UNKNOWN_LABEL`, and a line in the log counts them.

    Raises:
        UserError: If `config` does not name the labels, because a node does not know the labels of
            other nodes; if the data cannot be read; and for an unknown or missing label unless
            `secret`.
    """
    if not config.label_names:
        raise UserError(
            'labels = "": nodes with a data-path of their own need the label names in run-config, '
            'for example labels = "negative,positive"'
        )
    own = DataConfig(
        dataset="file",
        data_path=path,
        text_column=config.text_column,
        label_column=config.label_column,
        labels=config.labels,
    )
    splits, tokenizer = load_files(own, secret), build_tokenizer(model)
    train = _examples(splits.training(), config.label_names, tokenizer, secret)
    if splits.test is None or not has_labels(splits.test, own, secret):
        data = _hold_out(train, config.validation_fraction, seed, 0)
    else:
        data = ClientData(train, _examples(splits.test, config.label_names, tokenizer, secret))
    return replace(
        data,
        tokenizer_fingerprint=tokenizer.fingerprint,
        source_fingerprint=splits.fingerprint,
    )


# The tokenizer and the table are part of the key: after a change on disk they are other objects.
@PROCESS_CACHE.keep(max_entries=MAX_CACHED_CLIENTS)
def _client_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    partition: int,
    num_partitions: int,
    table: Table | None,
) -> ClientData:
    if table is None:
        share = kind_of(config).client_table(seed, partition)
    else:
        share = table.take(rows_by_client(config, table, num_partitions, seed)[partition])
    examples = _examples(share, label_names(config), tokenizer)
    data = _hold_out(examples, config.validation_fraction, seed, partition)
    return replace(
        data,
        tokenizer_fingerprint=tokenizer.fingerprint,
        source_fingerprint=table.fingerprint if table else "",
    )


def _hold_out(examples: Examples, fraction: float, seed: int, partition: int) -> ClientData:
    """Hold out a random `fraction` of the examples."""
    order = torch.from_numpy(np.random.default_rng([seed, partition]).permutation(len(examples)))
    held_out = num_held_out(len(examples), fraction)
    return ClientData(train=examples[order[held_out:]], validation=examples[order[:held_out]])


def _examples(
    table: Table, labels: tuple[str, ...], tokenizer: Tokenizer, secret: bool = False
) -> Examples:
    numbers = label_numbers(table, labels, secret)
    return Examples(tokenizer.batch(table.texts), numbers)
