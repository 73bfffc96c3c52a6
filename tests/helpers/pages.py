"""The pages that users read: README.md and docs/."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from flwr.proto.federation_config_pb2 import SimulationConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# The keys of Flower's --federation-config.
FEDERATION_KEYS = {name.replace("_", "-") for name in SimulationConfig.DESCRIPTOR.fields_by_name}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text()
    fences = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text[: fence.start()].count("\n") + 1, fence[2], textwrap.dedent(fence[3]))
        for fence in fences
    ]


def prose_of(page):
    """The text of a page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
