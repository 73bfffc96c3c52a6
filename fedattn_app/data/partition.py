"""How a simulation splits one table over its clients.

A partitioner is a function that returns the row numbers of each client. To add one, write a
function with the signature `Partitioner` and add a row to `PARTITIONERS` in
`fedattn_app.config.data`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from random import Random
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import PARTITIONERS, DataConfig, as_toml
from fedattn_app.data.dirichlet import dirichlet_counts
from fedattn_app.data.labels import label_names
from fedattn_app.data.sources import Table
from fedattn_app.errors import UserError
from fedattn_app.label_text import sort_labels

if TYPE_CHECKING:
    from flwr_datasets import partitioner as fds

# (config, table, num_clients, seed) → the row numbers of each client. Raises `UserError` if the
# table cannot be split over that many clients.
Partitioner = Callable[[DataConfig, Table, int, int], Sequence[Sequence[int]]]


@PROCESS_CACHE.keep(max_entries=2)
def rows_by_client(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Return the row numbers of each client, by the partitioner that `config` names.

    Raises `UserError` if the table cannot be split over `num_clients` clients.
    """
    name = "iid" if config.partitioner == "auto" else config.partitioner
    partitioner: Partitioner = PARTITIONERS[name].load()
    return partitioner(config, table, num_clients, seed)


