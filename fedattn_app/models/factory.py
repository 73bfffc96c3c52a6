"""Build the classifier and the tokenizer that the settings of a run name."""

import json
from collections.abc import Mapping, Sequence

import torch

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import Config, ModelConfig
from fedattn_app.config.model import TRANSFORMER_BUILDER
from fedattn_app.files import folder_of
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.fast_linear import speed_up
from fedattn_app.models.tokenizer import HashingTokenizer, Tokenizer


def build_classifier(config: Config, labels: Sequence[str]) -> Classifier:
    """Build the classifier: the same settings and weights give the same parameters everywhere.

    Its outputs are in the order of `labels`. Raises `UserError` for a model that cannot be loaded.
    """
    seed = config.federation.seed
    model: Classifier
    if config.model.pretrained:
        from fedattn_app.models import pretrained

        model = pretrained.load_model(config.model, labels, seed)
    else:
        model = config.model.size.builder.load()(config.model, len(labels), seed)
    return _prepare(model, config)


def num_parameters(config: ModelConfig, num_labels: int) -> int:
    """Return the number of parameters of a built-in model, without making their arrays.

    A size with a builder of its own is built, because only that code knows.
    """
    builder = config.size.builder
    if builder != TRANSFORMER_BUILDER:
        model: Classifier = builder.load()(config, num_labels, 0)
    else:
        from fedattn_app.models.transformer import TransformerClassifier

        with torch.device("meta"):
            model = TransformerClassifier(config, num_labels)
    return sum(parameter.numel() for parameter in model.parameters())


def build_tokenizer(config: ModelConfig) -> Tokenizer:
    """Return the tokenizer: the same object for the same settings until its files change.

    Raises `UserError` for a tokenizer that cannot be loaded.
    """
    return _tokenizer(config, files_of(config))


def files_of(config: ModelConfig) -> frozenset[tuple[str, int, int]]:
    """Return name, size and modification time (ns) of each file of a model in a local folder.

    They are part of a cache's key. Empty for a model that is not in a local folder.
    """
    folder = folder_of(config.model) if config.pretrained else None
    if folder is None:
        return frozenset()
    stats = ((path.name, path.stat()) for path in folder.iterdir())
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@PROCESS_CACHE.keep(max_entries=2)
def _tokenizer(config: ModelConfig, files: frozenset[tuple[str, int, int]]) -> Tokenizer:
    if config.pretrained:
        from fedattn_app.models import pretrained

        return pretrained.load_tokenizer(config)
    return HashingTokenizer(config.vocabulary, config.max_length)


def describe(config: Config, model: Classifier) -> dict[str, str]:
    """Return what `rebuild` needs in addition to the settings, as text by name.

    Empty for the built-in model, which the settings describe completely.
    """
    from fedattn_app.models.pretrained import PretrainedTokenizer
    from fedattn_app.models.pretrained_classifier import PretrainedClassifier

    if not isinstance(model, PretrainedClassifier):
        return {}
    tokenizer = build_tokenizer(config.model)
    assert isinstance(tokenizer, PretrainedTokenizer)
    return {"architecture": json.dumps(model.architecture), "tokenizer": tokenizer.to_json()}


def rebuild(
    config: Config, labels: Sequence[str], description: Mapping[str, str]
) -> tuple[Classifier, Tokenizer]:
    """Build a classifier whose parameters are still to be set, and its tokenizer.

    A pretrained model is built from the `description` that `describe` returned, without its folder
    or the hub.
    """
    if "architecture" not in description:
        return build_classifier(config, labels), build_tokenizer(config.model)
    from fedattn_app.models import pretrained

    model = pretrained.build_untrained(json.loads(description["architecture"]))
    tokenizer = pretrained.PretrainedTokenizer.from_json(description["tokenizer"])
    return _prepare(model, config), tokenizer


def _prepare(model: Classifier, config: Config) -> Classifier:
    """Add the adapters that the run trains, and switch to the fastest linear layers."""
    if config.federation.uses_lora:
        from fedattn_app.models.lora import add_adapters

        add_adapters(model, config.lora, config.federation.seed, config.federation.shared)
    speed_up(model)
    return model
