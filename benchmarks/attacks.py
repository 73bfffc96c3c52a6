"""Malicious clients, for benchmarks and tests only: they show which rules tolerate them.

`AttackedClientApp` runs our ClientApp. Some partitions, selected by a seed, are malicious and send
something else in place of their local parameters. With w the global parameters and Δ the update of
an honest client:

- ``label-flip``: they train with the label K - 1 - y in place of y, for K labels.
- ``sign-flip``: they send w - Δ.
- ``scale``: they send w + 10 Δ.
- ``noise``: they add independent N(0, 1) noise to every number of w.
- ``alie``: "a little is enough" (Baruch, Baruch and Goldberg, 2019, arXiv 1902.06156, algorithm 3):
  all send μ - z σ. Mean μ and standard deviation σ are those of the malicious clients' honest
  parameters, number by number.
- ``ipm``: inner product manipulation (Xie, Koyejo and Gupta, 2019, arXiv 1903.03936): all send
  w - 2 Δ̄, where Δ̄ is the mean update of the malicious clients.

In the last two the malicious clients collude: each of them uses the data of all of them. Nobody
uses the data of an honest client.
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

SCALE_FACTOR, IPM_FACTOR = 10.0, 2.0
Arrays = dict[str, Any]
# Returns what a malicious client sends. Arguments: the global arrays; the honest arrays of the
# colluding clients, its own first; its random generator; the numbers of clients and of malicious
# clients.
Attack = Callable[[Arrays, Sequence[Arrays], np.random.Generator, int, int], Arrays]


def _along_update(factor: float) -> Attack:
    def attack(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
        return {k: sent[k] + factor * (honest[0][k] - sent[k]) for k in sent}

    return attack


def _noise(sent: Arrays, honest: Sequence[Arrays], rng: np.random.Generator, *_: object) -> Arrays:
    return {name: array + rng.normal(size=array.shape) for name, array in sent.items()}


def _alie(
    sent: Arrays,
    honest: Sequence[Arrays],
    rng: np.random.Generator,
    num_clients: int,
    num_malicious: int,
) -> Arrays:
    supporters = num_clients // 2 + 1 - num_malicious
    num_honest = num_clients - num_malicious
    z = NormalDist().inv_cdf((num_honest - supporters) / num_honest)
    stacks = {name: np.stack([arrays[name] for arrays in honest]) for name in sent}
    return {name: stack.mean(0) - z * stack.std(0) for name, stack in stacks.items()}


def _ipm(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
    mean = {name: np.mean([arrays[name] for arrays in honest], axis=0) for name in sent}
    return {name: sent[name] - IPM_FACTOR * (mean[name] - sent[name]) for name in sent}


def _own_parameters(sent: Arrays, honest: Sequence[Arrays], *_: object) -> Arrays:
    return honest[0]


ATTACKS: Mapping[str, Attack] = {
    "label-flip": _own_parameters,  # which were trained on flipped labels
    "sign-flip": _along_update(-1.0),
    "scale": _along_update(SCALE_FACTOR),
    "noise": _noise,
    "alie": _alie,
    "ipm": _ipm,
}
COLLUDING_ATTACKS = {"alie", "ipm"}


class AttackedClientApp(ClientApp):
    """Our ClientApp, in which a `fraction` of `num_clients` partitions carry out `attack`.

    `seed` selects the malicious partitions and seeds their noise. Messages other than training are
    answered honestly.
    """

    def __init__(self, attack: str, fraction: float, num_clients: int, seed: int) -> None:
        super().__init__()
        self.attack = attack
        self.num_clients = num_clients
        self.seed = seed
        rng = np.random.default_rng(seed)
        selected = rng.choice(num_clients, round(fraction * num_clients), replace=False)
        self.malicious = sorted(int(partition) for partition in selected)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer for the partition that `context` names."""
        partition = int(context.node_config.get("partition-id", -1))
        training = message.metadata.message_type == MessageType.TRAIN
        if partition not in self.malicious or not training:
            return client_app.app(message, context)
        own, *others = self._honest_replies(message, context, partition)
        if own.has_error():
            return own
        sent = _arrays(message)
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        rng = np.random.default_rng([self.seed, partition, server_round])
        honest = [_arrays(reply) for reply in (own, *others)]
        attack = ATTACKS[self.attack]
        arrays = attack(sent, honest, rng, self.num_clients, len(self.malicious))
        record = ArrayRecord(
            {name: Array(np.asarray(arrays[name]).astype(sent[name].dtype)) for name in sent}
        )
        own.content = RecordDict({**dict(own.content.items()), "arrays": record})
        return own

    def _honest_replies(self, message: Message, context: Context, partition: int) -> list[Message]:
        """Return the client's own reply before the attack, then those of its accomplices."""
        if self.attack == "label-flip":
            return [_reply_from_flipped_labels(message, context)]
        others = [p for p in self.malicious if p != partition]
        partitions = [partition, *(others if self.attack in COLLUDING_ATTACKS else [])]
        return [
            client_app.app(
                message, replace(context, node_config={**context.node_config, "partition-id": p})
            )
            for p in partitions
        ]


def _reply_from_flipped_labels(message: Message, context: Context) -> Message:
    """Return the reply of the client of `context` after training on the labels K - 1 - y."""
    original_fit = FrozenClient.fit

    def fit(self: FrozenClient, *arguments: Any) -> Any:
        train = self.data.train
        flipped = replace(train, labels=len(self.labels) - 1 - train.labels)
        self.data = replace(self.data, train=flipped)
        return original_fit(self, *arguments)

    FrozenClient.fit = fit  # type: ignore[method-assign, assignment]
    try:
        return client_app.app(message, context)
    finally:
        FrozenClient.fit = original_fit  # type: ignore[method-assign]


def _arrays(message: Message) -> Arrays:
    record = message.content.array_records["arrays"]
    return {name: array.numpy() for name, array in record.items()}
