"""Read the wanted columns of a Parquet file, with the names of its class labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedattn_app.data.files.cells import Cells, FaultyRows, Request
from fedattn_app.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Where the library `datasets` writes its own types of the columns.
METADATA_KEY = b"huggingface"


def read_parquet(file: Path, request: Request) -> Cells:
    """Return the wanted columns of a Parquet file; no other column is read.

    Raises `UserError` for a missing column, a column of lists or other nested values, and, unless
    the request is secret, for bytes that are not UTF-8 text and class numbers without a name.
    Raises `OSError`, `ValueError` or `NotImplementedError` if the file cannot be read.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        found = request.find(schema.names, str(file))
        table = opened.read(columns=[schema.names[at] for at in found.values()])
    faulty = FaultyRows(file, request.secret)
    classes = _class_names(schema.metadata or {})
    columns = {}
    for name, at in found.items():
        stored = schema.names[at]
        columns[name] = values_of(table.column(stored), classes.get(stored, ()), name, faulty)
    for row in faulty.numbers:
        for cells in columns.values():
            cells[row] = None
    return Cells(columns, sorted(set(faulty.numbers)))


def values_of(
    column: "pa.ChunkedArray", classes: Sequence[str], name: str, faulty: FaultyRows
) -> list[Any]:
    """Return a column as Python values: texts, numbers, truth values or None.

    Args:
        column: The column.
        classes: The names of the class numbers in the column; empty if it holds none.
        name: The column's name in errors.
        faulty: Takes the rows whose bytes are not UTF-8 or whose class has no name.

    Raises `UserError` for a column of nested values.
    """
    return _name_classes(_values(column, name, faulty), classes, name, faulty)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes of each column that `datasets` marked as class numbers."""
    try:
        features = json.loads(metadata[METADATA_KEY])["info"]["features"]
        return {
            name: list(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # none, or of another program
        return {}


def _name_classes(
    values: list[Any], names: Sequence[str], column: str, faulty: FaultyRows
) -> list[Any]:
    """Return `values` with class names in place of class numbers; all as they are without `names`.

    The class number -1 means that there is no label, and gives None. A number that has no name is
    a fault.
    """
    if not names:
        return values
    named: list[Any] = []
    for row, value in enumerate(values):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value >= len(names):
            faulty.add(
                row,
                f"row {row + 1}: the class {value} in column {column!r} has no name; "
                f"the file names {len(names)} classes",
            )
        if is_number:
            value = names[value] if 0 <= value < len(names) else None
        named.append(value)
    return named


def _values(column: "pa.ChunkedArray", name: str, faulty: FaultyRows) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_nested(kind):
        raise UserError(f"{faulty.source}: column {name!r} holds lists, not single values")
    if pa.types.is_temporal(kind):  # Python has no dates beyond the year 9999
        return _as_list(column.cast(pa.string()))
    if _is_text(kind):
        return _texts(column, name, faulty)
    return _as_list(column)


def _is_text(kind: "pa.DataType") -> bool:
    """Whether a column of this type holds texts, be they marked as such or not."""
    import pyarrow as pa

    types = pa.types
    views = [getattr(types, name, None) for name in ("is_string_view", "is_binary_view")]
    tests = [types.is_string, types.is_large_string, types.is_binary, types.is_large_binary]
    return any(test(kind) for test in (*tests, types.is_fixed_size_binary, *filter(None, views)))


def _texts(column: "pa.ChunkedArray", name: str, faulty: FaultyRows) -> list[Any]:
    import pyarrow as pa

    try:
        return _as_list(column.cast(pa.large_string()))
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    values = _as_list(column.cast(pa.large_binary()))
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else value.decode()
        except UnicodeDecodeError:
            faulty.add(row, f"row {row + 1}: column {name!r} is not UTF-8 text")
            values[row] = None
    return values


def _as_list(column: "pa.ChunkedArray") -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values
