"""The page of settings is what the code prints, and pyproject.toml has the same keys."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from fedattn_app.config import CODECS, Config
from fedattn_app.config.combinations import COMBINATIONS
from fedattn_app.config.documentation import settings_page
from fedattn_app.config.schema import key_of
from fedattn_app.config.settings import DEFAULTS, SECTIONS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_page_of_settings_is_up_to_date():
    """If not: ``python -m fedattn_app.config.documentation > docs/settings.md``."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_the_page_has_every_key_and_every_combination_once():
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    for key in DEFAULTS:
        assert len([row for row in rows if row.startswith(f"| `{key}` | `")]) == 1, key
    for combination in COMBINATIONS:
        start = f"| {combination.this} | {combination.that}"
        assert len([row for row in rows if row.startswith(start)]) == 1, start


def test_the_page_shows_a_name_that_is_registered_later(monkeypatch):
    monkeypatch.setitem(CODECS, "mine", "some.module:Mine")
    assert f'| `codec` | `"float32"` | one of {", ".join(CODECS)} |' in settings_page()


def test_pyproject_has_the_defaults_key_for_key():
    table = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]["config"]
    defaults = Config().to_run_config()
    assert table == defaults
    assert {k: type(v) for k, v in table.items()} == {k: type(v) for k, v in defaults.items()}


def test_pyproject_groups_the_keys_by_section_in_the_order_of_the_code():
    block = PYPROJECT.split("[tool.flwr.app.config]\n")[1].split("\n[")[0]
    found = re.findall(r"^# (.+)|^([a-z0-9-]+) = ", block, re.MULTILINE)[1:]
    expected = []
    for section in SECTIONS.values():
        expected.append((section.title, ""))
        expected += [("", key_of(entry)) for entry in fields(section)]
    assert found == expected
