"""Pretrained encoders from the Hugging Face hub or a local folder, through `transformers`.

Weights are read from safetensors files only, and code that comes with a model is never run. A
local folder is read without any network access.
"""

from fedattn_app.models.pretrained.classifier import PretrainedClassifier
from fedattn_app.models.pretrained.loading import build_untrained, load_model, load_tokenizer
from fedattn_app.models.pretrained.tokenizer import PretrainedTokenizer

__all__ = [
    "PretrainedClassifier",
    "PretrainedTokenizer",
    "build_untrained",
    "load_model",
    "load_tokenizer",
]
