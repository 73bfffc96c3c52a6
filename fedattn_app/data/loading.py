"""Examples for one client or for the server: split over clients, tokenised, held out.

A simulation splits one data set with flwr-datasets' partitioners; a real node reads its own file
whole. The built-in corpus needs no splitting: each client's notes are written for it.
"""

import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import lru_cache, partial
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.data import sources, triage
from fedattn_app.data.examples import UNKNOWN_LABEL, ClientData, Examples
from fedattn_app.data.sources import Table
from fedattn_app.errors import UserError
from fedattn_app.models.factory import build_tokenizer
from fedattn_app.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

CACHED_CLIENTS = 1024

log = logging.getLogger("fedattn")


def label_names(config: DataConfig) -> tuple[str, ...]:
    """Return the label names in the order of the model's outputs.

    They are those that `labels` gives, else the corpus's own, else those found in the data, in
    alphabetical order. Raises `UserError` when there is neither.
    """
    if config.label_names:
        return config.label_names
    if config.dataset == "triage":
        return triage.LABELS
    if not server_has_data(config):
        raise UserError(
            'labels = "": with dataset = "file" and no data-path, name the labels, '
            'for example labels = "negative,positive"'
        )
    return sources.load(config).labels


def server_test_set(config: DataConfig, model: ModelConfig, seed: int) -> Examples | None:
    """Return the examples that the server evaluates on, or None where it has no test split.

    Raises `UserError` for data that cannot be read, and for a label that is not among the names.
    """
    if config.dataset == "triage":
        table = _notes_table(triage.test_notes(seed))
    elif not server_has_data(config) or (test := sources.load(config).test) is None:
        return None
    else:
        table = test
    return _tokenise(table, label_names(config), build_tokenizer(model))


def check_split(config: DataConfig, seed: int, num_partitions: int) -> None:
    """Raise `UserError` for a data set that cannot be split over so many clients."""
    if not _written_per_client(config):
        table = _training_table(config, seed, num_partitions)
        _check_labels(table, label_names(config))
        if config.partitioner == "label-shares":
            _by_shares(config, seed, num_partitions, table)
        else:
            _partitioner(config, seed, num_partitions, table)


def client_data(
    config: DataConfig, model: ModelConfig, seed: int, partition: int, num_partitions: int
) -> ClientData:
    """Return the share of client `partition` (0 ≤ partition < num_partitions) of a data set.

    The same arguments give the same examples in every process. A share may be empty. Raises
    `UserError` for data that cannot be read or not be split so.
    """
    table = None
    if not _written_per_client(config):
        table = _training_table(config, seed, num_partitions)
    tokenizer = build_tokenizer(model)
    return _client_data(config, tokenizer, seed, partition, num_partitions, table)


