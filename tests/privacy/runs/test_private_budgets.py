"""The privacy budget of a run, and how a run ends when the budget is spent."""

import json

import pytest
from flwr.clientapp import ClientApp
from helpers.nodes import as_real
from helpers.private_clients import CLIENTS, TINY, epsilons, participants
from helpers.runs import run_app

from fedattn_app import client_app
from fedattn_app.errors import RunFailedError
from fedattn_app.results.checkpoint import BUDGETS, CHECKPOINT
from fedattn_app.simulation import simulate


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_the_noise_is_set_so_that_the_rounds_use_the_budget(cached_run, kind, target):
    result, _ = cached_run(privacy=kind, target_epsilon=target, num_rounds=3)
    assert result.summary["rounds"] == 3
    assert 0.95 * target < result.summary["epsilon"] <= target
    for partition in range(CLIENTS):
        assert len(epsilons(result, partition)) == 3


ENDS = {
    "dp-sgd": "0 of 3 clients have privacy budget left, 2 are needed (min-replies = 2)",
    "client-dp": "would exceed max_epsilon",
}


def test_a_spent_budget_ends_the_run_with_results(cached_run, kind):
    free, _ = cached_run(privacy=kind, noise_multiplier=1.0, num_rounds=3)
    spent = [row["epsilon_max"] for row in free.history]
    target = (spent[2] + spent[3]) / 2
    result, printed = cached_run(
        privacy=kind, noise_multiplier=1.0, target_epsilon=target, num_rounds=5
    )
    assert [row["round"] for row in result.history] == [0, 1, 2]
    assert result.summary["rounds"] == 2
    assert result.summary["epsilon"] == spent[2] <= target
    assert result.arrays.keys() == free.arrays.keys()
    assert (result.path / CHECKPOINT).exists()
    assert "the run ends after round 2: " in printed
    assert ENDS[kind] in printed
    assert f"results in {result.path}" in printed


def test_a_budget_too_small_for_one_round_is_refused(run, kind, refused):
    """One line says what to change."""
    with refused("target-epsilon = 0.1", "noise-multiplier = 0.5", "raise target-epsilon"):
        run(privacy=kind, noise_multiplier=0.5, target_epsilon=0.1, num_rounds=2)


def test_nodes_whose_budgets_do_not_suffice_end_the_run_before_its_first_round(tmp_path, opinions):
    """The server knows neither the examples nor the ledgers of nodes with data of their own."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        return client_app.app(message, as_real(context, data_path="own.csv"))

    app.train()(client_app.app)
    settings = {"privacy": "dp-sgd", "noise-multiplier": 0.5, "target-epsilon": 0.1}
    folder = {"output-dir": str(tmp_path / "run")}
    with pytest.raises(RunFailedError, match=r"no round was run: 0 of 3 .*; raise target-epsilon"):
        run_app(app, TINY | opinions | settings | folder)


@pytest.fixture(scope="module")
def unequal(cached_run):
    """Settings with which the smallest client has budget for two rounds, and the others for more.

    A smaller client samples its examples at a higher rate, so a round costs it more.
    """
    settings = {"privacy": "dp-sgd", "noise_multiplier": 2.0, "batch_size": 8}
    settings["partitioner"] = "linear"
    free, _ = cached_run(**settings, num_rounds=4)
    small, *others = (epsilons(free, partition) for partition in range(CLIENTS))
    target = (small[1] + small[2]) / 2
    assert all(spent[3] < target for spent in others)
    return settings | {"target_epsilon": target, "num_rounds": 9}


def test_a_client_without_budget_is_not_asked_again(cached_run, unequal):
    result, printed = cached_run(**unequal)
    rounds = participants(result)
    assert rounds == [[0, 1, 2]] * 2 + [[1, 2]] * (len(rounds) - 2)
    assert 4 <= len(rounds) == result.summary["rounds"] < 9
    assert "client 0: budget spent, ε " in printed
    assert {row["failures"] for row in result.history} == {0}
    largest = [row["epsilon_max"] for row in result.history[1:]]
    assert largest == sorted(largest)
    assert largest[-1] <= unequal["target_epsilon"]
    # It is asked in the round in which it reports this, and in no later one.
    down = [row["bytes_down"] for row in result.history]
    assert down[3] == pytest.approx(1.5 * down[4], rel=0.01)


def test_a_run_ends_if_too_few_clients_have_budget(cached_run, unequal):
    result, printed = cached_run(**unequal, min_clients=3)
    assert result.summary["rounds"] == 3
    assert "2 of 3 clients have privacy budget left, 3 are needed (min-clients = 3)" in printed
    assert result.arrays


def test_no_round_is_that_of_the_one_client_with_budget(cached_run, unequal):
    settings = unequal | {"num_examples_public": True, "target_epsilon": 0.0}
    free, _ = cached_run(**settings | {"num_rounds": 5})
    smallest, middle, largest = (epsilons(free, partition) for partition in range(CLIENTS))
    settings["target_epsilon"] = (middle[2] + middle[3]) / 2
    assert smallest[2] > settings["target_epsilon"] > largest[4]
    result, printed = cached_run(**settings)
    end = "1 of 3 clients have privacy budget left, 2 are needed (min-replies = 2)"
    assert f"the run ends after round 3: {end}" in printed
    assert participants(result)[-1] == [1, 2]
    assert result.summary["rounds"] == 3
    # What the largest client spent on the round that was not kept is recorded.
    spent = json.loads((result.path / BUDGETS).read_text())
    assert spent["epsilon"]["2"] == largest[3]
    assert spent["unreported"] == []
    alone, _ = cached_run(**settings, min_replies=1)
    assert participants(alone)[:3] == participants(result)
    assert participants(alone)[-1] == [2]


def test_a_round_is_repeated_where_spent_budgets_leave_too_few_replies(cached_run, unequal):
    settings = unequal | {"fraction_train": 0.7}
    result, printed = cached_run(**settings)
    assert "is repeated without the clients that have no budget" in printed
    assert all(len(partitions) == 2 for partitions in participants(result))


def test_a_target_that_no_noise_reaches_leaves_no_folder(tmp_path, refused, kind):
    settings = {"privacy": kind, "target-epsilon": 1e-4, "output-dir": str(tmp_path / "run")}
    with refused("target-epsilon = 0.0001: no noise is enough"):
        simulate(TINY | settings, CLIENTS, quiet=True)
    assert not (tmp_path / "run").exists()


def test_client_dp_refuses_a_delta_too_large_for_the_clients(run, refused):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0, "num_rounds": 1}
    with refused("target-delta = 0.34", "1 / number of clients = 1 / 3"):
        run(**settings, target_delta=0.34)
    assert run(**settings, target_delta=0.33)[0].summary["delta"] == 0.33


def test_client_dp_ends_when_the_model_has_grown_too_large_for_its_clipping_norm(run):
    """Noise of 33 per parameter makes it so large that it could not hold updates of 0.01."""
    line = (
        r"^round 2: max-update-norm = 0\.01: must be at least .*; the rounds before are in .*out$"
    )
    with pytest.raises(RunFailedError, match=line):
        run(privacy="client-dp", noise_multiplier=1e4, max_update_norm=0.01, num_rounds=3)
