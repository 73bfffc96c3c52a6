"""Warnings about labels that are probably not meant; the server logs them before round 1."""

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from fedattn_app.config import DataConfig, as_toml
from fedattn_app.data.dataset_kinds import kind_of
from fedattn_app.data.labels import list_labels, names_in_data, shortened
from fedattn_app.label_text import MISSING_WORDS

MANY_LABELS = 1000  # more of them are rarely meant
MAX_NAMED = 3  # doubtful labels that one line names
RARE_ROWS = 2  # at most so many rows have a label that is probably a slip
USUAL_ROWS = 20  # if half of the labels have at least so many

_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?|[-+]?[0-9]+\.")
_SIGNS_THAT_COUNT = "+#"  # C, C++ and C# do not look alike

log = logging.getLogger("fedattn")


def log_doubtful_labels(config: DataConfig, names: Sequence[str]) -> None:
    """Log a warning for each thing about the label `names` of a run that is rarely meant.

    If the key `labels` names them, that is only a label that the data do not have. Otherwise it is
    a label that programs write for a missing one, a label of very few rows, labels that look alike,
    -1 beside the class numbers 0, 1 and so on, and very many labels.
    """
    if config.label_names:
        found = names_in_data(config) if kind_of(config).server_has_data(config) else names
        if absent := [name for name in names if name not in found]:
            log.warning(
                "labels: no training example that the server reads has the label %s",
                list_labels(absent),
            )
        return
    counts = Counter(kind_of(config).training_labels(config))
    for text in (
        _missing(counts),
        _rare(counts),
        _alike(names),
        _minus_one(names, counts),
        _many(config, names),
    ):
        if text:
            log.warning("%s", text)


def _missing(counts: Mapping[str, int]) -> str:
    words = [name for name in counts if name.casefold() in MISSING_WORDS]
    if not words:
        return ""
    return (
        f"labels: {_with_counts(words, counts)}, which programs write for a missing label; remove "
        "these rows, or name all labels in the key labels"
    )


def _rare(counts: Mapping[str, int]) -> str:
    usual = sorted(counts.values())[len(counts) // 2] if counts else 0
    rare = [name for name, number in counts.items() if number <= RARE_ROWS]
    rare = [name for name in rare if name.casefold() not in MISSING_WORDS]
    if not rare or usual < USUAL_ROWS:
        return ""
    return f"labels: {_with_counts(rare, counts)}; are these labels meant?"


def _alike(names: Sequence[str]) -> str:
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_look(name), []).append(name)
    alike = [same for same in spellings.values() if len(same) > 1]
    if not alike:
        return ""
    pairs = "; ".join(" and ".join(repr(shortened(n)) for n in same) for same in alike[:MAX_NAMED])
    return f"labels: {pairs} are different labels, though they look alike"


def _look(name: str) -> str:
    """Return what two labels that look alike have in common: a number, or letters and digits."""
    text = unicodedata.normalize("NFKC", name).casefold().replace("\u2212", "-")
    if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return repr(number)
    return "".join(c for c in text if c.isalnum() or c in _SIGNS_THAT_COUNT) or text


def _minus_one(names: Collection[str], counts: Mapping[str, int]) -> str:
    others = set(names) - {"-1"}
    is_class = "-1" not in names or others != {str(k) for k in range(len(others))}
    if is_class or len(others) < 2:
        return ""
    return f"labels: {_with_counts(['-1'], counts)}, which often means that a row has no label"


def _many(config: DataConfig, names: Sequence[str]) -> str:
    if len(names) <= MANY_LABELS:
        return ""
    column = as_toml(config.label_column)
    return (
        f"label-column = {column}: there are {len(names)} different labels; is it the right column?"
    )


def _with_counts(names: Collection[str], counts: Mapping[str, int]) -> str:
    listed = ", ".join(
        f"{counts[name]} of {sum(counts.values())} training rows have the label {shortened(name)!r}"
        for name in islice(names, MAX_NAMED)
    )
    more = len(names) - MAX_NAMED
    return f"{listed} and {more} more labels" if more > 0 else listed
