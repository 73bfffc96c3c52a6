"""Make the classifier and the tokenizer that a run's settings ask for."""

import json
from collections.abc import Mapping
from functools import lru_cache

from fedattn_app.config import Config, ModelConfig
from fedattn_app.files import folder_of
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.fast_linear import speed_up
from fedattn_app.models.tokenizer import HashingTokenizer, Tokenizer
from fedattn_app.models.transformer import build_model


def build_classifier(config: Config, num_labels: int) -> Classifier:
    """Build the classifier with the same parameters wherever settings and weights are the same.

    Raises `UserError` for one that cannot be loaded.
    """
    seed = config.federation.seed
    model: Classifier
    if config.model.pretrained:
        from fedattn_app.models import pretrained

        model = pretrained.load_model(config.model, num_labels, seed)
    else:
        model = build_model(config.model, num_labels, seed)
    return _finished(model, config)


def build_tokenizer(config: ModelConfig) -> Tokenizer:
    """Return the tokenizer, the same object until its files change.

    Raises `UserError` for one that cannot be loaded.
    """
    return _tokenizer(config, files_of(config))


def files_of(config: ModelConfig) -> frozenset[tuple[str, int, int]]:
    """Return name, size and time of each file of a model in a folder: part of a cache's key."""
    folder = folder_of(config.model) if config.pretrained else None
    if folder is None:
        return frozenset()
    stats = ((path.name, path.stat()) for path in folder.iterdir())
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=2)
def _tokenizer(config: ModelConfig, files: frozenset[tuple[str, int, int]]) -> Tokenizer:
    if config.pretrained:
        from fedattn_app.models import pretrained

        return pretrained.load_tokenizer(config)
    return HashingTokenizer(config.vocabulary, config.max_length)


def describe(config: Config, model: Classifier) -> dict[str, str]:
    """Return what, beside the settings, `rebuild` needs to make such a model anywhere."""
    from fedattn_app.models import pretrained

    if not isinstance(model, pretrained.PretrainedClassifier):
        return {}
    tokenizer = build_tokenizer(config.model)
    assert isinstance(tokenizer, pretrained.PretrainedTokenizer)
    return {"architecture": json.dumps(model.architecture), "tokenizer": tokenizer.to_json()}


def rebuild(
    config: Config, num_labels: int, about: Mapping[str, str]
) -> tuple[Classifier, Tokenizer]:
    """Make a classifier whose parameters are yet to be set, and its tokenizer.

    A pretrained one is made from what `describe` said `about` it, without its folder or the hub.
    """
    if "architecture" not in about:
        return build_classifier(config, num_labels), build_tokenizer(config.model)
    from fedattn_app.models import pretrained

    model = pretrained.untrained(json.loads(about["architecture"]))
    tokenizer = pretrained.PretrainedTokenizer.from_json(about["tokenizer"])
    return _finished(model, config), tokenizer


def _finished(model: Classifier, config: Config) -> Classifier:
    """Add the adapters that the run trains, and use the faster products."""
    if config.federation.uses_lora:
        from fedattn_app.models.lora import add_adapters

        add_adapters(model, config.lora, config.federation.seed, config.federation.shared)
    speed_up(model)
    return model
