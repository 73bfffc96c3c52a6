"""The folder that the operator of a shared server gives to runs: ``FEDATTN_RUNS``.

Whoever starts a run there chooses its settings, and must not choose where the server writes.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedattn_app.config import Config, as_toml
from fedattn_app.config.output import OutputConfig
from fedattn_app.config.schema import key_named
from fedattn_app.errors import UserError
from fedattn_app.files import user_path

VARIABLE = "FEDATTN_RUNS"


def within_operators_folder(
    config: Config, environment: Mapping[str, str] = os.environ
) -> tuple[Config, str]:
    """Return the settings with their folders as absolute paths, and the folder of new runs.

    `output-dir` and `resume-from` are taken as relative to the operator's folder. Raises
    `UserError` if one of them is not inside, once links are followed, and if one is named at all
    although the operator has given no folder. The text does not say what there is outside.
    """
    given = environment.get(VARIABLE, "")
    root = user_path(VARIABLE, given).resolve() if given else None
    output = {}
    for name in ("output_dir", "resume_from"):
        if value := getattr(config.output, name):
            output[name] = str(_inside(root, key_named(name), value))
    settings = replace(config, output=OutputConfig(**output))
    return settings, str(root) if root else OutputConfig.NEW_RUNS


def _inside(root: Path | None, key: str, value: str) -> Path:
    if root is None:
        raise UserError(
            f"{key} = {as_toml(value)}: this server keeps runs where it chooses; its operator can "
            f"allow it with the environment variable {VARIABLE}, which names a folder for all runs"
        )
    try:
        path = (root / value).resolve()
    except (OSError, ValueError, RuntimeError):  # whatever is wrong with it, it is not inside
        path = root
    if path == root or not path.is_relative_to(root):
        raise UserError(f"{key} = {as_toml(value)}: must be a folder inside {VARIABLE} = {root}")
    return path
