"""Every rule by name: what its keys do, and a whole run of it."""

import numpy as np
import pytest
from helpers.runs import QUICK, FailingClientApp, same_arrays, without_times

from fedattn_app.config import RULES, Config
from fedattn_app.errors import RunFailedError
from fedattn_app.models.factory import build_classifier
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.scopes import scope_of
from fedattn_app.privacy.protections import protection_of
from fedattn_app.server.strategy_factory import make_rule
from fedattn_app.simulation import simulate

CLIENTS = 4
OWN = {
    "fedbuff": {"fedbuff-concurrency": 3, "fedbuff-buffer-size": 2},
    "multikrum": {"multikrum-selected": 2},
    "fedtrimmedavg": {"trim-fraction": 0.25},
    "fedavgm": {"server-momentum": 0.5, "server-learning-rate": 0.5},
    "fedsgd": {"server-momentum": 0.5},
}
# Of messages that were out when a run was stopped, nobody knows.
NOT_RESUMED_TO_THE_BIT = {"fedbuff"}


def run(folder, rule, **more):
    return simulate(
        {**settings_of(rule), **more, "output-dir": str(folder)}, CLIENTS, workers=1, quiet=True
    )


def settings_of(rule):
    settings = {**QUICK, "strategy": rule, **OWN.get(rule, {})}
    if rule == "fedsgd":
        del settings["learning-rate"]
    return settings


def reported(result):
    """The rows without bytes: at the start of a run each node is asked for its partition."""
    rows, _ = without_times(result)
    return [{key: row[key] for key in row if not key.startswith("bytes")} for row in rows]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_is_repeated_to_the_bit_and_carried_on_to_the_bit(tmp_path, rule):
    whole = run(tmp_path / "whole", rule)
    assert whole.summary["strategy"] == rule
    assert whole.summary["rounds"] == QUICK["num-rounds"]
    assert whole.history[-1]["central"]["loss"] != whole.history[0]["central"]["loss"]
    again = run(tmp_path / "again", rule)
    assert without_times(again) == without_times(whole)
    assert same_arrays(again, whole)
    if rule in NOT_RESUMED_TO_THE_BIT:
        return
    run(tmp_path / "part", rule, **{"num-rounds": 2})
    carried = {"resume-from": str(tmp_path / "part"), "num-rounds": QUICK["num-rounds"]}
    rest = simulate(carried, quiet=True)
    assert same_arrays(rest, whole)
    assert reported(rest) == reported(whole)


@pytest.mark.parametrize("rule", RULES)
def test_any_number_of_processes_gives_the_same_bits(tmp_path, rule):
    one = run(tmp_path / "one", rule, **{"num-rounds": 2})
    settings = {**settings_of(rule), "num-rounds": 2}
    two = simulate(
        {**settings, "output-dir": str(tmp_path / "two")}, CLIENTS, workers=2, quiet=True
    )
    assert without_times(two) == without_times(one)
    assert same_arrays(two, one)


def rule_of(settings):
    config = Config.from_run_config(settings)
    return make_rule(config, protection_of(config))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_its_keywords(rule):
    made = rule_of({"strategy": rule})
    assert type(made).__name__ == RULES[rule].class_name


def test_a_rules_settings_reach_it():
    config = {
        "strategy": "fedadam",
        "server-learning-rate": 0.02,
        "adaptive-beta-1": 0.5,
        "adaptive-tau": 0.1,
    }
    rule = rule_of(config)
    assert (rule.eta, rule.beta_1, rule.beta_2, rule.tau) == (0.02, 0.5, 0.99, 0.1)
    rule = rule_of({"strategy": "fedtrimmedavg", "trim-fraction": 0.4})
    assert rule.beta == 0.4
    rule = rule_of({"strategy": "qfedavg", "server-learning-rate": 0.02})
    assert (rule.client_learning_rate, rule.train_loss_key) == (0.02, "loss")


@pytest.mark.parametrize(
    ("rule", "settings", "needed"),
    [
        ("krum", {"malicious-clients": 1}, 5),
        ("multikrum", {"malicious-clients": 1, "multikrum-selected": 2}, 5),
        ("multikrum", {"malicious-clients": 0, "multikrum-selected": 3}, 5),
        ("bulyan", {"malicious-clients": 1}, 7),
        ("fedtrimmedavg", {"trim-fraction": 0.2}, 5),
    ],
)
def test_too_few_clients_for_the_rule_are_refused(tmp_path, refused, rule, settings, needed):
    given = " and ".join(f"{key} = {value}" for key, value in settings.items())
    with refused(rule, f"needs {needed} clients", given, "there are 4"):
        run(tmp_path / "run", rule, **settings)


