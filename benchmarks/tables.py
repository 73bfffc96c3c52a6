"""Print the tables of the documentation from the committed results.

    python benchmarks/tables.py               # all tables
    python benchmarks/tables.py scopes        # one table
    python benchmarks/tables.py --write       # put all tables into the pages in docs/

It takes a few seconds and measures nothing. A page holds the table NAME between the comments
``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``; `--write` replaces what is between them.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import aggregation_rules
import dp_step
import payloads
import pretrained
import privacy
import privacy_filter
import recovery
import roofline
import scale
import scopes
import simulation
import startup
import step
from common.results import Row, read

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def _from_results(name: str, table: Callable[[Sequence[Row]], str]) -> str:
    return table(read(RESULTS / f"{name}.jsonl").rows)


# Functions that return a table, by the name of the table.
TABLES: Mapping[str, Callable[[], str]] = {
    "scopes": partial(_from_results, "scopes", scopes.table),
    "pretrained": partial(_from_results, "pretrained", pretrained.table),
    "payloads": payloads.table,
    "rules": partial(_from_results, "aggregation_rules", aggregation_rules.rules_table),
    "personal": partial(_from_results, "aggregation_rules", aggregation_rules.scopes_table),
    "worst_clients": partial(
        _from_results, "aggregation_rules", aggregation_rules.worst_clients_table
    ),
    "attacks": partial(_from_results, "aggregation_rules", aggregation_rules.attacks_table),
    "step": partial(_from_results, "step", step.table),
    "privacy": partial(_from_results, "privacy", privacy.table),
    "privacy_filter": partial(_from_results, "privacy_filter", privacy_filter.table),
    "recovery": partial(_from_results, "recovery", recovery.table),
    "simulation": partial(_from_results, "simulation", simulation.table),
    "roofline": partial(_from_results, "roofline", roofline.table),
    "dp_step": partial(_from_results, "dp_step", dp_step.table),
    "startup": partial(_from_results, "startup", startup.table),
    "scale": partial(_from_results, "scale", scale.table),
}


def with_tables(page: str) -> str:
    """Return the text of a page with the current tables."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        if block.search(page):
            text = table()
            page = block.sub(partial(_replace, text), page)
    return page


def _replace(table: str, block: re.Match[str]) -> str:
    return block[1] + table + block[2]


def main() -> None:
    """Print tables, or write them into the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", choices=TABLES, help="all if it is left out")
    parser.add_argument("--write", action="store_true", help="write into docs/*.md")
    arguments = parser.parse_args()
    if arguments.write:
        for path in DOCS.glob("*.md"):
            path.write_text(with_tables(path.read_text()))
    elif arguments.table:
        print(TABLES[arguments.table]())
    else:
        print("\n\n".join(f"{name}:\n\n{table()}" for name, table in TABLES.items()))


if __name__ == "__main__":
    main()
