"""What a run with differential privacy reports, and where its noise comes from."""

import numpy as np
import pytest
from helpers.private_clients import CLIENTS, TINY, bits, epsilons, participants

from fedattn_app.simulation import simulate


@pytest.fixture(scope="module")
def private(cached_run, kind):
    """Two rounds on the built-in corpus."""
    quick = {"batch_size": 64, "physical_batch_size": 64, "max_length": 16}
    return cached_run(dataset="triage", privacy=kind, noise_multiplier=1.0, num_rounds=2, **quick)


def test_epsilon_is_in_results_summary_and_log(private, kind):
    result, printed = private
    assert participants(result) == [[0, 1, 2]] * 2
    for partition in range(CLIENTS):
        first, second = epsilons(result, partition)
        assert 0 < first < second
    lines = [line for line in printed.splitlines() if line.startswith("round ")]
    assert result.history[0]["epsilon_max"] is None
    assert "ε" not in lines[0]
    for row, line in zip(result.history[1:], lines[1:], strict=True):
        clients = [c["epsilon"] for c in result.clients if c["round"] == row["round"]]
        assert row["epsilon_max"] == max(clients)
        assert f"ε {max(clients):.3g}  " in line
    assert result.summary["privacy"] == kind
    assert result.summary["epsilon"] == result.history[-1]["epsilon_max"]
    assert result.summary["delta"] == 1e-5
    assert "epsilon_unreported" not in result.summary


def test_without_privacy_there_is_no_epsilon(cached_run):
    result, printed = cached_run(num_rounds=1)
    assert {row["epsilon_max"] for row in result.history} == {None}
    assert {row["epsilon"] for row in result.clients} == {None}
    assert result.summary["epsilon"] is None
    assert result.summary["delta"] is None
    assert "ε" not in printed


@pytest.mark.parametrize("kind", ["dp-sgd"], indirect=True)
def test_dp_sgd_reports_no_exact_metric(private):
    result, printed = private
    for row in result.clients:
        exact = {row[key] for key in ("num_examples", "accuracy", "loss", "seconds")}
        assert exact == {None}
    for row in result.history:
        assert (row["train"], row["evaluate"]) == (None, None)
    assert result.summary["worst_client_accuracy"] is None
    assert "clients do not evaluate (evaluate-epsilon = 0)" in printed
    # The server has a test set of its own.
    assert 0 <= result.summary["accuracy"] == result.history[-1]["central"]["accuracy"] <= 1


def test_the_number_of_examples_is_reported_if_it_is_public(cached_run):
    settings = {"privacy": "dp-sgd", "noise_multiplier": 1.0, "num_rounds": 1}
    public, _ = cached_run(**settings, partitioner="linear", num_examples_public=True)
    assert [row["num_examples"] for row in public.clients] == [36, 72, 108]
    assert {row["accuracy"] for row in public.clients} == {None}
    secret, _ = cached_run(**settings)
    assert {row["num_examples"] for row in secret.clients} == {None}


def test_noisy_counts_are_pooled_if_evaluation_has_a_budget(cached_run):
    settings = {"privacy": "dp-sgd", "noise_multiplier": 1.0, "num_rounds": 2}
    result, printed = cached_run(**settings, evaluate_epsilon=8.0)
    for row in result.history[1:]:
        assert row["evaluate"] is not None
        assert row["evaluate"]["loss"] is None
        assert 0 <= row["evaluate"]["accuracy"] <= 1
    assert {row["accuracy"] for row in result.clients} == {None}
    assert result.summary["accuracy"] == result.history[-1]["evaluate"]["accuracy"]
    assert result.summary["worst_client_accuracy"] is None
    assert "noisy held-out accuracy" in printed
    assert "clients do not evaluate" not in printed
    silent, _ = cached_run(**settings)
    assert silent.history[-1]["evaluate"] is None
    assert result.summary["epsilon"] > silent.summary["epsilon"]


def test_scores_dominated_by_noise_stay_between_0_and_1(cached_run):
    result, _ = cached_run(
        privacy="dp-sgd", noise_multiplier=1.0, num_rounds=3, evaluate_epsilon=0.05, seed=3
    )
    # A round has no scores if all noisy numbers of examples are below 1.
    for row in result.history[1:]:
        assert row["evaluate"] is None or 0 <= row["evaluate"]["accuracy"] <= 1


# Noise


@pytest.fixture(scope="module")
def repeated(kind):
    return {"privacy": kind, "noise_multiplier": 1.0, "num_rounds": 2}


def test_noise_from_the_seed_repeats_and_the_summary_says_so(run, cached_run, repeated):
    first, printed = cached_run(**repeated, reproducible_noise=True)
    again, _ = run(**repeated, reproducible_noise=True)
    assert bits(first) == bits(again)
    note = first.summary["privacy_note"]
    assert "holds for nobody" in note
    assert f"reproducible-noise: {note}" in printed


def test_noise_from_the_system_does_not_repeat(run, cached_run, repeated):
    first, _ = cached_run(**repeated)
    np.random.seed(0)
    again, _ = run(**repeated)
    same = {name for name, array in bits(first).items() if array == bits(again)[name]}
    assert same == {name for name in first.arrays if ".attention." not in name} - {
        *("head.weight", "head.bias")
    }
    assert first.summary["epsilon"] == again.summary["epsilon"]


def test_the_summary_says_which_files_the_epsilon_of_client_dp_covers(private, kind):
    note = private[0].summary.get("privacy_note", "")
    assert ("model.safetensors" in note) == (kind == "client-dp")


@pytest.mark.slow
def test_flowers_engine_gives_the_same_bits(cached_run, repeated, opinions, tmp_path):
    local, _ = cached_run(**repeated, reproducible_noise=True)
    settings = {name.replace("_", "-"): value for name, value in repeated.items()}
    settings |= {"reproducible-noise": True, "output-dir": str(tmp_path / "flower")}
    flower = simulate(TINY | opinions | settings, CLIENTS, engine="flower", quiet=True)
    assert bits(flower) == bits(local)
    assert [row["epsilon"] for row in flower.clients] == [row["epsilon"] for row in local.clients]
