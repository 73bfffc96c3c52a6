"""The replies, noise and ε of a private client, and that its ledger is always complete."""

import contextlib
import math
import multiprocessing
import time
from collections import Counter

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from flwr.app import RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedattn_app.clients import private as private_client
from fedattn_app.clients.base import FrozenClient, FrozenMismatchError
from fedattn_app.clients.node_state import ContextState, FolderState
from fedattn_app.clients.private import PrivateClient
from fedattn_app.config import Config
from fedattn_app.data.examples import ClientData
from fedattn_app.data.loading import client_data
from fedattn_app.data.triage import LABELS
from fedattn_app.errors import UserError
from fedattn_app.models.parameters import get_arrays
from fedattn_app.models.transformer import build_model
from fedattn_app.privacy import ledger as ledger_module
from fedattn_app.privacy.accounting import Steps, epsilon_of
from fedattn_app.privacy.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread")

DELTA = 1e-5


def config_of(**changes):
    keys = {"model": "tiny", "vocabulary": 512, "privacy": "dp-sgd", "batch-size": 32}
    if not {"noise_multiplier", "target_epsilon"} & set(changes):
        changes["noise_multiplier"] = 1.0
    return Config.from_run_config(keys | {k.replace("_", "-"): v for k, v in changes.items()})


def data_of(config, num_examples=32, held_out=20):
    data = client_data(config.data, config.model, 1, 0, 3)

    def resized(examples, count):
        return examples[np.arange(count) % len(examples)]

    return ClientData(resized(data.train, num_examples), resized(data.validation, held_out))


def client_of(
    ledger=None, num_examples=32, held_out=20, run=1, max_epsilon=math.inf, state=None, **changes
):
    config = config_of(**changes)
    return PrivateClient(
        config,
        LABELS,
        data_of(config, num_examples, held_out),
        0,
        state or ContextState(RecordDict()),
        ledger or Ledger(RecordDict()),
        run,
        max_epsilon,
    )


def fit(client, server_round=1):
    return client.fit(client.get_parameters({}), {"server-round": server_round})


def evaluate(client, server_round=1):
    return client.evaluate(client.get_parameters({}), {"server-round": server_round})


def equal(left, right):
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@pytest.fixture
def trainings(monkeypatch):
    """Replace training by a record of the steps that noise would have been drawn for."""
    steps = []

    def record(model, trainable, examples, config, sampling, noise, *_):
        steps.append(Steps(noise.multiplier, sampling.rate, sampling.steps))

    monkeypatch.setattr(private_client, "train_privately", record)
    monkeypatch.setattr(private_client, "_engine", lambda *_: None)
    return steps


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
        with pytest.raises(FrozenMismatchError):
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
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "ledger.json"
    client = client_of(Ledger(RecordDict(), path), evaluate_epsilon=1.0)
    for call in (fit, evaluate):
        with refused(path, "cannot be written"):
            call(client)
    assert trainings == []


# ε


