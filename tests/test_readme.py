"""The README says what the code does."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_payloads_is_that_of_the_benchmark():
    shown = re.search(r"<!-- payloads.*?-->\n(.*?)\n<!-- end", README, re.DOTALL)
    assert shown[1] == runpy.run_path(str(ROOT / "benchmarks" / "payloads.py"))["table"]()


def test_it_opens_with_the_two_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)[:2]
    assert commands[0].startswith("pip install -e . && flwr run . --stream")
    assert commands[1] == "pip install -e '.[test]' && pytest"
