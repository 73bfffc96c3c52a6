"""What cannot go together is refused, with both names; each side alone is accepted."""

import pytest
from helpers.run_configs import choose, needed, other_value, value_outside, values_within

from fedattn_app.config import Config
from fedattn_app.config.combinations import (
    CHOOSERS,
    COMBINATIONS,
    Combination,
    equal,
    other_than,
)
from fedattn_app.config.schema import as_toml
from fedattn_app.config.settings import SETTINGS

ROWS = pytest.mark.parametrize(
    "row", COMBINATIONS, ids=lambda row: f"{row.this.key}-{row.that.key}"
)
DEPENDENT_KEYS = [
    (chooser, key) for chooser, owners_of in CHOOSERS.items() for key in sorted(owners_of())
]


def run_config(row, this, that):
    return {
        **needed(row.this.key, this),
        **needed(row.that.key, that),
        row.this.key: this,
        row.that.key: that,
    }


@ROWS
def test_each_row_is_refused_with_both_keys_and_their_values(refused, row):
    unless = {row.unless.key: value_outside(row.unless)} if row.unless else {}
    for this in values_within(row.this):
        for that in values_within(row.that):
            both = f"{row.this.key} = {as_toml(this)}: not with {row.that.key} = {as_toml(that)}: "
            with refused(both, row.why, row.remedy):
                Config.from_run_config(run_config(row, this, that) | unless)


@ROWS
def test_each_side_of_a_row_is_accepted_without_the_other(row):
    no_this, no_that = value_outside(row.this), value_outside(row.that)
    for that in values_within(row.that):
        Config.from_run_config(run_config(row, no_this, that))
    for this in values_within(row.this) if no_that is not None else []:
        Config.from_run_config(run_config(row, this, no_that))


@pytest.mark.parametrize("row", [row for row in COMBINATIONS if row.unless])
def test_a_row_with_an_exception_is_accepted_where_the_exception_holds(row):
    unless = {row.unless.key: values_within(row.unless)[0]}
    for this in values_within(row.this):
        for that in values_within(row.that):
            Config.from_run_config(run_config(row, this, that) | unless)


def test_a_row_that_is_added_is_checked(refused, monkeypatch):
    row = Combination(other_than("seed", 1), equal("codec", "float16"), "a reason", "a remedy")
    monkeypatch.setattr("fedattn_app.config.combinations.COMBINATIONS", (*COMBINATIONS, row))
    with refused('seed = 2: not with codec = "float16": a reason; a remedy'):
        Config.from_run_config({"seed": 2, "codec": "float16"})


@pytest.mark.parametrize(("chooser", "key"), DEPENDENT_KEYS)
def test_a_key_is_refused_with_each_choice_with_which_it_does_nothing(refused, chooser, key):
    owners, value = CHOOSERS[chooser]()[key], other_value(key)
    names = SETTINGS[chooser].constraint.names or (*owners, other_value(chooser))
    assert set(owners) < set(names)
    for name in names:
        config = choose(chooser, name) | {key: value}
        if name in owners:
            assert Config.from_run_config(config).to_run_config()[key] == value
        else:
            does_nothing = f"does nothing with {chooser} = {as_toml(name)}; it needs {chooser} = "
            with refused(f"{key} = {as_toml(value)}: {does_nothing}"):
                Config.from_run_config(config)


def test_a_key_that_does_nothing_is_refused_with_the_choices_that_it_needs(refused):
    with refused('needs strategy = "fedadam" or "fedyogi"'):
        Config.from_run_config({"adaptive-beta-1": 0.5})
    with refused('needs partitioner = "dirichlet"'):
        Config.from_run_config({"alpha": 0.1})
    with refused('needs privacy = "dp-sgd"'):
        Config.from_run_config({"max-grad-norm": 0.1})
    with refused('needs model = "tiny" or "small" or "base"'):
        Config.from_run_config({"model": "a/b", "layers": 3})
