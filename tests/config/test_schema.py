"""How one key is checked: its type, its range, and its names."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from helpers.run_configs import needed

from fedattn_app.config import Config
from fedattn_app.config.schema import Section, as_toml, setting, split_names
from fedattn_app.config.settings import SETTINGS

# Key, value beyond an end of its range, and a part of what the message says is allowed.
OUT_OF_RANGE = [
    ("num-rounds", 0, ">= 1"),
    ("num-rounds", -3, ">= 1"),
    ("fraction-train", 0, "> 0"),
    ("fraction-train", 1.01, "<= 1"),
    ("fraction-evaluate", -0.01, ">= 0"),
    ("fraction-evaluate", 1.01, "<= 1"),
    ("min-clients", -1, ">= 0"),
    ("min-replies", -1, ">= 0"),
    ("round-timeout", 0, "> 0"),
    ("round-timeout", math.inf, "<= 43200"),
    ("seed", -1, ">= 0"),
    ("seed", 2**32, "<="),
    ("warmup-rounds", -1, ">= 0"),
    ("patience", -1, ">= 0"),
    ("min-delta", -0.01, ">= 0"),
    ("score", "nonsense", "macro-f1"),
    ("strategy", "nonsense", "fedavg"),
    ("server-learning-rate", -0.1, ">= 0"),
    ("server-momentum", 1.0, "<= 0.9999"),
    ("adaptive-beta-1", 1.0, "<= 0.9999"),
    ("adaptive-beta-2", -0.1, ">= 0"),
    ("adaptive-tau", 0, "> 0"),
    ("proximal-mu", -1, ">= 0"),
    ("qfedavg-fairness", -1, ">= 0"),
    ("fedatt-step", 0, "> 0"),
    ("fedsgd-batch-size", -1, ">= 0"),
    ("fedbuff-concurrency", 0, ">= 1"),
    ("fedbuff-buffer-size", 0, ">= 1"),
    ("staleness-exponent", -0.1, ">= 0"),
    ("trim-fraction", 0.5, "<= 0.49"),
    ("malicious-clients", -1, ">= 0"),
    ("multikrum-selected", 0, ">= 1"),
    ("update-drop-norm", -1, ">= 0"),
    ("update-clip-norm", math.nan, "a number"),
    ("learning-rate-schedule", "nonsense", "cosine"),
    ("examples-per-client", 0, ">= 1"),
    ("examples-per-client", 2**31, "<= 2147483647"),
    ("weighting", "nonsense", "uniform"),
    ("local", "nonsense", "personal"),
    ("codec", "nonsense", "float16"),
    ("privacy", "nonsense", "none"),
    ("target-epsilon", -0.01, ">= 0"),
    ("target-epsilon", math.inf, "a number"),
    ("target-delta", 0, "> 0"),
    ("target-delta", 1.0, "<= 0.999"),
    ("noise-multiplier", -0.01, ">= 0"),
    ("noise-multiplier", math.inf, "a number"),
    ("max-grad-norm", 1e-7, ">= 1e-06"),
    ("max-grad-norm", 1.1e6, "<= 1000000.0"),
    ("max-grad-norm", math.inf, "a number"),
    ("max-update-norm", 0, "> 0"),
    ("max-update-norm", 1.1e6, "<= 1000000.0"),
    ("accountant", "nonsense", "prv"),
    ("evaluate-epsilon", -0.01, ">= 0"),
    ("num-examples-public", 1, "true or false"),
    ("reproducible-noise", "yes", "true or false"),
    ("layers", -1, ">= 0"),
    ("layers", 65, "<= 64"),
    ("width", -1, ">= 0"),
    ("width", 8193, "<= 8192"),
    ("heads", -1, ">= 0"),
    ("heads", 257, "<= 256"),
    ("feedforward", -1, ">= 0"),
    ("feedforward", 65537, "<= 65536"),
    ("dropout", -0.01, ">= 0"),
    ("dropout", 0.91, "<= 0.9"),
    ("vocabulary", 7, ">= 8"),
    ("vocabulary", 2**24 + 1, "<="),
    ("max-length", 0, ">= 1"),
    ("max-length", 8193, "<= 8192"),
    ("lora-rank", 0, ">= 1"),
    ("lora-rank", 1025, "<= 1024"),
    ("lora-alpha", 0, ">= 1"),
    ("partitioner", "nonsense", "dirichlet"),
    ("alpha", 0, "> 0"),
    ("alpha", math.inf, "a number"),
    ("classes-per-client", 0, ">= 1"),
    ("validation-fraction", -0.01, ">= 0"),
    ("validation-fraction", 0.91, "<= 0.9"),
    ("local-epochs", 0, ">= 1"),
    ("batch-size", 0, ">= 1"),
    ("physical-batch-size", 0, ">= 1"),
    ("learning-rate", 0, "> 0"),
    ("learning-rate", -1e-3, "> 0"),
    ("learning-rate", math.inf, "a number"),
    ("optimizer", "nonsense", "sgd"),
    ("weight-decay", -0.01, ">= 0"),
    ("weight-decay", math.inf, "a number"),
]

KEYS_OF_TYPE = {
    value_type: [key for key, its in SETTINGS.items() if type(its.default) is value_type]
    for value_type in (int, float, str)
}


@pytest.mark.parametrize(("key", "value", "allowed"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(refused, key, value, allowed):
    with refused(f"{key} = {as_toml(value)}: must be ", allowed):
        Config.from_run_config({key: value})


def test_every_key_with_a_range_is_in_the_table_above():
    limited = {key for key, its in SETTINGS.items() if its.allowed != "text"}
    assert {key for key, _, _ in OUT_OF_RANGE} == limited


@pytest.mark.parametrize("key", [*KEYS_OF_TYPE[int], *KEYS_OF_TYPE[float]])
def test_a_whole_number_of_more_than_64_bits_is_refused(refused, key):
    for value in (2**63, -(2**63), 10**400):
        with refused(f"{key} = {as_toml(value)}: must be {SETTINGS[key].allowed}", "64 bits"):
            Config.from_run_config({key: value})
    with refused(f"{key} = a whole number of more than 300 digits: must be", "64 bits"):
        Config.from_run_config({key: 10**5000})  # too long for Python to write


def test_a_whole_number_of_64_bits_is_accepted():
    assert Config.from_run_config({"num-rounds": 2**63 - 1}).federation.num_rounds == 2**63 - 1


@pytest.mark.parametrize("key", KEYS_OF_TYPE[str])
def test_a_text_that_every_node_would_read_for_seconds_is_refused(refused, key):
    with refused(f'{key} = "xxx', "must be", "characters, not 100001"):
        Config.from_run_config({key: "x" * 100_001})


@pytest.mark.parametrize("key", KEYS_OF_TYPE[int])
def test_a_whole_number_is_nothing_else(refused, key):
    for value in (True, 1.0, "1", None, [1]):
        with refused(f"{key} = {as_toml(value)}: ", "a whole number"):
            Config.from_run_config({key: value})


@pytest.mark.parametrize("key", KEYS_OF_TYPE[float])
def test_a_number_is_nothing_else(refused, key):
    for value in (True, math.nan, "0.5", None):
        with refused(f"{key} = {as_toml(value)}: ", "a number"):
            Config.from_run_config({key: value})


@pytest.mark.parametrize("key", KEYS_OF_TYPE[str])
def test_text_is_nothing_else(refused, key):
    for value in (True, 1, 0.5, None):
        with refused(f"{key} = {as_toml(value)}: ", SETTINGS[key].allowed):
            Config.from_run_config({key: value})


@pytest.mark.parametrize("key", sorted({*KEYS_OF_TYPE[float]} - {"target-delta"}))
def test_a_whole_number_is_accepted_for_a_number(key):
    """The range of target-delta has no whole number."""
    number = 1 if SETTINGS[key].constraint.allows(1) else 0
    config = {"privacy": "dp-sgd"} if key == "noise-multiplier" else {}
    value = Config.from_run_config({**config, **needed(key, number)}).to_run_config()[key]
    assert (value, type(value)) == (number, float)


def test_names_are_read_from_a_registry_or_a_function_whenever_a_value_is_checked(refused):
    registry = {"one": 1}

    @dataclass(frozen=True)
    class Example(Section):
        title: ClassVar[str] = "Example"

        name: str = setting("one", "a name", choices=registry)
        other: str = setting("one", "a name", choices=lambda: tuple(registry))

    for key in ("name", "other"):
        with refused(f'{key} = "two": must be one of one'):
            Example(**{key: "two"})
    registry["two"] = 2
    assert (Example(name="two").name, Example(other="two").other) == ("two", "two")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("né", '"né"'),
        ("a\n", '"a\\n"'),
        ("a\x85\u2028b", r'"a\u0085\u2028b"'),
        ("x" * 1001, f'"{"x" * 1000}..."'),
        (True, "true"),
        (1e-5, "1e-05"),
        (3, "3"),
        (None, "None"),
    ],
)
def test_values_are_shown_as_a_user_writes_them_on_one_line(value, text):
    assert as_toml(value) == text


def test_names_are_separated_by_commas():
    assert split_names(" no , not yet ,") == ("no", "not yet")
