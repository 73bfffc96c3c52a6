"""The one spelling of a label, however a file, a setting or a data frame wrote it; lists of labels.

Programs rewrite labels on their way into a file: pandas turns 1 into 1.0 as soon as a value is
missing, Python writes True and JSON true, a spreadsheet leaves a space behind. Two spellings of one
label would be two classes. So every label passes `normalise_label` before it is compared: those of
data files, of the key `labels` and of a checkpoint's head.
"""

import csv
import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

# Characters without width that mean nothing in a name: zero-width space, word joiner, byte order
# mark, direction marks, soft hyphen, and the padding of fixed-width text. The zero-width joiners
# stay, because some scripts need them.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u200e\u200f\u061c\xad\0"))
# 1.0 as pandas writes it. Several decimals, as in the diagnosis code 250.00, are left alone, and so
# are leading zeros.
_WHOLE_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]*)(\.0)?")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")

QUOTE = '"'

# What programs write for a missing value, in lower case; some are names of labels as well.
MISSING_WORDS = frozenset(
    ("nan", "na", "n/a", "<na>", "none", "null", "(null)", "\\n", "#n/a", "#ref!", "#name?", "nil")
)
# Test splits without labels are published with these in place of labels.
NO_LABELS = frozenset(("", "-1", "NaN", "nan", "NA", "N/A", "<NA>", "NULL", "null", "\\N", "#N/A"))


def normalise_label(value: object) -> str:
    """Return the spelling of the label `value`; an empty text stands for a missing label.

    White space of any kind at the ends is removed, and within it becomes one space. Invisible
    characters are removed. Accents are composed (Unicode NFC). A whole number is written without
    sign +, ``.0`` or ``-0``, whether it comes as a number or as text; ``True`` and ``TRUE`` become
    ``true``, and likewise false. Upper and lower case are otherwise kept. None and NaN are missing
    labels.
    """
    if value is None or value != value:  # NaN, of any type
        return ""
    if isinstance(value, (float, Decimal)):
        whole = math.isfinite(value) and value == int(value)
        text = str(int(value)) if whole else str(value)
    else:
        text = str(value)
    visible = without_surrogates(text).translate(_INVISIBLE)
    text = unicodedata.normalize("NFC", " ".join(visible.split()))
    if text.lower() in ("true", "false"):
        return text.lower()
    if number := _WHOLE_NUMBER.fullmatch(text):
        sign = "-" if number[1] == "-" and number[2] != "0" else ""
        return sign + number[2]
    return text


def without_surrogates(text: str) -> str:
    """Return `text` with a question mark in place of each lone surrogate.

    JSON files may hold half of a character, which neither tokenizers nor UTF-8 files accept.
    """
    return text.encode("utf-8", "replace").decode()


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return `labels` in their standard order: numbers by value, then all others by alphabet."""

    def key(label: str) -> tuple[bool, Decimal, str]:
        is_number = _NUMBER.fullmatch(label) is not None
        return not is_number, Decimal(label if is_number else 0), label

    return sorted(labels, key=key)


def split_labels(text: str) -> list[str]:
    """Return the names in `text`, one line of CSV, as they are written there.

    Blank names are left out. A name with a comma is in double quotes, and a quote within these is
    doubled. Raises `ValueError` for wrong quoting.
    """
    line = " ".join(text.split())
    try:
        names = next(csv.reader([line], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return [name for name in names if normalise_label(name)]


def join_labels(labels: Iterable[str]) -> str:
    """Return `labels` as one line that `split_labels` reads."""
    return ", ".join(
        f'"{label.replace(QUOTE, 2 * QUOTE)}"' if QUOTE in label or "," in label else label
        for label in labels
    )
