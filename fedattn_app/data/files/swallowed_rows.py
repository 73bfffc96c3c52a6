"""Tell a text of several lines from rows that two stray quotes have made one cell.

A stray quote opens a cell, and a second one that happens to stand before a comma closes it. For a
correct reader all rows between them are one record. The decision rests on the lines of this record
alone, and on labels that the caller knows already:

- A line *looks like a row* if it has the header's number of cells (empty ones at the end do not
  count), and if its label cell is short and not blank. A label that is not known must not follow a
  comma and a space, and no other cell of its line may, as in "well, no".
- The line with the record's own label must look like a row. So must all other lines, of which the
  first may lack its label, or at least three lines that are half of all lines.
- The labels of these lines are all known, or one of them occurs twice.

So a text whose lines each have one comma without a space can be taken for rows. It is refused, with
the remedy in the error, rather than that rows are lost in silence.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from re import compile as pattern

from fedattn_app.label_text import normalise_label

LINE_END = pattern(r"\r\n|\r|\n")
MAX_LABEL_LENGTH = 30  # characters of a label that nobody declared
MIN_ROWS = 3  # that look like rows, where other lines do not


@dataclass(frozen=True)
class Layout:
    """The cells of a row of the file.

    Args:
        delimiter: The character between two cells.
        min_cells: The smallest number of cells of a row: the columns with a name.
        num_cells: The number of cells of the header.
        label_position: The position of the label's cell, from 0.
    """

    delimiter: str
    min_cells: int
    num_cells: int
    label_position: int


def comparable(label: str) -> str:
    """Return the spelling in which labels of lines are compared."""
    return normalise_label(label).casefold()


def num_rows_inside(cells: Sequence[str], layout: Layout, known: Collection[str]) -> int:
    """Return how many lines of a record look like rows; 0 if it seems to be one row.

    Args:
        cells: The cells of the record.
        layout: The cells of a row.
        known: Labels that a row may have, as `comparable` spells them.
    """
    text = layout.delimiter.join(cells)
    lines = [line.split(layout.delimiter) for line in LINE_END.split(text) if line.strip()]
    label = cells[layout.label_position]
    is_spaced = label[:1].isspace()
    is_row = [_is_row(line, layout, known, is_spaced) for line in lines]
    own = 0 if not LINE_END.search("".join(cells[: layout.label_position])) else -1
    labels = [
        comparable(line[layout.label_position])
        for line, is_one in zip(lines, is_row, strict=True)
        if is_one
    ]
    if len(labels) < 2 or not is_row[own]:
        return 0
    are_all = all(is_row[1:]) and (is_row[0] or _lacks_label(lines[0], layout))
    if not are_all and not (len(labels) >= MIN_ROWS and 2 * len(labels) >= len(lines)):
        return 0
    is_repeated = len(set(labels)) < len(labels)
    return len(labels) if is_repeated or all(label in known for label in labels) else 0


def _is_row(cells: Sequence[str], layout: Layout, known: Collection[str], is_spaced: bool) -> bool:
    if not _has_width(cells, layout):
        return False
    label = cells[layout.label_position]
    is_known = comparable(label) in known
    if label[:1].isspace() and not is_spaced and layout.label_position:
        return False
    others = [cell for at, cell in enumerate(cells) if at and at != layout.label_position]
    has_prose = any(cell[:1].isspace() for cell in others) or len(label) > MAX_LABEL_LENGTH
    return bool(label.strip()) and (is_known or not has_prose)


def _lacks_label(cells: Sequence[str], layout: Layout) -> bool:
    return _has_width(cells, layout) and not cells[layout.label_position].strip()


def _has_width(cells: Sequence[str], layout: Layout) -> bool:
    return len(cells) >= layout.min_cells and not "".join(cells[layout.num_cells :]).strip()
