"""Where a pretrained model comes from, and errors of one line about it."""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedattn_app.config import MODEL_SIZES, as_toml
from fedattn_app.errors import UserError
from fedattn_app.files import damage_of, folder_of
from fedattn_app.optional_dependency import needing_extra

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# transformers would load adapters into the model, under other parameter names.
ADAPTERS_MESSAGE = "its folder holds adapters; merge them into the weights first"

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def architecture_of(model: str) -> "PreTrainedConfig":
    """Return the configuration of `model`; `loading` turns what it raises into a `UserError`."""
    from transformers import AutoConfig

    architecture: PreTrainedConfig = AutoConfig.from_pretrained(**source_of(model))
    return architecture


def source_of(model: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that name the source and forbid model code.

    Raises `ValueError` for a folder with a damaged file.
    """
    folder = folder_of(model)
    if folder is None:
        if model.startswith((".", "~", "/")):
            raise ValueError("the folder does not exist")
        if near := difflib.get_close_matches(model.lower(), MODEL_SIZES, n=1, cutoff=0.75):
            raise ValueError(f"did you mean {near[0]}?")
        return {"pretrained_model_name_or_path": model, "trust_remote_code": False}
    if (folder / "adapter_config.json").exists():
        raise ValueError(ADAPTERS_MESSAGE)
    _check_files(folder)
    return {
        "pretrained_model_name_or_path": str(folder),
        "local_files_only": True,
        "trust_remote_code": False,
    }


def subject_of(model: str) -> str:
    """Return the start of an error text about the key `model`."""
    not_a_folder = "" if folder_of(model) else " and not a folder"
    return f"model = {as_toml(model)}: not one of {', '.join(MODEL_SIZES)}{not_a_folder}"


@contextmanager
def loading(subject: str) -> Iterator[None]:
    """Load without log lines, and turn every failure into one line that starts with `subject`."""
    with needing_extra(f"{subject}; a pretrained model"):
        from transformers.utils import logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.setLevel(ERROR)  # it logs every retry
    try:
        yield
    except Exception as error:  # transformers, the hub and safetensors raise many types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{subject}, and cannot be loaded as pretrained ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()


def _check_files(folder: Path) -> None:
    """Raise `ValueError` if a file of the model in `folder` is visibly not what its name says."""
    names = ["config.json", *TOKENIZER_FILES, *_weight_files(folder)]
    for name in names:
        if damage := damage_of(folder / name):
            raise ValueError(f"{name}: {damage}")
    if not (folder / "config.json").exists():
        return  # transformers says so
    labels = _json_object(folder / "config.json").get("id2label") or {}
    if not isinstance(labels, dict) or not all(key.isdecimal() for key in labels):
        raise ValueError("config.json: id2label does not map the numbers 0, 1, … to names")


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files that the weights are read from."""
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return [WEIGHTS]
    if damage := damage_of(index):
        raise ValueError(f"{WEIGHTS_INDEX}: {damage}")
    parts = _json_object(index).get("weight_map")
    if not isinstance(parts, dict):
        raise ValueError(f"{WEIGHTS_INDEX} has no weight_map")
    files = sorted(map(str, parts.values()))
    if missing := next((name for name in files if not (folder / name).exists()), None):
        raise ValueError(f"{missing}, which {WEIGHTS_INDEX} names, is missing")
    return list(dict.fromkeys(files))


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also of the decoding
        raise ValueError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content