def test_two_rounds_cost_as_much_as_one_with_twice_the_steps(trainings):
    twice, once = client_of(batch_size=16), client_of(batch_size=16, local_epochs=2)
    for server_round in (1, 2):
        *_, last = fit(twice, server_round)
    *_, expected = fit(once)
    assert last["epsilon"] == pytest.approx(expected["epsilon"], rel=1e-9)
    assert last["epsilon"] == pytest.approx(epsilon_of([Steps(1.0, 0.5, 4)], DELTA), rel=1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_a_budget_lasts_for_exactly_its_rounds(trainings, accountant):
    client = client_of(target_epsilon=2.0, num_rounds=3, accountant=accountant)
    start = client.get_parameters({})
    replies = [fit(client, server_round)[2] for server_round in (1, 2, 3)]
    assert [metrics["budget-spent"] for metrics in replies] == [0, 0, 0]
    assert 1.99 < replies[-1]["epsilon"] <= 2.0 * (1 + 1e-6)
    assert len(set(trainings)) == 1
    assert len(trainings) == 3
    entries = client.ledger.entries
    arrays, num_examples, metrics = client.fit(start, {"server-round": 4})
    assert all(a is b for a, b in zip(arrays, start, strict=True))
    assert (num_examples, metrics) == (0, {"epsilon": replies[-1]["epsilon"], "budget-spent": 1})
    assert client.ledger.entries == entries
    assert len(trainings) == 3


def test_a_client_that_joins_late_uses_its_whole_budget(trainings):
    client = client_of(target_epsilon=2.0, num_rounds=10)
    assert fit(client, 9)[2]["epsilon"] < 1.99 < fit(client, 10)[2]["epsilon"] <= 2.000002


def test_the_next_run_has_the_rest_of_the_budget(trainings, tmp_path):
    path = tmp_path / "ledger.json"
    for run, target in enumerate((2.0, 4.0)):
        client = client_of(Ledger(RecordDict(), path), run=run, target_epsilon=target, num_rounds=2)
        assert [fit(client, number)[2]["budget-spent"] for number in (1, 2)] == [0, 0]
        assert target - 0.01 < client.epsilon <= target * (1 + 1e-6)
    client = client_of(Ledger(RecordDict(), path), run=3, target_epsilon=3.9)
    assert fit(client)[2]["budget-spent"] == 1
    assert len(trainings) == 4


def test_a_given_noise_multiplier_stops_at_the_target(trainings):
    client = client_of(noise_multiplier=2.0, target_epsilon=6.0)
    replies = [fit(client, number)[2] for number in range(1, 12)]
    rounds = [metrics["budget-spent"] for metrics in replies].index(1)
    assert set(trainings) == {Steps(2.0, 1.0, 1)}
    assert len(trainings) == rounds
    assert all(metrics["budget-spent"] for metrics in replies[rounds:])
    step = Steps(2.0, 1.0, 1)
    assert epsilon_of([step] * rounds, DELTA) <= 6.0 < epsilon_of([step] * (rounds + 1), DELTA)


def test_a_given_noise_multiplier_without_a_target_never_stops(trainings):
    client = client_of(noise_multiplier=0.5, num_rounds=2)
    replies = [fit(client, number)[2] for number in range(1, 6)]
    assert not any(metrics["budget-spent"] for metrics in replies)


def test_the_owners_limit_covers_all_runs_and_kinds_together(trainings, tmp_path):
    path = tmp_path / "ledger.json"
    limit = epsilon_of([Steps(1.0, 1.0, 2)], DELTA) * (1 + 1e-9)
    for run, spent in enumerate((0, 0, 1)):
        ledger = Ledger(RecordDict(), path)
        client = client_of(ledger, run=run, max_epsilon=limit, evaluate_epsilon=1.0)
        assert fit(client)[2]["budget-spent"] == spent
        assert client.epsilon <= limit
    _, num_examples, metrics = evaluate(client)
    assert metrics.pop("budget-spent") == 1
    assert metrics.pop("epsilon") == client.epsilon
    assert num_examples == sum(metrics.values()) == 0
    assert len(ledger.entries) == len(trainings) == 2


def test_two_processes_do_not_spend_the_same_budget(trainings, tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    clients = [client_of(Ledger(RecordDict(), path), run=run, max_epsilon=6.0) for run in (1, 2)]

    def hesitate(ledger, entry, add=Ledger.add):
        time.sleep(0.3)
        add(ledger, entry)

    monkeypatch.setattr(Ledger, "add", hesitate)
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=fit, args=(client,), daemon=True) for client in clients]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(Ledger(RecordDict(), path).entries) == 1


def test_the_reason_is_logged_where_no_noise_is_enough(trainings, caplog):
    client = client_of(target_epsilon=1e-5, target_delta=1e-12)
    assert fit(client)[2] == {"epsilon": 0.0, "budget-spent": 1}
    assert "the rest of ε = 1e-05 is too small to train for" in caplog.text


def test_a_tighter_accountant_does_not_lower_the_reported_epsilon(trainings):
    ledger = Ledger(RecordDict())
    reported = fit(client_of(ledger))[2]["epsilon"]
    client = client_of(ledger, run=2, accountant="prv")
    assert epsilon_of(ledger.mechanisms, DELTA, "prv") < client.epsilon == reported


# Evaluation


def test_a_node_does_not_evaluate_without_a_budget_for_it(refused):
    client = client_of()
    with refused("evaluate-epsilon = 0"):
        evaluate(client)
    assert client.ledger.entries == []


def test_evaluation_has_its_own_budget(trainings):
    client = client_of(evaluate_epsilon=1.0, target_epsilon=2.0, num_rounds=2)
    for server_round in (1, 2):
        assert fit(client, server_round)[2]["budget-spent"] == 0
        loss, _, metrics = evaluate(client, server_round)
        assert (loss, metrics["budget-spent"]) == (0.0, 0)
    assert evaluate(client, 3)[2]["budget-spent"] == fit(client, 3)[2]["budget-spent"] == 1
    for kind, target in (("train", 2.0), ("evaluate", 1.0)):
        entries = client.ledger.entries_of(kind, 1)
        assert [entry.server_round for entry in entries] == [1, 2]
        assert len({entry.noise_multiplier for entry in entries}) == 1
        spent = epsilon_of([entry.mechanism for entry in entries], DELTA)
        assert 0.99 * target < spent <= target
    assert {e.mechanism.sample_rate for e in client.ledger.entries_of("evaluate")} == {1.0}
    assert client.epsilon == epsilon_of(client.ledger.mechanisms, DELTA) > 2.0


