"""Cut a long text before it is tokenised, without a change of its tokens.

A fast tokenizer of `tokenizers` tokenises a text as a whole before it truncates it, which takes a
minute for ten million characters.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# How many characters beside a word may decide where the word ends: those of an added token.
CONTEXT = 256
# The part of a long text that is tokenised first, per token of the maximum, in characters.
CHARACTERS_PER_TOKEN = 16
# If the part is too short, the next one is this many times as long.
GROWTH = 8

_WORD_START = re.compile(r"(?<=\s)\S")


def shortened(text: str, backend: "Tokenizer") -> str:
    """Return the part of `text` that decides its tokens, or all of it if it is short.

    `backend` must truncate, at either side. A text without a place to cut it is returned whole.
    """
    truncation = backend.truncation
    assert truncation is not None
    keeps_end = truncation["direction"] == "left"
    size = CONTEXT + CHARACTERS_PER_TOKEN * truncation["max_length"]
    while len(text) > size:
        part = text[-size:] if keeps_end else text[:size]
        if _decides(part, backend.encode(part), keeps_end):
            return part
        size *= GROWTH
    return text


def _decides(part: str, encoding: "Encoding", keeps_end: bool) -> bool:
    """Return whether the whole text has the tokens that `part` has after truncation.

    `encoding` is that of `part`, and `keeps_end` says that truncation keeps the last tokens.

    That is so if the part has more words than are kept, and the last one that is kept ends far
    enough from the cut. (Words are what the tokenizer splits a text into first. Each has tokens
    that do not depend on the others.)
    """
    words = [word for word in encoding.word_ids if word is not None]
    if not encoding.overflowing or not words:
        return False
    if keeps_end:
        start, _ = _span(encoding, words[0])
        synchronised = _WORD_START.search(part, CONTEXT)
        return synchronised is not None and start >= synchronised.start()
    _, end = _span(encoding, words[-1])
    limit = len(part) - CONTEXT
    # What follows a run of white space or of digits may decide how the run is split.
    while limit > 0 and (part[limit - 1].isspace() or part[limit - 1].isnumeric()):
        limit -= 1
    return end <= limit


def _span(encoding: "Encoding", word: int) -> tuple[int, int]:
    """Return where the word with this number starts and ends in the text, in characters."""
    spans = [
        span
        for part in (encoding, *encoding.overflowing)
        for number, span in zip(part.word_ids, part.offsets, strict=True)
        if number == word
    ]
    return min(start for start, _ in spans), max(end for _, end in spans)
