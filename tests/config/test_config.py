"""Run configuration: defaults, what is refused, and reading ``--run-config``."""

import math
import tomllib
from pathlib import Path

import pytest

from fedattn_app.config import (
    MODEL_SIZES,
    SETTINGS,
    Config,
    LoraConfig,
    ModelConfig,
    ModelSize,
    parse_run_config,
)
from fedattn_app.config.aggregation import owners_of

BELOW_ONE = ("<= 0.9", "<= 0.49", "<= 0.9999", "<= 0.99999")  # there 0 is the whole number
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

# Beyond each end of each range. The last column is what the message must say is allowed.
OUT_OF_RANGE = [
    ("num-rounds", 0, ">= 1"),
    ("num-rounds", -3, ">= 1"),
    ("fraction-train", 0, "> 0"),
    ("fraction-train", 1.01, "<= 1"),
    ("fraction-evaluate", -0.01, ">= 0"),
    ("fraction-evaluate", 1.01, "<= 1"),
    ("min-clients", -1, ">= 0"),
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
    ("beta-1", 1.0, "<= 0.9999"),
    ("beta-2", -0.1, ">= 0"),
    ("tau", 0, "> 0"),
    ("proximal-mu", -1, ">= 0"),
    ("fairness", -1, ">= 0"),
    ("attentive-step", 0, "> 0"),
    ("gradient-batch", -1, ">= 0"),
    ("concurrency", 0, ">= 1"),
    ("buffer-size", 0, ">= 1"),
    ("staleness-exponent", -0.1, ">= 0"),
    ("trimmed", 0.5, "<= 0.49"),
    ("malicious", -1, ">= 0"),
    ("selected", 0, ">= 1"),
    ("drop-norm", -1, ">= 0"),
    ("clip-norm", math.nan, "a number"),
    ("learning-rate-schedule", "nonsense", "cosine"),
    ("examples-per-client", 0, ">= 1"),
    ("weighting", "nonsense", "uniform"),
    ("local", "nonsense", "personal"),
    ("privacy", "nonsense", "none"),
    ("target-epsilon", -0.01, ">= 0"),
    ("target-epsilon", math.inf, "a number"),
    ("target-delta", 0, "> 0"),
    ("target-delta", 1.0, "<= 0.999"),
    ("noise-multiplier", -0.01, ">= 0"),
    ("noise-multiplier", math.inf, "a number"),
    ("max-grad-norm", 1e-7, ">= 1e-06"),
    ("max-grad-norm", math.inf, "a number"),
    ("max-update-norm", 0, "> 0"),
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

# The ends of the ranges, which are allowed, and a value other than the default for each text.
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

OF_TYPE = {
    kind: [key for key, setting in SETTINGS.items() if type(setting.default) is kind]
    for kind in (int, float, str)
}

LOCAL = {"privacy": "dp-sgd", "noise-multiplier": 1.0}
CENTRAL = {"privacy": "client-dp", "noise-multiplier": 1.0}
# A value other than the default for each key of differential privacy, and who has it.
PRIVATE = [
    ("target-epsilon", 8.0, LOCAL, CENTRAL),
    ("target-delta", 1e-6, LOCAL, CENTRAL),
    ("noise-multiplier", 2.0, LOCAL, CENTRAL),
    ("max-grad-norm", 0.1, LOCAL),
    ("max-update-norm", 0.1, CENTRAL),
    ("accountant", "prv", LOCAL),
    ("evaluate-epsilon", 1.0, LOCAL),
    ("num-examples-public", True, LOCAL),
    ("reproducible-noise", True, LOCAL, CENTRAL),
]
PRIVATE_KEYS = {key for key, *_ in PRIVATE}
# Who has a key of the partitioners, and a value other than the default.
PARTITIONED = {
    "partition-by": "natural",
    "alpha": "dirichlet",
    "classes-per-client": "pathological",
    "label-shares": "label-shares",
    "examples-per-client": "label-shares",
}
OTHERS = {
    "partition-by": "ward",
    "alpha": 1e-9,
    "classes-per-client": 1,
    "label-shares": "10/90",
    "examples-per-client": 7,
}


def test_dropout_is_refused_where_examples_must_not_depend_on_each_other(refused):
    with refused("dropout = 0.1", 'with privacy = "dp-sgd"'):
        Config.from_run_config(LOCAL | {"dropout": 0.1})
    Config.from_run_config(CENTRAL | {"dropout": 0.1})


def test_a_budget_for_scores_that_nobody_gives_is_refused(refused):
    with refused("evaluate-epsilon = 2", "fraction-evaluate = 0"):
        Config.from_run_config(LOCAL | {"evaluate-epsilon": 2.0, "fraction-evaluate": 0.0})


def test_pyproject_states_the_defaults_key_for_key():
    table = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    defaults = Config().to_run_config()
    assert table == defaults
    assert {k: type(v) for k, v in table.items()} == {k: type(v) for k, v in defaults.items()}


@pytest.mark.parametrize(("key", "value", "allowed"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(refused, key, value, allowed):
    with refused(f"{key} = ", value, allowed):
        Config.from_run_config({key: value})


def test_a_whole_number_too_big_for_a_number_is_refused(refused):
    with refused("learning-rate = 1000", "a number"):
        Config.from_run_config({"learning-rate": 10**400})


def test_the_table_of_values_out_of_range_has_every_setting_that_has_a_range():
    assert {key for key, _, _ in OUT_OF_RANGE} == {
        key for key, setting in SETTINGS.items() if setting.allowed != "text"
    }


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
@pytest.mark.parametrize("key", OF_TYPE[int])
def test_a_whole_number_is_nothing_else(refused, key, value):
    with refused(f"{key} = {value!r}", "a whole number"):
        Config.from_run_config({key: value})


@pytest.mark.parametrize("value", [True, math.nan, "0.5", None])
@pytest.mark.parametrize("key", OF_TYPE[float])
def test_a_number_is_nothing_else(refused, key, value):
    with refused(f"{key} = {value!r}", "a number"):
        Config.from_run_config({key: value})


@pytest.mark.parametrize("value", [True, 1, 0.5, None])
@pytest.mark.parametrize("key", OF_TYPE[str])
def test_text_is_nothing_else(refused, key, value):
    with refused(f"{key} = {value!r}", SETTINGS[key].allowed):
        Config.from_run_config({key: value})


@pytest.mark.parametrize("key", OF_TYPE[float])
def test_a_whole_number_will_do_for_a_number(key):
    if key == "target-delta":
        pytest.skip("its range has no whole number")
    number = 0 if SETTINGS[key].allowed.endswith(BELOW_ONE) else 1
    privacy = CENTRAL if key == "max-update-norm" else LOCAL if key in PRIVATE_KEYS else {}
    owner = {"strategy": (owners_of(key.replace("-", "_")) or ["fedavg"])[0]}
    others = {**privacy, **owner, "patience": 1}
    if key in PARTITIONED:
        others["partitioner"] = PARTITIONED[key]
    value = Config.from_run_config({**others, key: number}).to_run_config()[key]
    assert (value, type(value)) == (number, float)


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_one_key_changes_one_setting(key, value):
    assert Config.from_run_config({key: value}).to_run_config() == {
        **Config().to_run_config(),
        key: value,
    }


@pytest.mark.parametrize(("key", "partitioner"), PARTITIONED.items())
def test_a_key_of_another_partitioner_is_refused(refused, key, partitioner):
    value = OTHERS[key]
    config = Config.from_run_config({"partitioner": partitioner, key: value})
    assert config.to_run_config()[key] == value
    for other in {"auto", "iid", *PARTITIONED.values()} - {partitioner}:
        with refused(f"{key} = {value}", f'partitioner = "{other}"', f'"{partitioner}"'):
            Config.from_run_config({"partitioner": other, key: value})


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
    with refused(f"{key}: ", hint):
        Config.from_run_config({"seed": 2, key: 3})


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"shared": "all", "local": "personal"}, ["local", '"personal"', "shared"]),
        ({"shared": "lora", "local": "personal"}, ["local", '"personal"', '"lora"']),
        ({"shared": "lora-b", "local": "personal"}, ["local", '"personal"', '"lora-b"']),
        ({"model": "a/b", "layers": 3}, ["layers = 3", "built-in", "'a/b'"]),
        ({"model": "a/b", "vocabulary": 99}, ["vocabulary = 99", "built-in", "'a/b'"]),
        ({"model": " "}, ["model = ' '", "pretrained"]),
        ({"lora-targets": "query,values"}, ["lora-targets = 'query,values'", "key, value"]),
        ({"lora-targets": ","}, ["lora-targets = ','", "key, value"]),
        ({"width": 100, "heads": 3}, ["width = 100", "heads", "6"]),
        ({"heads": 3}, ["width = 128", "heads", "6"]),
        ({"width": 6, "heads": 2}, ["width = 6", "4"]),
        ({"partitioner": "natural", "dataset": "someone/some-set"}, ["partition-by", "natural"]),
        ({"labels": "no,yes,no"}, ["labels", "no"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refused, settings, parts):
    with refused(*parts):
        Config.from_run_config(settings)


def test_any_other_model_is_a_pretrained_one():
    model = Config.from_run_config({"model": "someone/some-model", "dropout": 0.1}).model
    assert (model.model, model.pretrained) == ("someone/some-model", True)
    assert not any(ModelConfig(model=name).pretrained for name in MODEL_SIZES)


def test_sharing_a_alone_keeps_b_personal_whatever_local_says():
    assert Config.from_run_config({"shared": "lora-a"}).to_run_config()["local"] == "personal"


def test_lora_targets_are_roles_without_repetition():
    assert LoraConfig(lora_targets=" value, query,value").roles == ("value", "query")


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        *(({"model": name}, size) for name, size in MODEL_SIZES.items()),
        ({"model": "tiny", "layers": 3, "heads": 4}, ModelSize(3, 64, 4, 256)),
        ({"layers": 1, "width": 32, "heads": 2, "feedforward": 48}, ModelSize(1, 32, 2, 48)),
    ],
)
def test_the_size_is_the_named_one_with_every_explicit_shape(settings, size):
    assert ModelConfig(**settings).size == size


