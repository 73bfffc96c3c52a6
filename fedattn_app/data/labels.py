"""The label names of a run, the number of each label, and the errors about labels."""

import logging
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from fedattn_app.config import DataConfig, as_toml
from fedattn_app.data.dataset_kinds import kind_of
from fedattn_app.data.examples import UNKNOWN_LABEL
from fedattn_app.data.sources import Table
from fedattn_app.errors import UserError
from fedattn_app.label_text import NO_LABELS, join_labels, normalise_label, sort_labels

log = logging.getLogger("fedattn")

MAX_LABELS_LISTED = 10  # in an error or a line of the log
MAX_LABEL_LENGTH = 60  # characters of a label in an error or a line of the log
MAX_UNKNOWN_LABELS = 3  # that one error names


def label_names(config: DataConfig) -> tuple[str, ...]:
    """Return the normalised label names in the order of the model's outputs.

    They come from the key `labels`, or from the data set if that is empty. Raises `UserError` if
    neither names them.
    """
    return config.label_names or names_in_data(config)


def names_in_data(config: DataConfig) -> tuple[str, ...]:
    """Return the normalised label names of the data set, in the order of the model's outputs."""
    return tuple(map(normalise_label, kind_of(config).label_names(config)))


def list_labels(names: Sequence[str]) -> str:
    """Return `names` as one line, as the key `labels` takes them, or the first and their number."""
    listed = join_labels(map(shortened, names[:MAX_LABELS_LISTED]))
    more = len(names) - MAX_LABELS_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def shortened(label: str) -> str:
    """Return `label`, or its beginning if it is too long for a line."""
    return label if len(label) <= MAX_LABEL_LENGTH else f"{label[:MAX_LABEL_LENGTH]}…"


def has_labels(table: Table, config: DataConfig, secret: bool = False) -> bool:
    """Return whether the rows of a test split have labels; log a warning if none has.

    A row has no label if its cell is one of `NO_LABELS` and no label of the run is called so.
    With `secret`, only a missing column counts, because cells would reveal something about rows.

    Raises `UserError` if some rows have a label and others do not, unless `secret`.
    """
    if secret and table.labels:
        return True
    no_label = NO_LABELS.difference(label_names(config))
    missing = [row for row, label in enumerate(table.labels, 1) if label in no_label]
    if len(missing) == len(table.labels):
        log.warning(
            "%s: not used as test split, because no row has a label (label-column = %s)",
            table.source,
            as_toml(config.label_column),
        )
        return False
    if missing:
        raise UserError(
            f"{table.source}: {len(missing)} of {len(table)} test rows have no label, the first is "
            f"row {missing[0]}; give all of them a label or remove these"
        )
    return True


def check_labels(table: Table, names: Sequence[str]) -> None:
    """Raise `UserError` if a label of `table` is not one of `names`."""
    known = set(names)
    unknown = Counter(label for label in table.labels if label not in known)
    if not unknown:
        return
    by_case = {name.casefold(): name for name in names}
    found = []
    for label in sort_labels(unknown)[:MAX_UNKNOWN_LABELS]:
        near = get_close_matches(label.casefold(), by_case, n=1)
        hint = f", perhaps {by_case[near[0]]!r}" if near else ""
        found.append(f"{shortened(label)!r} ({unknown[label]} of {len(table)} rows{hint})")
    more = len(unknown) - len(found)
    raise UserError(
        f"{table.source}: unknown label {', '.join(found)}{f' and {more} more' * bool(more)}; the "
        f"labels are {list_labels(names)}; correct the spelling, or name all labels in the key "
        "labels (by default, the labels of the training rows)"
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
            list_labels(names),
        )
    return torch.tensor(numbers, dtype=torch.int64)