def private_data(
    config: DataConfig, model: ModelConfig, seed: int, path: str, secret: bool = False
) -> ClientData:
    """Return all examples of a node's own file or folder at `path`.

    A folder's ``test.*`` is what the node holds out; without one, a share of ``train.*`` is.
    Raises `UserError` where `labels` does not name the labels: a node cannot know those of others.
    Whether a label that is none of them, or missing, is a mistake too would tell of the example
    that has it: where examples are `secret` it is `UNKNOWN_LABEL`, and a line in the log.
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
    splits = sources.load(own, secret)
    tokenise = partial(
        _tokenise, labels=config.label_names, tokenizer=build_tokenizer(model), secret=secret
    )
    train = tokenise(splits.training())
    if splits.test is None:
        return _hold_out(train, config.validation_fraction, seed, 0)
    return ClientData(train, tokenise(splits.test))


# Table and tokenizer are parts of the cache's key: a file that changed is another object.
@lru_cache(maxsize=CACHED_CLIENTS)
def _client_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    partition: int,
    num_partitions: int,
    table: Table | None,
) -> ClientData:
    if table is None:
        share = _notes_table(triage.site_notes(seed, partition))
    elif config.partitioner == "label-shares":
        share = table.take(_by_shares(config, seed, num_partitions, table)[partition])
    else:
        rows = _partitioner(config, seed, num_partitions, table).load_partition(partition)
        share = Table(rows["text"][:], rows["label"][:], table.source)
    examples = _tokenise(share, label_names(config), tokenizer)
    return _hold_out(examples, config.validation_fraction, seed, partition)


def _hold_out(examples: Examples, fraction: float, seed: int, partition: int) -> ClientData:
    order = torch.from_numpy(np.random.default_rng([seed, partition]).permutation(len(examples)))
    held_out = int(fraction * len(examples))
    return ClientData(train=examples[order[held_out:]], validation=examples[order[:held_out]])


def _tokenise(
    table: Table, labels: Sequence[str], tokenizer: Tokenizer, secret: bool = False
) -> Examples:
    if not secret:
        _check_labels(table, labels)
    index = {name: number for number, name in enumerate(labels)}
    numbers = [index.get(name, UNKNOWN_LABEL) for name in table.labels]
    if unknown := numbers.count(UNKNOWN_LABEL):
        log.warning(
            "%s: %d of %d examples add nothing: their label is none of %s",
            table.source,
            unknown,
            len(table),
            ", ".join(labels),
        )
    ids, lengths = tokenizer.encode(table.texts)
    return Examples(
        torch.from_numpy(ids), torch.from_numpy(lengths), torch.tensor(numbers, dtype=torch.int64)
    )


def _check_labels(table: Table, known: Sequence[str]) -> None:
    unknown = sorted(set(table.labels) - set(known))
    if unknown:
        raise UserError(
            f"{table.source}: label {unknown[0]!r} is unknown; the labels are {', '.join(known)}"
        )


def server_has_data(config: DataConfig) -> bool:
    """Whether the server can read the data set, so that a simulation splits it."""
    return config.dataset != "file" or bool(config.data_path)


def _written_per_client(config: DataConfig) -> bool:
    return config.dataset == "triage" and config.partitioner in ("auto", "natural")


def _notes_table(notes: Sequence[triage.Note]) -> Table:
    return Table(
        [note.text for note in notes],
        [note.label for note in notes],
        "triage",
        [str(note.site) for note in notes],
    )


def _training_table(config: DataConfig, seed: int, num_partitions: int) -> Table:
    if config.dataset == "triage":
        return _corpus(seed, num_partitions)
    return sources.load(config).training()


@lru_cache(maxsize=2)
def _corpus(seed: int, sites: int) -> Table:
    return _notes_table([note for site in range(sites) for note in triage.site_notes(seed, site)])


@lru_cache(maxsize=2)
def _partitioner(config: DataConfig, seed: int, num_partitions: int, table: Table) -> "Partitioner":
    """Make the flwr-datasets partitioner over the shuffled rows of `table`."""
    import datasets
    from flwr_datasets import partitioner as fds

    made: Partitioner
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
            made = fds.NaturalIdPartitioner("group")
        case "linear":
            made = fds.LinearPartitioner(num_partitions)
        case "square":
            made = fds.SquarePartitioner(num_partitions)
        case _:
            made = fds.IidPartitioner(num_partitions)
    _check_partitioning(config, num_partitions, table)
    columns = {"text": table.texts, "label": table.labels}
    if table.groups is not None:
        columns["group"] = table.groups
    # Partitioners that cut slices expect rows in random order.
    made.dataset = datasets.Dataset.from_dict(columns).shuffle(seed=seed)
    with redirect_stderr(StringIO()):  # one of them draws a progress bar at its first use
        made.load_partition(0)
    return made


def _check_shares(config: DataConfig, num_partitions: int) -> None:
    clients, labels = len(config.shares_per_client), len(label_names(config))
    if clients != num_partitions:
        raise UserError(
            f"label-shares = {config.label_shares!r}: is for {clients} clients, not "
            f"{num_partitions}"
        )
    if odd := next((s for s in config.shares_per_client if len(s) != labels), None):
        raise UserError(
            f"label-shares = {config.label_shares!r}: names {len(odd)} shares for a client, and "
            f"the data has {labels} labels"
        )


@lru_cache(maxsize=2)
def _by_shares(
    config: DataConfig, seed: int, num_partitions: int, table: Table
) -> Sequence[Sequence[int]]:
    """Return the rows of each client: so many of each label as its share says, none of them twice.

    Raises `UserError` for shares that are not for so many clients and labels, and where the data
    has too few examples of a label.
    """
    _check_shares(config, num_partitions)
    order = np.random.default_rng(seed).permutation(len(table))
    waiting: dict[str, list[int]] = {name: [] for name in label_names(config)}
    for row in order:
        waiting[table.labels[row]].append(int(row))
    clients = []
    for shares in config.shares_per_client:
        rows: list[int] = []
        ends = np.rint(np.cumsum((0, *shares)) / 100 * config.examples_per_client).astype(int)
        for (name, left), wanted in zip(waiting.items(), np.diff(ends), strict=True):
            if len(left) < wanted:
                raise UserError(
                    f"label-shares = {config.label_shares!r}: the data has too few examples of "
                    f"{name!r} for examples-per-client = {config.examples_per_client}"
                )
            rows += [left.pop() for _ in range(wanted)]
        clients.append(rows)
    return clients


def _check_partitioning(config: DataConfig, clients: int, table: Table) -> None:
    classes = len(set(table.labels))
    if config.partitioner == "pathological":
        chosen = config.classes_per_client
        if chosen > classes:
            raise UserError(f"classes-per-client = {chosen}: the data has {classes} labels")
        if chosen * clients < classes:
            raise UserError(
                f"classes-per-client = {chosen}: {clients} clients leave out "
                f"{classes - chosen * clients} of {classes} labels"
            )
    if config.partitioner == "natural" and table.groups is not None:
        groups = len(set(table.groups))
        if groups != clients:
            raise UserError(
                f"partition-by = {config.partition_by!r}: the column has {groups} values, "
                f"so the run needs {groups} clients, not {clients}"
            )
    # With sizes in proportion to k or k², the smallest client must still get a row.
    power = {"linear": 1, "square": 2}.get(config.partitioner, 0)
    needed = sum(k**power for k in range(1, clients + 1))
    if len(table) < needed:
        raise UserError(
            f"{clients} clients: the data set has only {len(table)} training examples, "
            f"where these need {needed}"
        )