def num_rows_by_client(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the number of rows of each client in what `rows_by_client` has returned."""
    return rows.lengths() if isinstance(rows, _FlowerRows) else list(map(len, rows))


def iid(config: DataConfig, table: Table, num_clients: int, seed: int) -> Sequence[Sequence[int]]:
    """Split the rows into random parts of equal size, one per client."""
    from flwr_datasets import partitioner as fds

    _require_rows(table, num_clients, [1] * num_clients)
    return _FlowerRows(fds.IidPartitioner(num_clients), table, seed)


def dirichlet(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Split each label's rows over the clients, by shares drawn from Dirichlet(alpha)."""
    _require_rows(table, num_clients, [1] * num_clients)
    random = Random(f"dirichlet/{seed}")
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    for candidates in _rows_by_label(table, sorted(set(table.labels)), seed).values():
        counts = dirichlet_counts(len(candidates), config.alpha, num_clients, random)
        for rows, count in zip(clients, counts, strict=True):
            rows += [candidates.pop() for _ in range(count)]
    return clients


def pathological(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Give each client the rows of `classes_per_client` labels."""
    from flwr_datasets import partitioner as fds

    num_labels, per_client = len(set(table.labels)), config.classes_per_client
    if per_client > num_labels:
        raise UserError(f"classes-per-client = {per_client}: the data has {num_labels} labels")
    if per_client * num_clients < num_labels:
        raise UserError(
            f"classes-per-client = {per_client}: {num_clients} clients leave out "
            f"{num_labels - per_client * num_clients} of {num_labels} labels"
        )
    _require_rows(table, num_clients, [1] * num_clients)
    num_rows = Counter(table.labels)
    for place, label in enumerate(sort_labels(num_rows)):
        sharing = sum((place - client) % num_labels < per_client for client in range(num_clients))
        if num_rows[label] < sharing:
            raise UserError(
                f"classes-per-client = {per_client}: label {label!r} has too few training examples "
                f"({num_rows[label]}) for the {sharing} clients that would share them"
            )
    partitioner = fds.PathologicalPartitioner(
        num_clients, "label", per_client, class_assignment_mode="deterministic", seed=seed
    )
    return _FlowerRows(partitioner, table, seed)


def natural(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Give each client all rows with one value of the column `partition_by`.

    Raises `UserError` unless the column has `num_clients` different values.
    """
    from flwr_datasets import partitioner as fds

    if table.groups is None:
        raise UserError(
            f"partition-by = {as_toml(config.partition_by)}: dataset = {as_toml(config.dataset)} "
            "has no such column"
        )
    num_groups = len(set(table.groups))
    if num_groups != num_clients:
        raise UserError(
            f"partition-by = {as_toml(config.partition_by)}: the column has {num_groups} values, "
            f"so the run needs {num_groups} clients, not {num_clients}"
        )
    _require_rows(table, num_clients, [1] * num_clients)
    return _FlowerRows(fds.NaturalIdPartitioner("group"), table, seed)


def linear(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Give client k, counted from 1, a number of random rows proportional to k."""
    from flwr_datasets import partitioner as fds

    _require_rows(table, num_clients, [k + 1 for k in range(num_clients)])
    return _FlowerRows(fds.LinearPartitioner(num_clients), table, seed)


def square(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Give client k, counted from 1, a number of random rows proportional to k²."""
    from flwr_datasets import partitioner as fds

    _require_rows(table, num_clients, [(k + 1) ** 2 for k in range(num_clients)])
    return _FlowerRows(fds.SquarePartitioner(num_clients), table, seed)


def label_shares(
    config: DataConfig, table: Table, num_clients: int, seed: int
) -> Sequence[Sequence[int]]:
    """Give each client `examples_per_client` random rows, with its row of `label_shares`.

    No row goes to two clients. Rows that are left over go to no client.
    """
    labels = label_names(config)
    _check_label_shares(config, num_clients, len(labels))
    remaining = _rows_by_label(table, labels, seed)
    clients = []
    for shares in config.shares_per_client:
        rows: list[int] = []
        ends = np.rint(np.cumsum((0, *shares)) / 100 * config.examples_per_client).astype(int)
        for (name, candidates), count in zip(remaining.items(), np.diff(ends), strict=True):
            if len(candidates) < count:
                raise UserError(
                    f"label-shares = {as_toml(config.label_shares)}: the data has too few examples "
                    f"of {name!r} for examples-per-client = {config.examples_per_client}"
                )
            rows += [candidates.pop() for _ in range(count)]
        clients.append(rows)
    return clients


def _rows_by_label(table: Table, labels: Sequence[str], seed: int) -> dict[str, list[int]]:
    """Return the row numbers of each label, in random order."""
    rows: dict[str, list[int]] = {label: [] for label in labels}
    for row in np.random.default_rng(seed).permutation(len(table)):
        rows[table.labels[row]].append(int(row))
    return rows


def _check_label_shares(config: DataConfig, num_clients: int, num_labels: int) -> None:
    listed = config.shares_per_client
    if len(listed) != num_clients:
        raise UserError(
            f"label-shares = {as_toml(config.label_shares)}: is for {len(listed)} clients, not "
            f"{num_clients}"
        )
    if wrong := next((shares for shares in listed if len(shares) != num_labels), None):
        raise UserError(
            f"label-shares = {as_toml(config.label_shares)}: names {len(wrong)} shares for a "
            f"client, and the data has {num_labels} labels"
        )


def _require_rows(table: Table, num_clients: int, proportions: Sequence[int]) -> None:
    """Raise `UserError` unless the table has enough rows for the smallest client to get one."""
    needed = sum(proportions)
    if len(table) < needed:
        raise UserError(
            f"{num_clients} clients: the data set has only {len(table)} training examples, and "
            f"this split needs at least {needed}"
        )


def _ranks(cells: Sequence[str]) -> list[int]:
    """Return each cell's place in the standard order, by which partitioners deal out labels."""
    rank = {cell: place for place, cell in enumerate(sort_labels(set(cells)))}
    return [rank[cell] for cell in cells]


class _FlowerRows(Sequence[Sequence[int]]):
    """The row numbers of each client by a flwr-datasets partitioner, computed on access."""

    def __init__(self, partitioner: "fds.Partitioner", table: Table, seed: int) -> None:
        import datasets

        columns: dict[str, Any] = {"row": np.arange(len(table)), "label": _ranks(table.labels)}
        if table.groups is not None:
            columns["group"] = _ranks(table.groups)
        # Some partitioners cut slices and expect the rows in random order.
        partitioner.dataset = datasets.Dataset.from_dict(columns).shuffle(seed=seed)
        self._partitioner = partitioner
        with redirect_stderr(StringIO()):  # the first use may draw a progress bar
            self[0]

    def __len__(self) -> int:
        return int(self._partitioner.num_partitions)

    def lengths(self) -> list[int]:
        """Return the number of rows of each client, without reading the row numbers."""
        return [len(self._partitioner.load_partition(client)) for client in range(len(self))]

    @overload
    def __getitem__(self, client: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, client: int | slice) -> Sequence[Any]:
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(len(self)))]
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        rows: Sequence[int] = self._partitioner.load_partition(client)["row"][:]
        return rows
