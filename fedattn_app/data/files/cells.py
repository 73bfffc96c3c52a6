"""What a reader of files is asked for, and what it returns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedattn_app.config import as_toml
from fedattn_app.errors import UserError
from fedattn_app.label_text import without_surrogates

MAX_NAMES_LISTED = 20
MAX_NAME_LENGTH = 60  # characters of a column's name in an error


@dataclass(frozen=True)
class Request:
    """The columns that are wanted from a file.

    Args:
        columns: The name of each wanted column, by the run-config key that gives it.
        optional: The keys of the columns that the file may lack.
        secret: Whether an error about a single row would reveal too much. Such a row is then read
            as missing values and counted.
        labels: The labels that the run declares; empty if it takes those of the training rows.
    """

    columns: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    secret: bool = False
    labels: Sequence[str] = ()

    def find(self, names: Sequence[str], source: str) -> dict[str, int]:
        """Return the position in `names` of each wanted column, by the column's name.

        White space around a name is ignored. Raises `UserError` for a wanted column that is not
        there, and for a name that occurs twice.
        """
        bare = [bare_name(name) for name in names]
        for name in bare:
            if name and bare.count(name) > 1:
                where = [str(at) for at, other in enumerate(bare, 1) if other == name]
                raise UserError(
                    f"{source}: the column name {name!r} occurs twice in the header "
                    f"(columns {' and '.join(where)})"
                )
        found: dict[str, int] = {}
        for key, wanted in self.columns.items():
            if bare_name(wanted) in bare:
                found[wanted] = bare.index(bare_name(wanted))
            else:
                self.check_absent(key, bare, source)
        return found

    def check_absent(self, key: str, names: Sequence[str], source: str) -> None:
        """Raise `UserError` because none of `names` is the column of `key`, unless it is optional.

        If one of `names` is similar, even an optional column is probably misspelt.
        """
        wanted = self.columns[key]
        similar = similar_name(wanted, names)
        if similar or key not in self.optional:
            hint = f"; is it {key} = {as_toml(similar)}?" if similar else ""
            raise UserError(
                f"{source}: no column {wanted!r} ({key}); there are {list_names(names)}{hint}"
            )


@dataclass(frozen=True)
class Cells:
    """The wanted columns of a file, with N cells each.

    Args:
        columns: N cells, by the column's name. A cell without a value is None.
        malformed: The rows, from 0, that could not be read and are None in every column.
        lines: The line of the file, from 1, in which each row begins; None if the format has no
            lines.
    """

    columns: Mapping[str, Sequence[Any]]
    malformed: Sequence[int] = ()
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Return where the row number `row`, from 0, is in the file."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


class FaultyRows:
    """The rows of a file that cannot be read: errors, or under `secret` only counted."""

    def __init__(self, source: str | Path, secret: bool) -> None:
        self.source = source
        self._secret = secret
        self.numbers: list[int] = []

    def add(self, row: int, fault: str) -> None:
        """Note that `row`, from 0, is faulty. Raises `UserError` with `fault` unless secret."""
        if not self._secret:
            raise UserError(f"{self.source}: {fault}")
        self.numbers.append(row)


def bare_name(name: str) -> str:
    """Return a column's name without white space and byte order marks around it."""
    return name.strip().strip("\ufeff").strip()


def similar_name(wanted: str, names: Iterable[str]) -> str | None:
    """Return that of `names` which differs from `wanted` in case and separators only."""

    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name)).casefold()

    return next((name for name in names if plain(name) == plain(wanted) != ""), None)


def list_names(names: Sequence[str]) -> str:
    """Return the names of columns as one short line."""
    short = [
        name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}…"
        for name in (
            " ".join(without_surrogates(name).split()) or "(no name)"
            for name in names[:MAX_NAMES_LISTED]
        )
    ]
    rest = len(names) - MAX_NAMES_LISTED
    return ", ".join(short) + (f" and {rest} more" if rest > 0 else "")


def count(number: int, noun: str) -> str:
    """Return the number with the noun, in the plural unless there is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
