"""Generates ``docs/settings.md``: ``python -m fedattn_app.config.documentation`` prints it."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from fedattn_app.config.combinations import CHOOSERS, COMBINATIONS, Combination
from fedattn_app.config.schema import Section, as_toml, key_of
from fedattn_app.config.settings import RENAMED_KEYS, SECTIONS, SETTINGS

INTRODUCTION = """\
# Settings

<!-- Generated: `python -m fedattn_app.config.documentation > docs/settings.md` -->

Every setting is a run-config key. `pyproject.toml` holds the defaults. Give other values with
`--run-config 'key=value key="text"'` or `--run-config FILE.toml`; `simulate` takes them as a
dictionary. The `config.toml` in a run's folder is such a file too: it repeats the settings of the
run, but not the number of clients. A key that does not exist, a value that is not allowed, a key
that has no effect and a combination that is refused end the run before it starts, with one line
that says what to give instead.

"Only with" lists the choices with which a key has an effect."""

COMBINATIONS_INTRODUCTION = """\
## Combinations that are refused

A run is refused where both hold. Each error names both keys and their values."""

RENAMED_INTRODUCTION = """\
## Renamed keys

The old names are refused, and the error says the new one."""


def settings_page() -> str:
    """Return the Markdown page of all keys, the combinations refused and the renamed keys."""
    blocks = [INTRODUCTION]
    for section in SECTIONS.values():
        blocks += [f"## {section.title}", section.__doc__ or "", _section_table(section)]
    blocks += [COMBINATIONS_INTRODUCTION, _combinations_table()]
    renamed = ([f"`{old}`", f"`{new}`"] for old, new in RENAMED_KEYS.items())
    blocks += [RENAMED_INTRODUCTION, _table(["old name", "new name"], renamed)]
    return "\n\n".join(blocks) + "\n"


def _section_table(section: type[Section]) -> str:
    rows = []
    for key in map(key_of, fields(section)):
        its = SETTINGS[key]
        rows.append(
            [f"`{key}`", f"`{as_toml(its.default)}`", its.allowed, its.help, _only_with(key)]
        )
    return _table(["key", "default", "allowed", "meaning", "only with"], rows)


def _only_with(key: str) -> str:
    """Return the choices with which a key has an effect; empty for a key that always has one."""
    for chooser, owners_of in CHOOSERS.items():
        owners = owners_of().get(key)
        if owners:
            others = [name for name in SETTINGS[chooser].constraint.names if name not in owners]
            if 0 < len(others) < len(owners):
                return f"`{chooser}` other than {_names(others)}"
            return f"`{chooser}` = {_names(owners)}"
    return ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _combinations_table() -> str:
    rows = [[str(row.this), _that(row), row.why, row.remedy] for row in COMBINATIONS]
    return _table(["this", "together with", "why", "instead"], rows)


def _that(row: Combination) -> str:
    return f"{row.that}, unless {row.unless}" if row.unless else str(row.that)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(settings_page(), end="")
