"""The label names of a run, and the number of each label."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from fedattn_app.config import DataConfig
from fedattn_app.data.dataset_kinds import kind_of
from fedattn_app.data.examples import UNKNOWN_LABEL
from fedattn_app.data.sources import Table
from fedattn_app.errors import UserError

log = logging.getLogger("fedattn")


def label_names(config: DataConfig) -> tuple[str, ...]:
    """Return the label names in the order of the model's outputs.

    They come from the key `labels`, or from the data set if that is empty. Raises `UserError` if
    neither names them.
    """
    return config.label_names or kind_of(config).label_names(config)


def check_labels(table: Table, names: Sequence[str]) -> None:
    """Raise `UserError` if a label of `table` is not one of `names`."""
    unknown = sorted(set(table.labels) - set(names))
    if unknown:
        raise UserError(
            f"{table.source}: label {unknown[0]!r} is unknown; the labels are {', '.join(names)}"
        )


def label_numbers(table: Table, names: Sequence[str], secret: bool = False) -> Tensor:
    """Return the index in `names` of each row's label, int64 (N,).

    A label that is not one of `names` raises `UserError`. With `secret`, the error would reveal
    something about that row, so its number is `UNKNOWN_LABEL` and a line in the log says how many
    there are.
    """
    if not secret:
        check_labels(table, names)
    index = {name: number for number, name in enumerate(names)}
    numbers = [index.get(name, UNKNOWN_LABEL) for name in table.labels]
    if num_unknown := numbers.count(UNKNOWN_LABEL):
        log.warning(
            "%s: %d of %d examples have no effect: their label is not one of %s",
            table.source,
            num_unknown,
            len(table),
            ", ".join(names),
        )
    return torch.tensor(numbers, dtype=torch.int64)