def test_weighting_by_effective_number_needs_no_labels_to_travel(tmp_path):
    result = run(tmp_path / "run", "fedavg", weighting="effective")
    uniform = run(tmp_path / "uniform", "fedavg", weighting="uniform")
    assert not same_arrays(result, uniform)
    assert not any("effective" in key for row in result.clients for key in row)


@pytest.mark.parametrize("rule", ["fedprox", "fedavgm", "fedbuff"])
def test_reductions_to_federated_averaging_are_exact(tmp_path, rule):
    settings = {
        "fedprox": {"proximal-mu": 0.0},
        "fedavgm": {"server-momentum": 0.0, "server-learning-rate": 1.0},
        "fedbuff": {"fedbuff-concurrency": CLIENTS, "fedbuff-buffer-size": CLIENTS},
    }[rule]
    plain = run(tmp_path / "plain", "fedavg")
    assert same_arrays(run(tmp_path / "rule", rule, **settings), plain)


def test_one_client_is_local_training_whatever_the_average(tmp_path):
    alone = [
        simulate(
            {**QUICK, "strategy": rule, "output-dir": str(tmp_path / rule)},
            1,
            workers=1,
            quiet=True,
        )
        for rule in ("fedavg", "fedmedian", "geometric-median", "fedatt")
    ]
    for result in alone[1:]:
        for name, array in alone[0].arrays.items():
            np.testing.assert_allclose(result.arrays[name], array, atol=2e-6)


def test_clients_without_a_number_are_dropped_counted_and_told(tmp_path):
    result = run(tmp_path / "run", "fedavg", **{"update-clip-norm": 0.5, "num-rounds": 2})
    assert [row["dropped"] for row in result.history] == [0, 0, 0]
    with pytest.raises(RunFailedError, match=r"norm is .* above 1e-06"):
        run(tmp_path / "none", "fedavg", **{"update-drop-norm": 1e-6})


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "geometric-median", "fedbuff"])
@pytest.mark.parametrize("shared", ["attention", "all-but-attention"])
def test_personal_parameters_go_with_any_rule(tmp_path, rule, shared):
    own = (
        {"fedbuff-buffer-size": CLIENTS, "fedbuff-concurrency": CLIENTS}
        if rule == "fedbuff"
        else {}
    )
    result = run(
        tmp_path / "run",
        rule,
        **{"shared": shared, "local": "personal", "fraction-evaluate": 1.0, "num-rounds": 2, **own},
    )
    assert result.summary["accuracy"] == result.history[-1]["evaluate"]["accuracy"]
    assert len([row for row in result.clients if row["round"] == 2]) == CLIENTS
    start = get_arrays(
        build_classifier(Config.from_run_config(QUICK), list(result.summary["recall_per_class"]))
    )
    moved = {name for name in start if start[name].tobytes() != result.arrays[name].tobytes()}
    scope = scope_of(shared, "personal", "fedattn", start)
    assert moved <= scope.shared  # the server never sees the rest
    assert moved


@pytest.mark.parametrize(
    ("rule", "settings", "clients"),
    [
        ("krum", {"malicious-clients": 1}, 5),
        ("multikrum", {"malicious-clients": 1, "multikrum-selected": 2}, 5),
        ("bulyan", {"malicious-clients": 1}, 7),
        ("fedtrimmedavg", {"trim-fraction": 0.25}, 4),
    ],
)
def test_a_rule_combines_nothing_where_too_few_answer(tmp_path, rule, settings, clients):
    config = {**QUICK, "strategy": rule, "num-rounds": 1, **settings}
    own = {**config, "output-dir": str(tmp_path / "failing")}
    text = f'round 1: {clients - 1} of {clients} .* {clients} are needed \\(strategy = "{rule}"\\)'
    with pytest.raises(RunFailedError, match=text):
        simulate(own, clients, workers=1, quiet=True, clients=FailingClientApp())
    result = simulate(
        {**config, "output-dir": str(tmp_path / "run")}, clients, workers=1, quiet=True
    )
    start = get_arrays(build_classifier(Config.from_run_config(QUICK), "abcdef"))
    assert any(start[name].tobytes() != result.arrays[name].tobytes() for name in start)
