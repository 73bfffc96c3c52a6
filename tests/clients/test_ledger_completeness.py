"""The ledger of a private client is complete, wherever its process ends."""

import contextlib
import math
from collections import Counter

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from flwr.app import RecordDict
from helpers.dp_sgd_clients import DELTA, client_of, evaluate, fit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedattn_app.clients import private as private_client
from fedattn_app.clients.private import PrivateClient
from fedattn_app.data.triage import LABELS
from fedattn_app.privacy import ledger as ledger_module
from fedattn_app.privacy.accounting import Steps
from fedattn_app.privacy.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread")


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
