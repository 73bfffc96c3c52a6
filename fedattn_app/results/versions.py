"""The versions that a run's ``config.toml`` records."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RECORDED_VERSIONS = ("flwr", "torch", "opacus", "transformers", "peft")


def recorded_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages, and the git commit if there is one."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    commit = _git("rev-parse", "HEAD")
    # An installed package may lie inside another project's repository.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return {**versions, "commit": commit} if commit and tracked else versions


def _git(*command: str) -> str:
    """Return what git prints about this file's folder; an empty text if it fails."""
    try:
        ran = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
