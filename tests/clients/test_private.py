"""The replies and the noise of a private client, and that it writes the ledger first."""

import errno
import os

import numpy as np
import pytest
from flwr.app import RecordDict
from helpers.dp_sgd_clients import DELTA, client_of, equal, evaluate, fit

from fedattn_app.clients import private as private_client
from fedattn_app.clients.agreement import MismatchError
from fedattn_app.clients.node_state import FolderState
from fedattn_app.clients.private import PrivateClient
from fedattn_app.data.triage import LABELS
from fedattn_app.errors import UserError
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.privacy import ledger as ledger_module
from fedattn_app.privacy.accounting import Steps, epsilon_of
from fedattn_app.privacy.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread")


# Replies


def test_a_reply_has_only_epsilon_and_whether_the_budget_is_spent():
    client = client_of()
    start = client.get_parameters({})
    arrays, num_examples, metrics = client.fit(start, {"server-round": 1})
    assert num_examples == 1
    assert metrics == {"epsilon": client.epsilon, "budget-spent": 0}
    assert client.epsilon == epsilon_of([Steps(1.0, 1.0, 1)], DELTA)
    assert not any(np.array_equal(a, b) for a, b in zip(arrays, start, strict=True))
    assert all(np.isfinite(array).all() for array in arrays)


def test_a_public_number_of_examples_is_reported(trainings):
    assert fit(client_of(num_examples=37, num_examples_public=True))[1] == 37


@pytest.mark.parametrize(("public", "same"), [(False, True), (True, False)])
def test_epsilon_does_not_reveal_the_number_of_examples(trainings, public, same):
    epsilons = [
        fit(client_of(num_examples=n, num_examples_public=public, batch_size=64))[2]["epsilon"]
        for n in (300, 500)
    ]
    assert (epsilons[0] == epsilons[1]) == same


@pytest.mark.parametrize(("num_examples", "rate", "steps"), [(40, 1.0, 1), (1, 1.0, 1)])
def test_a_batch_size_above_the_number_of_examples_samples_all(
    trainings, num_examples, rate, steps
):
    client = client_of(num_examples=num_examples, held_out=0, batch_size=1000)
    assert fit(client)[1] == 1
    assert trainings == client.ledger.mechanisms == [Steps(1.0, rate, steps)]


def test_a_client_without_examples_has_no_cost(trainings):
    client = client_of(num_examples=0, held_out=0, evaluate_epsilon=1.0)
    start = client.get_parameters({})
    arrays, num_examples, metrics = fit(client)
    assert equal(arrays, start)
    assert (num_examples, metrics) == (0, {"epsilon": 0.0, "budget-spent": 0})
    _, num_examples, metrics = evaluate(client)
    assert num_examples == sum(metrics.values()) == 0
    assert trainings == client.ledger.entries == []


@pytest.mark.parametrize(("num_examples", "held_out"), [(40, 0), (36, 4), (4, 36)])
def test_a_delta_above_one_over_all_examples_is_refused(refused, num_examples, held_out):
    with refused("target-delta = 0.1", "1 / 40 = 0.025"):
        client_of(num_examples=num_examples, held_out=held_out, target_delta=0.1)


@pytest.mark.parametrize(("num_examples", "delta"), [(40, 0.0249), (1, 0.9), (0, 0.9)])
def test_a_delta_below_one_over_all_examples_is_accepted(num_examples, delta):
    client_of(num_examples=num_examples, held_out=0, target_delta=delta)


def test_a_delta_of_one_over_all_examples_is_refused(refused):
    with refused("target-delta = 0.025", "1 / 40"):
        client_of(num_examples=30, held_out=10, target_delta=1 / 40)


# Noise


def test_the_noise_is_fresh_unless_it_is_reproducible():
    fits = [fit(client_of(batch_size=8))[0] for _ in range(2)]
    assert not any(np.array_equal(a, b) for a, b in zip(*fits, strict=True))
    fits = [fit(client_of(batch_size=8, reproducible_noise=True))[0] for _ in range(2)]
    assert equal(*fits)


def test_reproducible_noise_differs_between_rounds_and_purposes():
    client = client_of(reproducible_noise=True)
    streams = [client._random(*stream) for stream in ((1, "train"), (2, "train"), (1, "evaluate"))]
    assert len({tuple(stream.uniform(4).tolist()) for stream in streams}) == 3


def test_personal_parameters_are_trained_with_noise_and_saved(tmp_path):
    """Four steps are needed: after one, AdamW has moved each weight by ± the learning rate."""
    kept = []
    for folder in ("a", "b"):
        state = FolderState(tmp_path / folder)
        client = client_of(state=state, shared="attention", local="personal", batch_size=8)
        fit(client)
        kept.append(state.load(client.state_name))
    start = get_arrays(build_model(client.config.model, len(LABELS), 1))
    assert set(kept[0]) == set(start) - set(client.shared)
    for name in kept[0]:
        values = [kept[0][name], kept[1][name], start[name]]
        assert not any(np.array_equal(values[i - 1], values[i]) for i in range(3)), name


def test_different_frozen_parameters_cost_nothing(trainings):
    client = client_of(evaluate_epsilon=1.0)
    for call in (client.fit, client.evaluate):
        with pytest.raises(MismatchError):
            call(client.get_parameters({}), {"server-round": 1, "frozen-fingerprint": "other"})
    assert trainings == client.ledger.entries == []


# The ledger is written first


@pytest.mark.parametrize("call", [fit, evaluate])
def test_the_entry_is_on_disk_before_anything_is_computed(tmp_path, monkeypatch, call):
    path, found = tmp_path / "ledger.json", []

    def read_ledger(*_):
        found.extend(Ledger(RecordDict(), path).entries)
        raise KeyboardInterrupt

    monkeypatch.setattr(private_client, "train_privately", read_ledger)
    monkeypatch.setattr(private_client, "evaluate", read_ledger)
    client = client_of(Ledger(RecordDict(), path), evaluate_epsilon=1.0)
    with pytest.raises(KeyboardInterrupt):
        call(client, 5)
    (entry,) = found
    assert (entry.kind, entry.run, entry.server_round) == (
        {fit: "train", evaluate: "evaluate"}[call],
        1,
        5,
    )
    assert (entry.epsilon, entry.delta) == (client.epsilon, DELTA)


def test_a_client_whose_ledger_cannot_be_written_computes_nothing(
    refused, tmp_path, trainings, monkeypatch
):
    monkeypatch.setattr(PrivateClient, "_noisy_counts", lambda *_: trainings.append(None))
    path = tmp_path / "ledger.json"
    client = client_of(Ledger(RecordDict(), path), evaluate_epsilon=1.0)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ledger_module, "write_atomically", fail)
    for call in (fit, evaluate):
        with refused(path, "cannot be written"):
            call(client)
    assert trainings == []


def test_a_node_whose_ledger_is_lost_stops(trainings, tmp_path):
    path, copy = tmp_path / "ledger.json", RecordDict()
    client = client_of(Ledger(copy, path), evaluate_epsilon=1.0)
    fit(client, 1)
    path.unlink()
    for task in (fit, evaluate):
        with pytest.raises(UserError, match="lacks entries that this node has written"):
            task(client, 2)
    assert len(trainings) == 1
    assert not path.exists()
    with pytest.raises(UserError, match="lacks entries that this node has written"):
        Ledger(copy, path)  # as when the node's process starts again
