"""Every generated table in docs/ is what its command prints.

A generated table stands between ``<!-- NAME: `COMMAND` prints this table -->`` and
``<!-- end of NAME -->``.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- (\w+): `(.*?)` .*?-->\n(.*?)\n<!-- end of \1 -->", re.DOTALL)
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = {
    (page, name): (command, table)
    for page, text in PAGES.items()
    for name, command, table in BLOCK.findall(text)
}


@pytest.mark.parametrize("place", BLOCKS, ids=" ".join)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_table_is_what_its_command_prints(place, capsys, monkeypatch):
    command, table = BLOCKS[place]
    python, *arguments = shlex.split(command)
    assert python == "python"
    if arguments[0] == "-m":
        del arguments[0]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_module(arguments[0], run_name="__main__")
    else:
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    assert capsys.readouterr().out.strip() == table.strip()


@pytest.mark.parametrize("page", PAGES)
def test_every_mark_of_a_table_is_checked(page):
    marked = re.findall(r"<!-- (\w+): `", PAGES[page])
    assert marked == [name for checked_page, name in BLOCKS if checked_page == page]


@pytest.mark.parametrize("name", sorted(set(tables.TABLES) - {"payloads"}))
def test_every_table_of_measurements_is_in_the_docs(name):
    assert [page for page, table in BLOCKS if table == name]


def test_the_written_tables_replace_the_old_ones():
    page = PAGES["results.md"]
    _, table = BLOCKS["results.md", "scopes"]
    assert tables.with_tables(page.replace(table, "an old table")) == page
