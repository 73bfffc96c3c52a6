"""Show the owner what is in a bundle, or what differs between two, in lines safe to print."""

import difflib
import unicodedata
from collections.abc import Iterator

from fedattn_app.bundles.bundle import Bundle, sha256_of

# Hangul fillers, which are letters to Python, and the empty Braille pattern.
BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"


def describe(bundle: Bundle) -> Iterator[str]:
    """Yield one line per file of `bundle`, with its size in bytes and its SHA-256."""
    for path, text in sorted(bundle.files.items()):
        content = text.encode()
        yield f"  {sha256_of(content)}  {len(content):>9,}  {printable(path)}"


def differences(old: Bundle, new: Bundle) -> Iterator[str]:
    """Yield how many lines each file gained and lost from `old` to `new`, then those lines.

    The lines are a unified diff. Nothing is yielded if the files are the same.
    """
    diffs = {
        path: _diff(path, old.files.get(path), new.files.get(path))
        for path in sorted({*old.files, *new.files})
        if old.files.get(path) != new.files.get(path)
    }
    for path, lines in diffs.items():
        added, removed = (sum(line[:1] == sign for line in lines[2:]) for sign in "+-")
        news = "" if path in old.files else "  (new file)"
        gone = "" if path in new.files else "  (removed)"
        yield f"  +{added:<6,} -{removed:<6,} {printable(path)}{news}{gone}"
    for lines in diffs.values():
        yield ""
        yield from map(printable, lines)


def _diff(path: str, old: str | None, new: str | None) -> list[str]:
    """Return the unified diff of a file's two texts, of which None is no file."""
    before = "/dev/null" if old is None else f"a/{path}"
    after = "/dev/null" if new is None else f"b/{path}"
    lines = difflib.unified_diff(_lines(old), _lines(new), before, after, lineterm="")
    # An empty file that comes or goes has no lines, but its name is to be seen.
    return list(lines) or [f"--- {before}", f"+++ {after}"]


def _lines(text: str | None) -> list[str]:
    r"""Return the lines of `text`, split at ``\n`` only: all other breaks stay to be seen."""
    if not text:
        return []
    *lines, last = text.split("\n")
    return [*lines, f"{last} (no line break at the end)"] if last else lines


def printable(text: str) -> str:
    r"""Return `text` with an escape such as ``\x1b`` for all that is not seen as itself.

    These are control and format characters, among them line breaks, terminal codes and those that
    reorder or hide text, unassigned and private ones, spaces other than the usual one, letters that
    are blank or written from right to left, and marks that are drawn over other characters. A
    backslash stays as it is.
    """
    return "".join(
        character if _is_seen(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_seen(character: str) -> bool:
    """Return whether a terminal shows `character` as itself, at its own place."""
    return (
        character.isprintable()
        and character not in BLANK_LETTERS
        and not unicodedata.category(character).startswith("M")
        and unicodedata.bidirectional(character) not in ("R", "AL", "AN")
    )
