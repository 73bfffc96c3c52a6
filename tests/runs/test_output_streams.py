"""Whole runs from a shell whose output cannot be written, or cannot encode ε."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedattn_app.results.run_result import RunResult

SCRIPT = Path(__file__).parents[2] / "run_simulation.py"
PRIVATE = 'num-rounds=1 privacy="dp-sgd" noise-multiplier=0.5'

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell redirects")


@pytest.mark.parametrize(
    ("redirection", "encoding"),
    [
        ("> output", "ascii"),
        ("| head -1", "cp1252"),
        pytest.param(">&- 2>&- <&-", "utf-8", marks=pytest.mark.slow),
        pytest.param("> /dev/full 2> /dev/full", "utf-8", marks=pytest.mark.slow),
    ],
)
def test_a_private_run_succeeds_whatever_becomes_of_its_output(
    tmp_path, few_texts, redirection, encoding
):
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    script = '"$0" "$1" --num-supernodes 2 --workers 2 --output-dir run --run-config "$2"'
    command = f"({script}; echo $? > status) {redirection}"
    subprocess.run(
        ["sh", "-c", command, sys.executable, str(SCRIPT), f"{few_texts} {PRIVATE}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=200,
        check=False,
    )
    assert (tmp_path / "status").read_text() == "0\n"
    result = RunResult(tmp_path / "run")
    assert (result.state, result.history[-1]["failures"]) == ("ended", 0)
    assert result.summary["epsilon"] > 0
