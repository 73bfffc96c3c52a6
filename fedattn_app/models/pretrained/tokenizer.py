"""The tokenizer that belongs to a pretrained model."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from fedattn_app.label_text import without_surrogates
from fedattn_app.models.tokenizer import CHARACTERS_PER_TOKEN, GROWTH, Tokenizer, pad

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

# How many characters beside a word may decide where the word ends: those of an added token.
CONTEXT = 256

_WORD_START = re.compile(r"(?<=\s)\S")


class PretrainedTokenizer(Tokenizer):
    """The tokenizer that belongs to a pretrained model.

    `backend` truncates the texts. `padding` is the id of the padding token.
    """

    def __init__(self, backend: "Backend", padding: int) -> None:
        backend.no_padding()
        self.backend = backend
        self.padding = padding
        truncation = backend.truncation
        assert truncation is not None
        self._first_size = CONTEXT + CHARACTERS_PER_TOKEN * truncation["max_length"]
        self._keeps_end = truncation["direction"] == "left"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make the tokenizer that `to_json` wrote."""
        from tokenizers import Tokenizer as Backend

        saved = json.loads(text)
        return cls(Backend.from_str(saved["tokenizer"]), saved["padding"])

    def to_json(self) -> str:
        """Return the whole tokenizer, vocabulary included, as JSON."""
        return json.dumps({"tokenizer": self.backend.to_str(), "padding": self.padding})

    def tokens(self, text: str) -> list[str]:
        """Split `text` into tokens, special ones included."""
        tokens: list[str] = self.backend.encode(self._shortened(text)).tokens
        return tokens

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with the model's padding token."""
        encoded = self.backend.encode_batch([self._shortened(text) for text in texts])
        return pad([row.ids or [self.padding] for row in encoded], self.padding)

    def _shortened(self, text: str) -> str:
        """Return the part of `text` that decides its tokens, or all of it if it is short.

        The backend tokenises a text as a whole before it truncates it, which takes a minute for ten
        million characters.
        """
        size = self._first_size
        while len(text) > size:
            part = without_surrogates(text[-size:] if self._keeps_end else text[:size])
            if self._decides(part):
                return part
            size *= GROWTH
        return without_surrogates(text)

    def _decides(self, part: str) -> bool:
        """Return whether the whole text has the same tokens as `part`, after truncation.

        That is so if the part has more words than are kept, and the last one that is kept ends far
        enough from the cut. (Words are what the tokenizer splits a text into first. Each has tokens
        that do not depend on the others.)
        """
        encoding = self.backend.encode(part)
        words = [word for word in encoding.word_ids if word is not None]
        if not encoding.overflowing or not words:
            return False
        if self._keeps_end:
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
