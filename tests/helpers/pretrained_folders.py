"""Tiny random pretrained models with tokenizers, in folders with the layout of the hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fedattn_app.models.families import BUILT_IN, FAMILIES

FAMILIES_TESTED = sorted(set(FAMILIES) - {BUILT_IN})
UNKNOWN_FAMILIES = ["albert", "modernbert", "mpnet"]
# Families whose last layer has a name of its own, or that find the last token of a text.
OTHER_SHAPES = ["bart", "deberta", "gpt2", "t5", "xlm", "xlnet"]
HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 2, 40
LABELS = ("one", "two", "three")
TEXTS = [
    "denies chest pain",
    "Chest pain, NO fever; short of breath since yesterday.",
    "hx of asthma, now ankle swelling and a rash on both hands " * 8,
]

_SHAPE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,  # with the default, 0.02, the logits hardly depend on the text
}
_FAMILY_SHAPES = {
    "distilbert": {
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": 64,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.2,
    },
    "electra": {**_SHAPE, "embedding_size": 16},
    "albert": {**_SHAPE, "embedding_size": 16},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": 0.2},
    "xlnet": {
        "d_model": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "d_inner": 64,
        "initializer_range": 0.2,
    },
    "xlm": {
        "emb_dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "embed_init_std": 0.2,
        "init_std": 0.2,
    },
    "bart": {
        "d_model": HIDDEN,
        **{f"{part}_layers": LAYERS for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": HEADS for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "init_std": 0.2,
    },
    "t5": {
        "d_model": HIDDEN,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "decoder_start_token_id": 0,
    },
    "deberta-v2": {
        **_SHAPE,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}


def make_folder(
    family: str,
    path: Path,
    auto_class: type = AutoModel,
    labels: Sequence[str] = (),
    **changes: object,
) -> Path:
    """Write a model of `family` and its tokenizer to the folder `path`; same arguments, same bits.

    `auto_class` determines the head in the weights, by default none, and `labels` the names of its
    outputs. `changes` override keys of the
    configuration.
    """
    tokenizer = make_tokenizer(family)
    settings = {
        **_FAMILY_SHAPES.get(family, _SHAPE),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        **({"id2label": dict(enumerate(labels))} if labels else {}),
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class.from_config(AutoConfig.for_model(family, **settings))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tokenizer(family: str, ends: bool = True) -> PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer for the words in `TEXTS` with the special tokens of `family`.

    With `ends`, it adds a start token and an end token to each text.
    """
    if family in ("roberta", "xlm-roberta", "mpnet"):
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        start, pad, end, unknown, mask = special
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pad, unknown, start, end, mask = special
    letters = sorted({*"".join(TEXTS).lower()} - {" "})
    words = sorted({*re.findall(r"\w{2,}", " ".join(TEXTS).lower())})
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    ids = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(WordPiece(ids, unk_token=unknown))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    if ends:
        backend.post_processor = TemplateProcessing(
            single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
    )


def change_json(folder: Path, file: str = "config.json", **changes: object) -> None:
    """Set the given keys in a JSON file of the folder."""
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **changes}))
