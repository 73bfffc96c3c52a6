"""What single sections refuse and derive, beyond the range of each key."""

import pytest

from fedattn_app.config import (
    MODEL_SIZES,
    RULES,
    AggregationConfig,
    Config,
    LoraConfig,
    ModelConfig,
    ModelSize,
    TrainingConfig,
)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model": " "}, ['model = " "', "pretrained"]),
        ({"lora-targets": "query,values"}, ['lora-targets = "query,values"', "key, value"]),
        ({"lora-targets": ","}, ['lora-targets = ","', "key, value"]),
        ({"width": 100, "heads": 3}, ["width = 100", "heads", "6"]),
        ({"heads": 3}, ["width = 128", "heads", "6"]),
        ({"width": 6, "heads": 2}, ["width = 6", "4"]),
        ({"labels": "no,yes,no"}, ['labels = "no,yes,no"', "once", "not no twice"]),
        ({"labels": "1, 1.0"}, ['labels = "1, 1.0"', "1 and 1.0", "the same"]),
        ({"labels": 'no,"yes'}, ["labels = ", "in double quotes"]),
        ({"text-column": "label"}, ['text-column = "label"', "label-column"]),
        ({"dataset": ""}, ['dataset = ""', "triage"]),
        (
            {"partitioner": "label-shares", "label-shares": "50/60"},
            ['label-shares = "50/60"', "100"],
        ),
        ({"partitioner": "label-shares", "label-shares": "a/b"}, ['label-shares = "a/b"', "100"]),
        ({"partitioner": "label-shares", "label-shares": "110/-10"}, ["label-shares", "100"]),
        ({"partitioner": "label-shares", "label-shares": "nan/100"}, ["label-shares", "100"]),
        ({"partitioner": "label-shares", "label-shares": "inf/-inf"}, ["label-shares", "100"]),
    ],
)
def test_a_value_of_the_wrong_form_is_refused(refused, settings, parts):
    with refused(*parts):
        Config.from_run_config(settings)


def test_every_model_that_is_not_a_size_is_a_pretrained_one():
    model = Config.from_run_config({"model": "someone/some-model", "dropout": 0.1}).model
    assert (model.model, model.pretrained) == ("someone/some-model", True)
    assert not any(ModelConfig(model=name).pretrained for name in MODEL_SIZES)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        *(({"model": name}, size) for name, size in MODEL_SIZES.items()),
        ({"model": "tiny", "layers": 3, "heads": 4}, ModelSize(3, 64, 4, 256)),
        ({"layers": 1, "width": 32, "heads": 2, "feedforward": 48}, ModelSize(1, 32, 2, 48)),
    ],
)
def test_the_size_is_the_named_one_with_every_given_shape(settings, size):
    assert ModelConfig(**settings).size == size


def test_sharing_a_alone_keeps_b_personal_whatever_local_is():
    for local in ("frozen", "personal"):
        config = Config.from_run_config({"shared": "lora-a", "local": local})
        assert config.to_run_config()["local"] == "personal"


def test_lora_targets_are_roles_without_repetition():
    assert LoraConfig(lora_targets=" value, query,value").roles == ("value", "query")


def test_warm_up_rounds_share_everything():
    config = Config.from_run_config({"warmup-rounds": 2, "seed": 3}).federation.while_warming_up
    assert (config.shared, config.warmup_rounds, config.seed) == ("all", 0, 3)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("", ()),
        ("no,yes", ("no", "yes")),
        (" no , not yet ,", ("no", "not yet")),
        ('"yes, surely", no', ("yes, surely", "no")),
        ("1.0, True,no\u00a0way", ("1", "true", "no way")),
    ],
)
def test_labels_are_separated_by_commas(labels, names):
    assert Config.from_run_config({"labels": labels}).data.label_names == names


def test_the_shares_of_the_labels_are_numbers_for_each_client():
    data = Config.from_run_config(
        {"partitioner": "label-shares", "label-shares": "50/50, 1.5/98.5"}
    )
    assert data.data.shares_per_client == [(50.0, 50.0), (1.5, 98.5)]


def test_the_cosine_schedule_falls_from_the_learning_rate_towards_0():
    config = TrainingConfig(learning_rate=0.2, learning_rate_schedule="cosine")
    rates = [config.in_round(t, 2).learning_rate for t in (0, 1, 2, 3)]
    assert rates == pytest.approx([0.2, 0.2, 0.1, 0.1])
    assert TrainingConfig(learning_rate=0.2).in_round(3, 4).learning_rate == 0.2


@pytest.mark.parametrize(
    ("strategy", "settings", "needed"),
    [
        ("fedavg", {}, 1),
        ("krum", {"malicious_clients": 1}, 5),
        ("multikrum", {"malicious_clients": 1, "multikrum_selected": 2}, 5),
        ("multikrum", {"malicious_clients": 0, "multikrum_selected": 3}, 5),
        ("bulyan", {"malicious_clients": 1}, 7),
        ("fedtrimmedavg", {"trim_fraction": 0.3}, 4),
        ("fedtrimmedavg", {"trim_fraction": 0.0}, 1),
    ],
)
def test_a_rule_needs_this_many_updates(strategy, settings, needed):
    config = AggregationConfig(strategy=strategy, **settings)
    assert config.min_updates == needed
    assert config.min_updates_settings == {k.replace("_", "-"): v for k, v in settings.items()}


def test_every_keyword_of_a_rule_comes_from_a_setting():
    names = set(AggregationConfig.__dataclass_fields__)
    assert all(set(rule.keywords) <= names for rule in RULES.values())
