"""The interface of every protection, and that no other module tests a protection's name.

The suite is parametrised by the registry, so it covers a new protection at once.
"""

import ast
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from helpers.runs import QUICK
from scipy.stats import kstest

from fedattn_app.clients.base import FrozenClient
from fedattn_app.config import PROTECTIONS, Config, Registered
from fedattn_app.privacy.protections import Protection, protection_of
from fedattn_app.privacy.protections.base import NoProtection
from fedattn_app.simulation import simulate

ROOT = Path(__file__).parents[2]
DP_SGD = {"privacy": "dp-sgd", "noise-multiplier": 1.0}
CLIENT_DP = {"privacy": "client-dp", "noise-multiplier": 1.0}
NOISE = {"none": {}, "dp-sgd": {"noise-multiplier": 1.0}, "client-dp": {"noise-multiplier": 1.0}}


def protection(name, **more):
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    return protection_of(Config.from_run_config({"privacy": name, **NOISE.get(name, {}), **keys}))


@pytest.fixture(params=PROTECTIONS)
def any_protection(request):
    return protection(request.param)


def test_the_registry_names_a_protection_class(any_protection):
    assert isinstance(any_protection, Protection)


def test_the_client_class_can_be_imported(any_protection):
    assert issubclass(resolve_name(any_protection.client_class), FrozenClient)


def test_every_reply_has_a_number_of_examples_and_counts(any_protection):
    assert "num-examples" in any_protection.train_metrics()
    counts = {"support-0", "predicted-0", "correct-0", "support-1", "predicted-1", "correct-1"}
    assert counts < any_protection.evaluate_metrics(2)


def test_protection_on_the_node_reports_epsilon_and_no_exact_metric(any_protection):
    exact = {"loss", "accuracy", "seconds"}
    for metrics in (any_protection.train_metrics(), any_protection.evaluate_metrics(2)):
        assert ("epsilon" in metrics) == any_protection.protects_on_node
        assert exact.isdisjoint(metrics) or not any_protection.protects_on_node


def test_protections_with_a_budget_weight_replies_uniformly(any_protection):
    assert any_protection.weighting == "uniform" or not any_protection.has_budget


@pytest.mark.parametrize(
    ("settings", "weighting"),
    [
        ({}, "examples"),
        ({"weighting": "uniform"}, "uniform"),
        (DP_SGD, "uniform"),
        ({**DP_SGD, "num-examples-public": True}, "uniform"),
        ({**DP_SGD, "num-examples-public": True, "weighting": "examples"}, "examples"),
        (CLIENT_DP, "uniform"),
    ],
)
def test_weighting_is_uniform_under_privacy_unless_numbers_are_public(settings, weighting):
    assert protection_of(Config.from_run_config(settings)).weighting == weighting


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [({}, 0.5), (DP_SGD, 0.0), ({**DP_SGD, "evaluate-epsilon": 1.0}, 0.5), (CLIENT_DP, 0.5)],
)
def test_clients_evaluate_under_dp_sgd_only_with_a_budget_for_it(settings, fraction):
    config = Config.from_run_config({"fraction-evaluate": 0.5, **settings})
    assert protection_of(config).fraction_evaluate == fraction


@pytest.mark.parametrize(
    ("name", "reported"),
    [("none", {"accuracy", "loss"}), ("dp-sgd", {"accuracy"}), ("client-dp", set())],
)
def test_scores_that_clients_report_in_every_round(name, reported):
    more = {"evaluate_epsilon": 1.0} if name == "dp-sgd" else {}
    reporting = protection(name, **more)
    assert {score for score in ("accuracy", "loss") if reporting.reports_score(score)} == reported


def test_state_that_clients_keep_from_round_to_round():
    assert protection("none").kept_by_clients == ""
    personal = protection("none", local="personal", shared="attention")
    assert personal.kept_by_clients == "personal parameters"
    assert protection("dp-sgd").kept_by_clients == "privacy ledgers"


@pytest.mark.parametrize("name", ["dp-sgd", "client-dp"])
def test_a_target_that_no_noise_reaches_is_refused_before_any_message(refused, name):
    unreachable = protection(name, noise_multiplier=0.0, target_epsilon=1e-9)
    with refused("target-epsilon = 1e-09", "target-delta = 1e-05"):
        unreachable.check_settings()


def test_delta_must_be_below_one_over_the_number_of_clients(refused):
    many = protection("client-dp", target_delta=0.1)
    many.check_num_clients(9)
    with refused("target-delta = 0.1", "1 / 10"):
        many.check_num_clients(10)


def client_dp_rule(**settings):
    chosen = protection("client-dp", max_update_norm=0.5, **settings)
    return chosen.build_rule(FedAvg, {}, {}, {}, num_rounds=3)


def test_client_dp_draws_its_noise_from_the_secret_stream(monkeypatch):
    """Neither the run's seed nor numpy's or torch's generators decide it."""
    drawn = []
    for _ in range(2):
        np.random.seed(1)
        torch.manual_seed(1)
        drawn += [client_dp_rule(seed=3).normal(1, 20_001)]
        monkeypatch.setattr(np.random, "normal", None)
    assert drawn[0].dtype == np.float64
    assert not np.isin(drawn[0], drawn[1]).any()
    assert kstest(drawn[0], "norm").pvalue > 1e-6
    assert not np.isin(client_dp_rule().normal(1, 9), client_dp_rule().normal(1, 9)).any()


def test_reproducible_noise_of_client_dp_depends_on_the_seed_and_the_round():
    def drawn(seed, server_round):
        return client_dp_rule(seed=seed, reproducible_noise=True).normal(server_round, 9).tobytes()

    assert drawn(3, 1) == drawn(3, 1)
    assert len({drawn(3, 1), drawn(3, 2), drawn(4, 1)}) == 3


def test_a_new_protection_needs_one_class_and_one_row(tmp_path, monkeypatch):
    """This one averages updates with equal weights, and the summary says so."""
    row = Registered(f"{__name__}:Equal")
    monkeypatch.setitem(PROTECTIONS, "equal", row)
    settings = QUICK | {"privacy": "equal", "num-rounds": 1, "output-dir": str(tmp_path / "run")}
    result = simulate(settings, 2, workers=1, quiet=True)
    assert result.summary["privacy"] == "equal"
    assert result.summary["privacy_note"] == "every client counts the same"


class Equal(NoProtection):
    """An example protection."""

    default_weighting = "uniform"

    def summary_notes(self):
        return {"privacy_note": "every client counts the same"}


def test_no_other_module_tests_the_name_of_a_protection():
    names = set(PROTECTIONS) - {"none"}
    users = set()
    for path in sorted((ROOT / "fedattn_app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                attributes = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                if values & names or ("none" in values and "privacy" in attributes):
                    users.add(str(path.relative_to(ROOT / "fedattn_app")))
    assert users == set()
