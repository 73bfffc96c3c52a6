"""All settings of a run: keys, defaults, old names, registries, and what follows from them."""

import pytest
from helpers.run_configs import needed, other_value

from fedattn_app.config import (
    CODECS,
    PARTITIONERS,
    PROTECTIONS,
    RULES,
    AggregationRule,
    Config,
    Registered,
    parse_run_config,
    with_current_names,
)
from fedattn_app.config.settings import DEFAULTS, RENAMED_KEYS, SETTINGS
from fedattn_app.metrics import METRICS

# The ends of the ranges, which are allowed, and another value than the default for each text.
ALLOWED = [
    ("num-rounds", 1),
    ("fraction-train", 1e-9),
    ("fraction-train", 1.0),
    ("fraction-evaluate", 0.0),
    ("min-clients", 3),
    ("round-timeout", 43200.0),
    ("seed", 0),
    ("seed", 2**32 - 1),
    ("weighting", "uniform"),
    ("codec", "float16"),
    ("shared", r".*\.query\.weight"),
    ("local", "personal"),
    ("model", "tiny"),
    ("layers", 64),
    ("width", 8192),
    ("heads", 1),
    ("feedforward", 65536),
    ("dropout", 0.9),
    ("vocabulary", 8),
    ("vocabulary", 2**24),
    ("max-length", 8192),
    ("lora-rank", 1024),
    ("lora-alpha", 1),
    ("lora-targets", "query,value"),
    ("dataset", "someone/some-set"),
    ("text-column", "note"),
    ("label-column", "department"),
    ("labels", "no,yes"),
    ("partitioner", "dirichlet"),
    ("validation-fraction", 0.9),
    ("local-epochs", 9),
    ("batch-size", 1),
    ("physical-batch-size", 1),
    ("learning-rate", 1e-9),
    ("optimizer", "sgd"),
    ("weight-decay", 0.0),
    ("output-dir", "runs/mine"),
    ("resume-from", "runs/mine"),
]

DP_SGD = {"privacy": "dp-sgd", "noise-multiplier": 1.0}
CLIENT_DP = {"privacy": "client-dp", "noise-multiplier": 1.0}


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_one_key_changes_one_setting(key, value):
    assert Config.from_run_config({key: value}).to_run_config() == {**DEFAULTS, key: value}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_key_reaches_the_configuration(key):
    value = other_value(key)
    assert value != DEFAULTS[key]
    assert Config.from_run_config(needed(key, value)).to_run_config()[key] == value


def test_to_run_config_and_from_run_config_are_inverse():
    config = Config.from_run_config(dict(ALLOWED))
    assert config != Config()
    assert Config.from_run_config(config.to_run_config()) == config


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("num-round", "did you mean num-rounds?"),
        ("num_rounds", "did you mean num-rounds?"),
        ("learning_rate", "did you mean learning-rate?"),
        ("datapath", "did you mean data-path?"),
        ("zzzzzz", "the keys are num-rounds, "),
    ],
)
def test_an_unknown_key_is_refused_with_a_hint(refused, key, hint):
    with refused(f"{key}: no such run-config key; ", hint):
        Config.from_run_config({"seed": 2, key: 3})


@pytest.mark.parametrize(
    ("key", "shown"),
    [("a\nb\u2028c", r'"a\nb\u2028c": no such'), ("k" * 10**6, f'"{"k" * 100}": no such')],
    ids=["lines", "long"],
)
def test_an_unknown_key_is_shown_on_one_short_line(refused, key, shown):
    with refused(shown):
        Config.from_run_config({key: 1})


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_name_is_refused_with_the_new_one(refused, old, new):
    assert old not in SETTINGS
    assert new in SETTINGS
    with refused(f"{old}: was renamed; use {new}"):
        Config.from_run_config({old: DEFAULTS[new]})


@pytest.mark.parametrize(
    ("registry", "name", "row", "config"),
    [
        (RULES, "mine", AggregationRule("Mine", {"fedatt_step": "step"}), {"fedatt-step": 2.0}),
        (PARTITIONERS, "mine", Registered("some.module:mine", ("alpha",)), {"alpha": 2.0}),
        (
            PROTECTIONS,
            "mine",
            Registered("some.module:Mine", ("noise_multiplier",)),
            {"noise-multiplier": 2.0},
        ),
        (CODECS, "mine", Registered("some.module:Mine"), {}),
        (METRICS, "my_score", lambda scores: 0.0, {}),
    ],
    ids=["strategy", "partitioner", "privacy", "codec", "score"],
)
def test_one_row_in_a_registry_is_enough(
    refused, monkeypatch, request, registry, name, row, config
):
    key, value = request.node.callspec.id, name.replace("_", "-")
    with refused(f'{key} = "{value}": must be one of '):
        Config.from_run_config({key: value})
    monkeypatch.setitem(registry, name, row)
    settings = Config.from_run_config({key: value, **config}).to_run_config()
    assert {**settings, key: value, **config} == settings
    assert value in SETTINGS[key].allowed


def test_the_rule_gets_its_settings_under_the_keywords_of_its_class():
    config = {"strategy": "fedadam", "server-learning-rate": 0.02, "adaptive-tau": 0.1}
    expected = {"weighting": "examples", "eta": 0.02, "tau": 0.1, "beta_1": 0.9, "beta_2": 0.99}
    assert Config.from_run_config(config).aggregation.rule_settings("examples") == expected


def test_a_server_learning_rate_of_0_is_left_to_the_rule():
    config = Config.from_run_config({"strategy": "fedadam"})
    assert "eta" not in config.aggregation.rule_settings("examples")


def test_settings_of_an_older_run_are_read_under_their_new_names(tmp_path):
    old = tmp_path / "config.toml"
    old.write_text('strategy = "fedadam"\ntau = 0.01\n[versions]\nflwr = "1.41.0"\n')
    assert parse_run_config([str(old)]) == {"strategy": "fedadam", "adaptive-tau": 0.01}
    assert with_current_names({"tau": 0.01, "seed": 2}) == {"adaptive-tau": 0.01, "seed": 2}
