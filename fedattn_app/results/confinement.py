"""Keep the folders that a run names inside the one that a server's operator allows.

Whoever may start runs on a SuperLink names folders of the server's machine. The operator starts the
SuperLink with the environment variable `RUNS_VARIABLE`; runs then write and resume inside that
folder only. A simulation is its user's own, and is not confined.
"""

import os
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from fedattn_app.config import OutputConfig, as_toml
from fedattn_app.errors import UserError

RUNS_VARIABLE = "FEDATTN_RUNS"
DEFAULT_PARENT = "runs"  # in the folder where the process was started


def confine(output: OutputConfig) -> tuple[OutputConfig, str]:
    """Return the folders as absolute paths without links, and where a run gets a folder of its own.

    A relative path starts at the operator's folder, and ~ means nothing. Nothing is created, and
    nothing outside is looked at, so that no answer tells what is there. Raises `UserError` for a
    folder that is not inside, and for any named folder if the operator has set none.
    """
    named = {"output-dir": output.output_dir, "resume-from": output.resume_from}
    allowed = os.environ.get(RUNS_VARIABLE, "")
    if not allowed:
        for key, text in named.items():
            if text:
                raise UserError(
                    f"{key} = {as_toml(text)}: runs on this server may not name a folder; its "
                    f"operator can set the environment variable {RUNS_VARIABLE} of the SuperLink "
                    "to a folder in which they may"
                )
        return output, DEFAULT_PARENT
    if not os.path.isabs(allowed):
        raise UserError(
            f"{RUNS_VARIABLE} = {as_toml(allowed)}: must be an absolute path; the operator of this "
            "server sets it"
        )
    inside = {key: _inside(allowed, key, text) if text else "" for key, text in named.items()}
    confined = replace(output, output_dir=inside["output-dir"], resume_from=inside["resume-from"])
    return confined, os.path.realpath(allowed)


def _inside(allowed: str, key: str, text: str) -> str:
    """Return the path `text` below the folder `allowed`; raises `UserError` if it is not below."""
    root = Path(os.path.realpath(allowed))
    path = root / text  # an absolute path stays as it is
    for start in (root, Path(allowed)):
        if path.is_relative_to(start):
            parts = path.relative_to(start).parts
            # Before links are followed: how they lead back inside would tell what is outside.
            stays = min(accumulate(-1 if part == ".." else 1 for part in parts), default=0) >= 0
            real = _real_path(path) if stays else root
            if root in real.parents:
                return str(real)
    raise UserError(
        f"{key} = {as_toml(text)}: must be inside {RUNS_VARIABLE} = {allowed}, the folder for the "
        "runs of this server"
    )


def _real_path(path: Path) -> Path:
    """Return `path` without links; the root of all folders if no path has such a name."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL character
        return Path(path.anchor)
