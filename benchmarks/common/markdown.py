"""Markdown tables of measurements."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev

from common.results import Row

# A figure of one row; None where the row does not have it.
Figure = Callable[[Row], float | None]

SHOWN_DEVIATION = 0.0005  # smaller standard deviations are left out


def markdown(header: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with the titles in `header`."""
    rule = "|---" * len(header) + "|"
    return "\n".join([_joined(header), rule, *map(_joined, lines)])


def grouped_table(
    rows: Sequence[Row], group_by: Sequence[str], figures: Mapping[str, Figure]
) -> str:
    """Return a Markdown table with one line for each combination of the values of `group_by`.

    Each figure is shown under its title as mean ± standard deviation over the rows of the group,
    and as a dash if one of them does not have it.
    """
    lines = []
    for key in sorted({tuple(row[name] for name in group_by) for row in rows}):
        group = [row for row in rows if tuple(row[name] for name in group_by) == key]
        lines.append(
            [*key, *(_spread([figure(row) for row in group]) for figure in figures.values())]
        )
    return markdown([*group_by, *figures], lines)


def pivot_table(
    rows: Sequence[Row], line_key: str, column_keys: Sequence[str], figure: Figure
) -> str:
    """Return a Markdown table of one figure, as mean ± standard deviation over rows.

    There is a line for each value of `line_key` and a column for each combination of the values of
    `column_keys`, in the order in which they occur in `rows`. A cell without rows is a dash.
    """

    def column_of(row: Row) -> tuple[str, ...]:
        return tuple(row[key] for key in column_keys)

    names = list(dict.fromkeys(row[line_key] for row in rows))
    columns = list(dict.fromkeys(column_of(row) for row in rows))
    lines = []
    for name in names:
        cells = [
            [figure(row) for row in rows if row[line_key] == name and column_of(row) == column]
            for column in columns
        ]
        lines.append([name, *map(_spread, cells)])
    return markdown([line_key, *map(", ".join, columns)], lines)


def _joined(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    deviation = stdev(known) if len(known) > 1 else 0.0
    return f"{mean(known):.3f}" + (f" ± {deviation:.3f}" if deviation >= SHOWN_DEVIATION else "")
