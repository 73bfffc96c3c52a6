"""The interface of tokenizers, and the built-in tokenizer.

The built-in tokenizer is a stateless hash. It learns no vocabulary, so it cannot leak private text.
"""

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from fedattn_app.models.batch import TextBatch
from fedattn_app.models.published.long_text import CHARACTERS_PER_TOKEN, GROWTH

PADDING_ID = 0
MAX_CACHED_WORDS = 2**16


# Each ideograph and kana is a token: their scripts put no spaces between words.
_SINGLE_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff"
# Accents, points and vowel signs belong to their word, although Python's \w excludes them.
_COMBINING_MARKS = (
    r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u0670\u06d6-\u06ed"
    r"\u0900-\u0963\u0966-\u109f"
)
_TOKEN = re.compile(
    rf"[{_SINGLE_CHARACTERS}]|(?:[^\W_{_SINGLE_CHARACTERS}]|[{_COMBINING_MARKS}])+|[^\w\s]|_"
)
# A text may be cut before any of these: neither the tokens nor the normal form of what comes before
# depend on what follows.
_CUT = re.compile(r"[\s\u3400-\u9fff]")


# Tokenizers that split, normalise or cut these texts in the same way count as the same.
_LONG_TEXT = "long " * 8192
_PROBE_TEXTS = (
    "",
    "The MRI was\tNORMAL; don't re-test (2.5mg)!",
    "ÄÖÜ ß cafe\u0301 心電図 😀",
    _LONG_TEXT,
)


class Tokenizer(ABC):
    """Turns texts into token ids. `padding` is the id that fills up short texts."""

    padding: int = PADDING_ID

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 (hex) that differs for tokenizers that encode texts differently.

        It covers the vocabulary and the ids of a few texts, one of them longer than any
        `max-length`, and does not depend on the version of a library.
        """
        ids, lengths = self.encode(_PROBE_TEXTS)
        probe = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        known = json.dumps([sorted(self.vocabulary.items()), probe, self.padding])
        return hashlib.sha256(known.encode()).hexdigest()

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token; empty for a tokenizer that computes ids from the tokens."""
        return {}

    @abstractmethod
    def tokens(self, text: str) -> list[str]:
        """Return the tokens of `text` that `encode` keeps, at least one."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode N texts.

        Returns ``ids``, int32 (N, T), padded to the longest text, and ``lengths``, int32 (N,), each
        at least 1.
        """

    def batch(self, texts: Sequence[str]) -> TextBatch:
        """Encode N texts as the inputs of a model."""
        ids, lengths = self.encode(texts)
        return TextBatch.of(torch.from_numpy(ids), torch.from_numpy(lengths), self.padding)


def pad(
    rows: Sequence[Sequence[int]], padding: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the `rows` of token ids as one int32 array (N, T), and their lengths, int32 (N,).

    `padding` fills up the rows that are shorter than the longest.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    ids = np.full((len(rows), max(map(len, rows), default=1)), padding, dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths


class HashingTokenizer(Tokenizer):
    """Maps text to token ids by hashing its words (Weinberger et al., 2009, arXiv 0902.2206).

    Text is NFKC-normalised, lower-cased, and split into words and single punctuation marks. The id
    of a token is BLAKE2b-64 of its UTF-8 bytes modulo ``buckets - 1``, plus 1. It is the same on
    every machine and in every Python version, except for letters that only a newer Unicode version
    defines. Id 0 is padding. A text without tokens becomes one `EMPTY` token, so that every example
    has a token to attend to.

    Args:
        buckets: The number of ids, at least 2.
        max_length: The maximum number of tokens of a text, at least 1. The rest is cut off.
    """

    EMPTY = "\x00"

    def __init__(self, buckets: int, max_length: int) -> None:
        self.buckets = buckets
        self.max_length = max_length
        self._id = lru_cache(maxsize=MAX_CACHED_WORDS)(self._hash)

    def tokens(self, text: str) -> list[str]:
        """Split `text` into tokens, at most `max_length`."""
        size = CHARACTERS_PER_TOKEN * self.max_length
        while cut := _CUT.search(text, size):
            tokens = self._all_tokens(text[: cut.start()])
            if len(tokens) >= self.max_length:
                return tokens[: self.max_length]
            size = GROWTH * cut.start()
        return self._all_tokens(text)[: self.max_length] or [self.EMPTY]

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Encode texts, padded with id 0."""
        rows = [[self._id(token) for token in self.tokens(text)] for text in texts]
        return pad(rows, self.padding)

    def _all_tokens(self, text: str) -> list[str]:
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        return _TOKEN.findall(text.lower())

    def _hash(self, token: str) -> int:
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % (self.buckets - 1) + 1