def test_noisy_counts_have_the_noise_of_the_ledger():
    """An example is in at most three counts, so the deviation is √3 σ, plus rounding."""
    rounds = 60
    client = client_of(evaluate_epsilon=20.0, num_rounds=rounds, reproducible_noise=True)
    public = Config.from_run_config({"model": "tiny", "vocabulary": 512})
    exact = FrozenClient(public, LABELS, client.data)
    *_, true = exact.evaluate(client.get_parameters({}), {})
    keys = [f"{kind}-{k}" for kind in ("support", "predicted", "correct") for k in range(6)]
    errors = []
    for server_round in range(1, rounds + 1):
        _, num_examples, metrics = evaluate(client, server_round)
        assert set(metrics) == {"epsilon", "budget-spent", *keys}
        assert num_examples == max(0, sum(metrics[key] for key in keys[:6]))
        errors += [metrics[key] - true[key] for key in keys]
    assert all(isinstance(metrics[key], int) for key in keys)
    (noise,) = {entry.noise_multiplier for entry in client.ledger.entries_of("evaluate")}
    squares = np.square(errors).sum() / (3 * noise**2 + 1 / 12)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], len(errors))
    assert low < squares < high
    assert abs(np.mean(errors)) < 4 * math.sqrt(3 * noise**2 / len(errors))


def test_noisy_scores_do_not_repeat():
    client = client_of(evaluate_epsilon=1.0)
    first, second = (evaluate(client)[2] for _ in range(2))
    assert first.pop("epsilon") < second.pop("epsilon")
    assert first != second


# The ledger is complete, whatever happens


ACTIONS = (
    "train",
    "evaluate",
    "die in training",
    "fail in training",
    "die before the ledger",
    "die after the ledger",
    "restart",
    "next run",
    "next round",
)


class Node:
    """A node whose process may end at any moment; `drawn` has the steps of all its noise."""

    def __init__(self, path, changes):
        self.path, self.changes = path, changes
        self.run, self.server_round = 1, 1
        self.drawn, self.reported = [], 0.0
        self.interrupts = False
        self.start()

    def start(self):
        self.client = client_of(Ledger(RecordDict(), self.path), run=self.run, **self.changes)

    def train(self, model, trainable, examples, config, sampling, noise, *_):
        self.record(Steps(noise.multiplier, sampling.rate, sampling.steps))

    def count(self, examples, deviation, random):
        self.record(Steps(deviation / math.sqrt(3), 1.0, 1))
        return np.zeros((3, len(LABELS)), dtype=np.int64)

    def record(self, steps):
        self.drawn.append(steps)
        if self.interrupts:
            raise KeyboardInterrupt

    def ask(self, call):
        *_, metrics = call(self.client, self.server_round)
        assert metrics["epsilon"] >= self.reported
        self.reported = metrics["epsilon"]

    def do(self, action):
        write = ledger_module.write_atomically

        def die(*arguments):
            if action == "die after the ledger":
                write(*arguments)
            raise KeyboardInterrupt

        match action:
            case "train":
                self.ask(fit)
            case "evaluate":
                self.ask(evaluate)
            case "next run":
                self.run, self.server_round = self.run + 1, 1
                self.start()
            case "next round":
                self.server_round += 1
            case "restart":
                self.start()
            case "die in training" | "fail in training":
                self.interrupts = True
                self.fit_interrupted()
                self.interrupts = False
            case _:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(ledger_module, "write_atomically", die)
                    self.fit_interrupted()
        if action.startswith("die"):
            self.start()

    def fit_interrupted(self):
        with contextlib.suppress(KeyboardInterrupt):  # not raised if the budget is spent
            self.ask(fit)

    def check(self):
        kept = Counter(map(rounded, self.client.ledger.mechanisms))
        assert Counter(map(rounded, self.drawn)) <= kept
        assert self.client.epsilon >= self.reported


def rounded(steps):
    return f"{steps.noise_multiplier:.9g}", steps.sample_rate, steps.count


@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=10),
    changes=st.sampled_from(
        [
            {"noise_multiplier": 2.0, "batch_size": 8},
            {"target_epsilon": 3.0, "num_rounds": 4},
            {"noise_multiplier": 1.0, "target_epsilon": 12.0},
            {"noise_multiplier": 1.0, "max_epsilon": 8.0},
        ]
    ),
)
@example(actions=[a for a in ACTIONS for _ in range(2)], changes={"target_epsilon": 3.0})
@settings(max_examples=30, deadline=None)
def test_the_ledger_has_all_steps_that_noise_was_drawn_for(tmp_path_factory, actions, changes):
    path = tmp_path_factory.mktemp("node") / "ledger.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_client, "_engine", lambda *_: None)
        node = Node(path, {"evaluate_epsilon": 2.0, **changes})
        patch.setattr(private_client, "train_privately", lambda *a: node.train(*a))
        patch.setattr(PrivateClient, "_noisy_counts", lambda _, *a: node.count(*a))
        for action in actions:
            node.do(action)
            node.check()
        node.start()
        node.check()
    theirs = RdpAccountant()
    for steps in node.drawn:
        noise = GaussianDpEvent(steps.noise_multiplier)
        theirs.compose(PoissonSampledDpEvent(steps.sample_rate, noise), steps.count)
    assert theirs.get_epsilon(DELTA) <= node.client.epsilon * 1.01
    assert node.reported <= node.client.epsilon <= changes.get("max_epsilon", math.inf)


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
