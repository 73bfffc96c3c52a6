"""A long text is cut before it is tokenised, and has the same tokens as if it were not."""

import random
import time

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from fedattn_app.models.pretrained import PretrainedTokenizer
from fedattn_app.models.published.long_text import shortened
from fedattn_app.models.tokenizer import HashingTokenizer

TEXT = (
    "denies chest pain, no FEVER; short-of-breath since 2024 心電図 étouffé 😀 naïve it's ß \ufb01n"
)
WORDS = TEXT.split()
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|a very long added token|>"]
DIGITS = Regex(r"'s|'t| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=30)) for _ in range(200)]


def trained(model, trainer, normalizer=None, pre_tokenizer=None, ends=True):
    backend = Backend(model)
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(corpus(), trainer(vocab_size=300, special_tokens=SPECIAL))
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    if ends:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return backend


def word_piece():
    return trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )


def byte_level(ends=True):
    return trained(
        models.BPE(),
        trainers.BpeTrainer,
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        ends,
    )


def digit_groups():
    split = pre_tokenizers.Split(DIGITS, "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    sequence = pre_tokenizers.Sequence([split, bytes_only])
    return trained(models.BPE(), trainers.BpeTrainer, normalizers.NFC(), sequence)


def unigram():
    return trained(
        models.Unigram(),
        lambda **settings: trainers.UnigramTrainer(unk_token="<unk>", **settings),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Metaspace(),
    )


def without_words():
    """As Llama: merges go across the spaces."""
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer, normalizers.Sequence(spaces))


KINDS = [word_piece, byte_level, digit_groups, unigram, without_words]


def texts():
    """Texts longer than any first part, each odd in one way."""
    draw = random.Random(1)
    alphabet = [
        *"ab1 ,.\n\t心\u0301\u00e9😀'_",
        "\ud800",
        "\u3000",
        "</s>",
        "<mask>",
        "   ",
        "1234567",
    ]
    size = 1500
    yield from (" ".join(draw.choices(WORDS, k=size // 4)) for _ in range(10))
    yield from ("".join(draw.choices(alphabet, k=size)) for _ in range(40))
    yield from ("".join(draw.choices("心電図。éa", k=size)) for _ in range(10))
    yield from ("".join(draw.choices("0123456789", k=size + k)) for k in range(6))
    yield from (character * (size + 1) for character in "a 心.é1\n\u0301\ud800")
    yield from (" " * size + "pain" + " " * k for k in range(3))
    yield from ("pain" * size, "pain" + " " * size + "<mask>", "a " * size, "<mask>" * size)
    yield "x" * size + " denies chest pain" * 40
    yield "denies chest pain " * 40 + "x" * size
    yield from ("x" * k + SPECIAL[-1] * 60 for k in range(30))
    yield from ("1" * k + " pain 12345" * 100 + "1" * k for k in range(5))


TEXTS = list(texts())


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("max_length", [4, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_the_whole_text(kind, max_length, direction):
    backend = kind()
    backend.enable_truncation(max_length, direction=direction)
    tokenizer = PretrainedTokenizer(backend, 2)
    ids, lengths = tokenizer.encode(TEXTS)
    for text, row, length in zip(TEXTS, ids, lengths, strict=True):
        whole = backend.encode(text.encode("utf-8", "replace").decode())
        assert row[:length].tolist() == whole.ids, text[:40]
        assert tokenizer.tokens(text) == whole.tokens


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("direction", ["right", "left"])
def test_most_long_texts_are_cut(kind, direction):
    backend = kind()
    backend.enable_truncation(32, direction=direction)
    assert len(shortened(" ".join(WORDS * 20_000), backend)) < 2000
    assert shortened("pain", backend) == "pain"


def test_a_text_without_spaces_is_cut_where_each_character_is_a_word():
    backend = word_piece()
    backend.enable_truncation(32)
    assert len(shortened("心電図" * 20_000, backend)) < 2000


@pytest.mark.parametrize("max_length", [1, 4, 33])
def test_the_hashing_tokenizer_has_the_same_tokens(max_length):
    tokenizer, whole = HashingTokenizer(512, max_length), HashingTokenizer(512, 10**6)
    odd = [
        "ΑΣ " * 2000,
        "ΑΣ" * 2000,
        "Σ心" * 2000,
        "e\u0301" * 3000,
        "か\u3099" * 3000,
        "ﬁ " * 2000,
    ]
    for text in [*TEXTS, *odd]:
        assert tokenizer.tokens(text) == whole.tokens(text)[:max_length], text[:40]


@pytest.mark.parametrize("make", [lambda: HashingTokenizer(512, 32), None], ids=["hash", "bert"])
def test_ten_million_characters_take_no_time(make):
    if make is None:
        backend = word_piece()
        backend.enable_truncation(32)
        tokenizer = PretrainedTokenizer(backend, 2)
    else:
        tokenizer = make()
    text = "denies chest pain, " * 500_000
    start = time.perf_counter()
    tokenizer.encode([text])
    tokenizer.tokens(text)
    assert time.perf_counter() - start < 0.5
