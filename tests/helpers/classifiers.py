"""Build classifiers and tokenizers as the app does, and compare them."""

import torch

from fedattn_app.config import Config
from fedattn_app.models.factory import build_classifier, build_tokenizer
from fedattn_app.models.parameters import get_arrays, view_arrays
from fedattn_app.models.scopes import scope_of
from helpers.pretrained_folders import LABELS, TEXTS

ADAPTER_SCOPES = {"lora": "AB", "lora-a": "A", "lora-b": "B"}  # which matrices travel


def config_of(model, **settings):
    """The config of a run with texts of up to 32 tokens; `settings` are other run-config keys."""
    keys = {name.replace("_", "-"): value for name, value in settings.items()}
    return Config.from_run_config({"model": str(model), "max-length": 32, **keys})


def classifier(model, labels=LABELS, **settings):
    return build_classifier(config_of(model, **settings), labels).eval()


def tokenizer_of(model, **settings):
    return build_tokenizer(config_of(model, **settings).model)


def encoded(model, texts=TEXTS, **settings):
    """The `texts` as a batch, by the tokenizer of `model`."""
    return tokenizer_of(model, **settings).batch(texts)


def scores(model, name, texts=TEXTS):
    """The logits of a classifier for `texts`, by the tokenizer of the model called `name`."""
    with torch.no_grad():
        return model(encoded(name, texts))


def bits(model):
    return {name: array.tobytes() for name, array in get_arrays(model).items()}


def differing(some, others):
    """The names whose bits differ."""
    assert some.keys() == others.keys()
    return {name for name in some if some[name] != others[name]}


def selected(model, shared, local="frozen"):
    return scope_of(shared, local, model.family, view_arrays(model))


def head_names(model):
    """The parameters outside the encoder, and BERT's pooler."""
    prefix = encoder_prefix(model)
    return {
        name
        for name in view_arrays(model)
        if not name.startswith(f"{prefix}.") or name.startswith("bert.pooler.")
    }


def encoder_prefix(model):
    """The name that `transformers` gives the encoder inside a classifier."""
    return {"xlm-roberta": "roberta", "deberta-v2": "deberta"}.get(model.family, model.family)