@pytest.mark.parametrize(
    ("labels", "names"),
    [("", ()), ("no,yes", ("no", "yes")), (" no , not yet ,", ("no", "not yet"))],
)
def test_labels_are_separated_by_commas(labels, names):
    assert Config.from_run_config({"labels": labels}).data.label_names == names


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {}),
        ([""], {}),
        (["num-rounds=3"], {"num-rounds": 3}),
        (["num-rounds = 3\n seed= 4"], {"num-rounds": 3, "seed": 4}),
        (["alpha=1e-3 quiet=true"], {"alpha": 1e-3, "quiet": True}),
        (["""labels='no, not yet' dataset="a/b" """], {"labels": "no, not yet", "dataset": "a/b"}),
        ([r"shared='.*\.(query|key)\..*'"], {"shared": r".*\.(query|key)\..*"}),
        (["labels='a=b #c'"], {"labels": "a=b #c"}),
        (["seed=1 alpha=2", "seed=3"], {"seed": 3, "alpha": 2}),
        (["seed=1 seed=2"], {"seed": 2}),
    ],
)
def test_pairs_are_read(items, expected):
    assert parse_run_config(items) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("num-rounds", "key=value"),
        ("num-rounds=3 fast", "key=value"),
        ("=3", "key=value"),
        ("seed=", "key=value"),
        ("?!", "key=value"),
        ("seed==3", "seed"),
        ("strategy=fedavg", "put text in quotes"),
        ("labels='no", "quotes"),
    ],
)
def test_garbage_is_refused(refused, text, part):
    with refused(part, text.split("=")[0]):
        parse_run_config([text])


