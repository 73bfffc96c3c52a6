"""README.md is short, and its tables are those of the code and of the results."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAX_LINES = 170


def test_the_table_of_payloads_is_that_of_the_benchmark():
    page = (ROOT / "docs" / "pretrained.md").read_text()
    shown = re.search(r"<!-- payloads.*?-->\n(.*?)\n<!-- end", page, re.DOTALL)
    assert shown[1] == runpy.run_path(str(ROOT / "benchmarks" / "payloads.py"))["table"]()


def test_it_opens_with_the_two_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)[:2]
    assert commands[0].startswith("pip install -e . && flwr run . --stream")
    assert commands[1] == "pip install -e '.[test]' && pytest"


def test_it_is_short():
    assert len(README.splitlines()) <= MAX_LINES


def test_its_accuracies_are_in_the_results():
    results = (ROOT / "docs" / "results.md").read_text()
    accuracies = re.findall(r"\d\.\d{3} ± \d\.\d{3}", README)
    assert len(accuracies) == 6
    for accuracy in accuracies:
        assert accuracy in results
