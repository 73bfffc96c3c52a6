"""Clients that lie, to see which rules hold: for benchmarks and tests only.

`Attacked` runs our ClientApp and lets some partitions, chosen by a seed, answer as an attack says:

- ``label-flip``: they train on the labels K - 1 - y.
- ``sign-flip``: they send w - Δ in place of w + Δ.
- ``scale``: they send w + 10 Δ.
- ``noise``: they send w + N(0, 1) in every number.
- ``alie``: "a little is enough" (Baruch, Baruch and Goldberg, 2019, arXiv 1902.06156, algorithm 3):
  all send μ - z σ, with mean and deviation, number by number, of what they would have sent.
- ``ipm``: inner product manipulation (Xie, Koyejo and Gupta, 2019, arXiv 1903.03936): all send
  w - ε Δ̄ with the mean of what they would have sent, ε = 2.

The last two know one another's data and nothing of the others'.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedattn_app import client_app
from fedattn_app.clients.base import FrozenClient

SCALE, IPM_EPSILON = 10.0, 2.0
Arrays = dict[str, Any]
# What an attacker sends: from what it was sent, what the colluders would send (its own first), a
# generator of its own, and how many clients and attackers there are.
Lie = Callable[[Arrays, Sequence[Arrays], np.random.Generator, int, int], Arrays]


def _along(factor: float) -> Lie:
    def lie(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
        return {k: sent[k] + factor * (honest[0][k] - sent[k]) for k in sent}

    return lie


def _noise(sent: Arrays, honest: Sequence[Arrays], rng: np.random.Generator, *_: object) -> Arrays:
    return {name: array + rng.normal(size=array.shape) for name, array in sent.items()}


def _alie(
    sent: Arrays, honest: Sequence[Arrays], rng: np.random.Generator, clients: int, liars: int
) -> Arrays:
    supporters = clients // 2 + 1 - liars
    z = NormalDist().inv_cdf((clients - liars - supporters) / (clients - liars))
    stacks = {name: np.stack([arrays[name] for arrays in honest]) for name in sent}
    return {name: stack.mean(0) - z * stack.std(0) for name, stack in stacks.items()}


def _ipm(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
    mean = {name: np.mean([arrays[name] for arrays in honest], axis=0) for name in sent}
    return {name: sent[name] - IPM_EPSILON * (mean[name] - sent[name]) for name in sent}


def _honest(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
    return honest[0]


LIES: Mapping[str, Lie] = {
    "label-flip": _honest,  # of what it has learned from false labels
    "sign-flip": _along(-1.0),
    "scale": _along(SCALE),
    "noise": _noise,
    "alie": _alie,
    "ipm": _ipm,
}
COLLUDING = {"alie", "ipm"}


class Attacked(ClientApp):
    """Our app with a `fraction` of `clients` partitions that answer as `attack` says."""

    def __init__(self, attack: str, fraction: float, clients: int, seed: int) -> None:
        super().__init__()
        self.attack = attack
        self.clients = clients
        self.seed = seed
        rng = np.random.default_rng(seed)
        chosen = rng.choice(clients, round(fraction * clients), replace=False)
        self.attackers = sorted(int(partition) for partition in chosen)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer for the partition that `context` names."""
        partition = int(context.node_config.get("partition-id", -1))
        training = message.metadata.message_type == MessageType.TRAIN
        if partition not in self.attackers or not training:
            return client_app.app(message, context)
        own, *others = self._honest_replies(message, context, partition)
        if own.has_error():
            return own
        sent = _arrays(message)
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        rng = np.random.default_rng([self.seed, partition, server_round])
        told = [_arrays(reply) for reply in (own, *others)]
        lie = LIES[self.attack](sent, told, rng, self.clients, len(self.attackers))
        record = ArrayRecord(
            {name: Array(np.asarray(lie[name]).astype(sent[name].dtype)) for name in sent}
        )
        own.content = RecordDict({**dict(own.content.items()), "arrays": record})
        return own

    def _honest_replies(self, message: Message, context: Context, partition: int) -> list[Message]:
        """Return what the attacker itself, and with it those it colludes with, would send."""
        if self.attack == "label-flip":
            return [_on_false_labels(message, context)]
        others = [p for p in self.attackers if p != partition] * (self.attack in COLLUDING)
        return [
            client_app.app(
                message, replace(context, node_config={**context.node_config, "partition-id": p})
            )
            for p in (partition, *others)
        ]


def _on_false_labels(message: Message, context: Context) -> Message:
    """Let the client of `context` train on the labels K - 1 - y."""
    honest = FrozenClient.fit

    def fit(self: FrozenClient, *arguments: Any) -> Any:
        train = self.data.train
        false = replace(train, labels=len(self.labels) - 1 - train.labels)
        self.data = replace(self.data, train=false)
        return honest(self, *arguments)

    FrozenClient.fit = fit  # type: ignore[method-assign]
    try:
        return client_app.app(message, context)
    finally:
        FrozenClient.fit = honest  # type: ignore[method-assign]


def _arrays(message: Message) -> Arrays:
    record = message.content.array_records["arrays"]
    return {name: array.numpy() for name, array in record.items()}
