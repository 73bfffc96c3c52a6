"""What README.md and docs/ refer to exists: pages, headings, paths and settings."""

import json
import re
import tomllib

import pytest
from helpers.pages import FEDERATION_KEYS, PAGES, ROOT, blocks_of, prose_of

from fedattn_app.config import Config
from fedattn_app.policy.owner_policy import NODE_KEYS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_have_a_language_that_a_test_reads(page):
    assert page.read_text().count("```") == 2 * len(blocks_of(page))
    for block in blocks_of(page):
        match block.language:
            case "sh" | "python" | "text":
                pass
            case "toml":
                tomllib.loads(block.text)
            case "json":
                json.loads(block.text)
            case _:
                pytest.fail(f"{block.place}: language {block.language!r}")


def anchor_of(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def local_links(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    return [target for target in targets if not target.startswith(("https://", "http://"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page):
    for link in local_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", prose_of(target), re.MULTILINE)
            assert anchor in map(anchor_of, headings), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_prose_exist(page):
    folders = r"(?:fedattn_app|strategies|tests|benchmarks|notebooks|docs|\.ci)/"
    for path in re.findall(rf"`({folders}[\w./-]*)`", prose_of(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_prose_exist(page):
    known = {*Config().to_run_config(), *NODE_KEYS, *FEDERATION_KEYS}
    for key in re.findall(r"`([a-z][a-z0-9-]*) ?= ?[^`]+`", prose_of(page)):
        assert key in known, key


def test_the_readme_links_every_page():
    linked = {link.partition("#")[0] for link in local_links(ROOT / "README.md")}
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked
