"""What a tokenizer is, and the built-in one.

The built-in one is a stateless hash: no vocabulary is learned, so none can leak private text.
"""

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

PADDING = 0
CACHED_WORDS = 2**16

# Ideographs and kana stand alone, since their scripts put no spaces between words.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff"
# Accents, points and vowel signs belong to their word, though Python's \w leaves them out.
_SIGNS = (
    r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u0670\u06d6-\u06ed"
    r"\u0900-\u0963\u0966-\u109f"
)
_TOKEN = re.compile(rf"[{_ALONE}]|(?:[^\W_{_ALONE}]|[{_SIGNS}])+|[^\w\s]|_")


class Tokenizer(ABC):
    """Text in, token ids out; `padding` is the id that fills up short texts."""

    padding: int = PADDING

    @abstractmethod
    def tokens(self, text: str) -> list[str]:
        """Cut `text` into at least one token and at most as many as are kept."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts.

        Returns ``ids``, int32 of shape (N, T) padded to the longest text, and ``lengths``, int32
        of shape (N,), each at least 1.
        """


def pad(
    rows: Sequence[Sequence[int]], padding: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return token ids (N, T) filled up with `padding`, and how many there are in each row (N,)."""
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    ids = np.full((len(rows), max(map(len, rows), default=1)), padding, dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths


class HashingTokenizer(Tokenizer):
    """Maps text to token ids by hashing its words (Weinberger et al., 2009, arXiv 0902.2206).

    Text is NFKC-normalised and lower-cased, then cut into words and single punctuation marks.
    A token's id is BLAKE2b-64 of its UTF-8 bytes modulo ``buckets - 1``, plus 1: the same on
    every machine and in every Python (but for letters that only a newer Unicode knows). Id 0 is
    padding. A text without any token is one `EMPTY` token, so that every example has something to
    attend to.

    `buckets` (at least 2) is how many ids there are, `max_length` (at least 1) how many tokens of a
    text are kept.
    """

    EMPTY = "\x00"

    def __init__(self, buckets: int, max_length: int) -> None:
        self.buckets = buckets
        self.max_length = max_length
        self._id = lru_cache(maxsize=CACHED_WORDS)(self._hash)

    def tokens(self, text: str) -> list[str]:
        """Cut `text` into at most `max_length` tokens."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        return _TOKEN.findall(text.lower())[: self.max_length] or [self.EMPTY]

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with 0."""
        rows = [[self._id(token) for token in self.tokens(text)] for text in texts]
        return pad(rows, self.padding)

    def _hash(self, token: str) -> int:
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % (self.buckets - 1) + 1
