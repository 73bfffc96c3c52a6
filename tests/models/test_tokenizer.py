"""The tokens and ids of the built-in tokenizer, the same on every machine."""

import hashlib

import numpy as np
import pytest

from fedattn_app.models.tokenizer import HashingTokenizer

BUCKETS = 8192

# Derived by hand from the rule: NFKC, lower case, words, single punctuation marks.
TOKENS = {
    "Chest pain, NO fever.": ["chest", "pain", ",", "no", "fever", "."],
    "2.5mg q8h (p.r.n.)": ["2", ".", "5mg", "q8h", "(", "p", ".", "r", ".", "n", ".", ")"],
    "don't  re-test\tbp\n": ["don", "'", "t", "re", "-", "test", "bp"],
    "snake_case": ["snake", "_", "case"],
    "Straße, Ödem": ["straße", ",", "ödem"],
    "ＦＵＬＬ　ｗｉｄｔｈ ①": ["full", "width", "1"],
    "ﬁbrosis x²": ["fibrosis", "x2"],
    "cafe\u0301": ["café"],
    "Боль в ГРУДИ!": ["боль", "в", "груди", "!"],
    "ΠΌΝΟΣ στήθος": ["πόνος", "στήθος"],
    "ألم في الصدر؟": ["ألم", "في", "الصدر", "؟"],
    "가슴 통증": ["가슴", "통증"],
    "胸痛です。": ["胸", "痛", "で", "す", "。"],
    "ｶﾞﾝ": ["ガ", "ン"],
    "心電図ECG正常": ["心", "電", "図", "ecg", "正", "常"],
    "😀😀 ok": ["😀", "😀", "ok"],
}
WITHOUT_TOKENS = ["", " ", "\n\t", "\u3000"]
UNUSUAL = [
    "\x00",
    "a\x00b",
    "\ud800",
    "x\udfffy \ud83d",
    "\u200b",
    "\ufeff",
    "\u0301",
    "\U0010ffff",
]


def hashed(token, buckets=BUCKETS):
    digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (buckets - 1) + 1


@pytest.mark.parametrize("text", TOKENS)
def test_text_is_split_into_words_and_single_marks(text):
    assert HashingTokenizer(BUCKETS, 64).tokens(text) == TOKENS[text]


@pytest.mark.parametrize("text", ["सीने में दर्द", "நெஞ்சு வலி", "אֵין חֹם"])
def test_vowel_signs_belong_to_their_word(text):
    assert HashingTokenizer(BUCKETS, 64).tokens(text) == text.split()


def test_ids_are_hashes_padded_with_zeros_to_the_longest_text():
    ids, lengths = HashingTokenizer(BUCKETS, 64).encode(list(TOKENS))
    assert ids.dtype == lengths.dtype == np.int32
    longest = max(map(len, TOKENS.values()))
    assert lengths.tolist() == [len(tokens) for tokens in TOKENS.values()]
    assert ids.tolist() == [
        [hashed(token) for token in tokens] + [0] * (longest - len(tokens))
        for tokens in TOKENS.values()
    ]


@pytest.mark.parametrize("buckets", [8, 9, 2**24])
def test_ids_are_at_least_one_and_below_the_number_of_buckets(buckets):
    words = [f"word{number}" for number in range(300)]
    ids, _ = HashingTokenizer(buckets, len(words)).encode([" ".join(words)])
    assert ids[0].tolist() == [hashed(word, buckets) for word in words]
    assert ids.min() >= 1
    assert ids.max() < buckets


def test_every_bucket_is_used():
    ids, _ = HashingTokenizer(8, 300).encode([" ".join(f"word{n}" for n in range(300))])
    assert set(ids[0].tolist()) == set(range(1, 8))


@pytest.mark.parametrize("text", WITHOUT_TOKENS)
def test_a_text_without_tokens_becomes_one_token(text):
    ids, lengths = HashingTokenizer(BUCKETS, 64).encode([text, "two words"])
    assert lengths.tolist() == [1, 2]
    assert ids[0].tolist() == [hashed(HashingTokenizer.EMPTY), 0]


@pytest.mark.parametrize("text", UNUSUAL)
def test_unusual_characters_are_hashed_like_others(text):
    tokenizer = HashingTokenizer(BUCKETS, 64)
    ids, lengths = tokenizer.encode([text])
    assert ids[0].tolist() == [hashed(token) for token in tokenizer.tokens(text)]
    assert lengths[0] == ids.shape[1] >= 1


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_a_long_text_keeps_its_first_tokens(kept):
    ids, lengths = HashingTokenizer(BUCKETS, kept).encode(["a b c d e f", "a b"])
    words = ["a", "b", "c", "d", "e"][:kept]
    assert ids[0].tolist() == [hashed(word) for word in words]
    assert lengths.tolist() == [kept, min(kept, 2)]


def test_no_texts_give_no_rows():
    ids, lengths = HashingTokenizer(BUCKETS, 64).encode([])
    assert (len(ids), len(lengths)) == (0, 0)


def test_tokenizers_that_encode_differently_have_different_fingerprints():
    tokenizers = [HashingTokenizer(8192, 64), HashingTokenizer(8192, 32), HashingTokenizer(512, 64)]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 3
    assert HashingTokenizer(8192, 64).fingerprint == tokenizers[0].fingerprint