def test_a_toml_file_is_read_and_later_items_win(tmp_path):
    file = tmp_path / "run config.toml"
    file.write_text('seed = 5  # five\nalpha = 2.0\nlabels = "né,oui"\n', encoding="utf-8")
    assert parse_run_config(["seed=1 num-rounds=2", str(file), "alpha=3.0"]) == {
        "seed": 5,
        "num-rounds": 2,
        "alpha": 3.0,
        "labels": "né,oui",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"seed = \n", "not a TOML file"),
        (b"seed = 1\nseed = 2\n", "not a TOML file"),
        (b'labels = "n\xe9"\n', "not a TOML file"),
    ],
)
def test_a_toml_file_that_cannot_be_read_is_refused(refused, tmp_path, content, reason):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with refused(file, reason):
        parse_run_config([str(file)])


def test_a_folder_in_place_of_a_toml_file_is_refused(refused, tmp_path):
    (tmp_path / "run.toml").mkdir()
    with refused(tmp_path / "run.toml", "cannot be read"):
        parse_run_config([str(tmp_path / "run.toml")])


def test_every_key_of_differential_privacy_is_among_those_tested():
    assert set(SETTINGS) >= PRIVATE_KEYS
    section = Config.from_run_config(LOCAL).privacy
    assert PRIVATE_KEYS | {"privacy"} == {name.replace("_", "-") for name in vars(section)}


@pytest.mark.parametrize(("key", "value", "owners"), [(k, v, o) for k, v, *o in PRIVATE])
def test_a_key_of_differential_privacy_is_refused_where_it_would_do_nothing(
    refused, key, value, owners
):
    for settings in ({}, LOCAL, CENTRAL):
        if settings in owners:
            assert Config.from_run_config({**settings, key: value}).to_run_config()[key] == value
        else:
            with refused(key, "does nothing", settings.get("privacy", "none")):
                Config.from_run_config({**settings, key: value})


@pytest.mark.parametrize("privacy", ["dp-sgd", "client-dp"])
def test_privacy_without_a_budget_or_noise_is_refused(refused, privacy):
    with refused(privacy, "target-epsilon", "noise-multiplier"):
        Config.from_run_config({"privacy": privacy})


@pytest.mark.parametrize(
    ("settings", "weighting"),
    [
        ({}, "examples"),
        ({"weighting": "uniform"}, "uniform"),
        (LOCAL, "uniform"),
        ({**LOCAL, "num-examples-public": True}, "uniform"),
        ({**LOCAL, "num-examples-public": True, "weighting": "examples"}, "examples"),
        (CENTRAL, "uniform"),
    ],
)
def test_replies_weigh_the_same_under_privacy_unless_numbers_are_public(settings, weighting):
    assert Config.from_run_config(settings).weighting == weighting


@pytest.mark.parametrize("settings", [LOCAL, CENTRAL])
def test_weights_that_tell_of_private_numbers_are_refused(refused, settings):
    with refused("weighting", settings["privacy"], "uniform"):
        Config.from_run_config({**settings, "weighting": "examples"})


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [({}, 0.5), (LOCAL, 0.0), ({**LOCAL, "evaluate-epsilon": 1.0}, 0.5), (CENTRAL, 0.5)],
)
def test_clients_evaluate_under_dp_sgd_only_with_a_budget_for_it(settings, fraction):
    config = Config.from_run_config({"fraction-evaluate": 0.5, **settings})
    assert config.fraction_evaluate == fraction
