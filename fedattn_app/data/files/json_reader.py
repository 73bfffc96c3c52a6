"""Read JSON Lines, or one JSON array of objects."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from fedattn_app.data.files.cells import Cells, FaultyRows, Request, list_names
from fedattn_app.data.files.layout import COMPRESSED, suffix_of
from fedattn_app.data.files.opening import open_text
from fedattn_app.errors import UserError

# An object, or the reason why there is none.
Row = dict[str, Any] | str

_TYPES = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}


def read_json(file: Path, request: Request) -> Cells:
    """Return the wanted values of JSON Lines, or of one JSON array of objects.

    A value that is null or not a number (NaN) is None. Under `secret` only a file that ends in
    .json may be an array.

    Raises `UserError` if a row is not an object or lacks a wanted key, unless the request is
    secret. Raises `UnicodeDecodeError`, `OSError`, `EOFError`, `ValueError` or `RecursionError` if
    the text cannot be read.
    """
    names = list(request.columns.values())
    # The first line of JSON Lines is a row, which must not decide about the others.
    may_be_array = not request.secret or suffix_of(file.name).removesuffix(COMPRESSED) == ".json"
    with open_text(file) as stream:
        while (start := stream.read(1)).isspace():
            pass
        stream.seek(0)
        if start == "[" and may_be_array:
            return _read_rows(file, request, _array(stream.read(), names), has_lines=False)
        return _read_rows(file, request, _lines(stream, names), has_lines=True)


def _lines(stream: TextIO, names: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the line and the row of every line that is not blank."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, _as_row(_decode(line), names)
        except json.JSONDecodeError as error:
            yield number, f"not JSON ({error.msg}); one object on each line is expected"
        except (ValueError, RecursionError) as error:
            yield number, f"cannot be read as JSON ({error})"


def _array(text: str, names: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the number and the row of every element of a JSON array."""
    yield from ((number, _as_row(value, names)) for number, value in enumerate(_decode(text), 1))


class _Repeated(str):
    """A key that an object has more than once, in place of the object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    return _Repeated(next(key for key in keys if keys.count(key) > 1))


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def _as_row(value: Any, names: Sequence[str]) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, _Repeated):
        return f"the object has the key {str(value)!r} twice"
    found = "null" if value is None else _TYPES[type(value)]
    expected = ", ".join(f'"{name}": …' for name in dict.fromkeys(names))
    return f"an object such as {{{expected}}} is expected, not {found}"


def _read_rows(
    file: Path, request: Request, rows: Iterable[tuple[int, Row]], has_lines: bool
) -> Cells:
    numbers = array("Q")
    columns: dict[str, list[Any]] = {name: [] for name in request.columns.values()}
    lacking: dict[str, list[int]] = {name: [] for name in columns}  # rows without the key
    names: dict[str, None] = {}
    faulty = FaultyRows(file, request.secret)
    for number, row in rows:
        if isinstance(row, str):
            faulty.add(len(numbers), f"{_place(number, has_lines)}: {row}")
            row = dict.fromkeys(columns)
        elif not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
        for name, column in columns.items():
            value = row.get(name)
            if value is None and name not in row:
                lacking[name].append(len(numbers))
            column.append(value)
        numbers.append(number)
    if not numbers or not (names or request.secret):
        raise UserError(f"{file}: is empty")
    if not request.secret:  # whether a row has the key would reveal something about it
        for key, name in request.columns.items():
            if len(lacking[name]) == len(numbers):
                request.check_absent(key, list(names), str(file))
                del columns[name]
            elif lacking[name] and key not in request.optional:
                others = len(lacking[name]) - 1
                raise UserError(
                    f"{file}: {_place(numbers[lacking[name][0]], has_lines)}: {name!r} ({key}) is "
                    f"missing{f', as in {others} other rows' * bool(others)}; "
                    f"the keys in the file are {list_names(list(names))}"
                )
    return Cells(columns, faulty.numbers, numbers if has_lines else None)


def _place(number: int, has_lines: bool) -> str:
    return f"{'line' if has_lines else 'row'} {number}"
