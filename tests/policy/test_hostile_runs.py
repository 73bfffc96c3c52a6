"""Hundreds of hostile run-configs: no node gives away a byte about its examples, except through ε.

Each is sent to two nodes whose files have the same number of rows, and nothing else in common. What
they answer must be equal, in every part that no noise covers.
"""

import json
import logging

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, RecordDict
from helpers.hostile_runs import DP, hostile_run_configs
from helpers.nodes import SETTINGS, ledger_of, message

from fedattn_app import client_app
from fedattn_app.clients import private as private_client
from fedattn_app.config import Config
from fedattn_app.errors import UserError
from fedattn_app.models.factory import num_parameters
from fedattn_app.policy.reasons import Reason
from fedattn_app.privacy.accounting import epsilon_of

pytestmark = pytest.mark.usefixtures("task_id")

HOSTILE = list(hostile_run_configs())
MAX_PARAMETERS = 4_000_000  # of a model that a test makes
LIMITS = {"max-epsilon": 6.0, "max-delta": 1e-5, "max-tokens": 512}
ROWS = {
    "first": [f"m {20 + k}y. cough and fever {k},{'no' if k % 3 else 'yes'}" for k in range(40)],
    "second": [f"Jane Doe the {k}th has HIV {'very ' * (k % 9)},HIV" for k in range(40)],
}
SECRETS = ("Jane", "HIV", "cough", "fever", "salary", "BEGIN KEY", "root:")


@pytest.fixture
def sites(tmp_path, monkeypatch):
    """Two folders, each of a node with its file and other files that are not for any run."""
    folders = []
    for name, rows in ROWS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "own.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        (folder / "other.csv").write_text(f"name,salary\n{name},1\n")
        (folder / "key.json").write_text(json.dumps([{"key": f"BEGIN KEY {name}"}]))
        folders.append(folder)
    return folders


def request_for(run_config, kind):
    """A message with the arrays of the run's own model where that is small, or else of another."""
    try:
        config = Config.from_run_config(run_config)
        small = not config.model.pretrained and "lora" not in config.federation.shared
        if small and num_parameters(config.model, 2) < MAX_PARAMETERS:
            return message(kind, run_config)
    except (UserError, ValueError):
        pass
    return message(kind)


def answer(folder, changes, kind, monkeypatch, own_data=True, **more):
    """The reply of a node in `folder` to a run with these settings, and its ledger's entries."""
    monkeypatch.chdir(folder)
    run_config = Config.from_run_config(SETTINGS).to_run_config() | changes
    node = {"state-dir": str(folder / "state"), **LIMITS, **more}
    if own_data:
        node["data-path"] = str(folder / "own.csv")
    context = Context(1, 2, node, RecordDict(), run_config)
    reply = client_app.app(request_for(SETTINGS | changes, kind), context)
    return reply, ledger_of(folder).entries


def public_part(reply):
    """What a reply says outside the values of its arrays, which noise covers."""
    if reply.has_error():
        return Reason(reply.error.reason)  # a fixed sentence, or the test fails here
    arrays = reply.content.array_records.get("arrays", {})
    shapes = {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()}
    return shapes, dict(reply.content["metrics"])


@pytest.fixture
def noises(monkeypatch):
    """The noise multipliers of all training in this process, which is left out to save time."""
    drawn = []

    def record(model, trainable, examples, config, sampling, noise, *_):
        drawn.append(noise.multiplier)

    monkeypatch.setattr(private_client, "train_privately", record)
    return drawn


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_run_learns_nothing(sites, monkeypatch, noises, caplog, number):
    caplog.set_level(logging.CRITICAL, "fedattn")
    answers = [answer(folder, HOSTILE[number], "train", monkeypatch) for folder in sites]
    (first, spent), (second, spent_too) = answers
    assert public_part(first) == public_part(second)
    assert [entry.epsilon for entry in spent] == [entry.epsilon for entry in spent_too]
    assert len(noises) == len(spent) + len(spent_too)  # nothing was computed without being recorded
    within = epsilon_of([entry.mechanism for entry in spent], LIMITS["max-delta"])
    assert within <= LIMITS["max-epsilon"]
    if not first.has_error():
        metrics = first.content["metrics"]
        assert set(metrics) == {"num-examples", "epsilon", "budget-spent"}


def test_there_are_at_least_two_hundred():
    assert len(HOSTILE) >= 200
    assert len({json.dumps(changes, sort_keys=True) for changes in HOSTILE}) >= 200


@pytest.mark.parametrize("changes", [c for c in HOSTILE if {"dataset", "data-path"} & set(c)])
def test_a_node_without_a_file_reads_none_that_a_run_names(sites, monkeypatch, changes):
    replies = [answer(folder, changes, "train", monkeypatch, own_data=False)[0] for folder in sites]
    assert public_part(replies[0]) == public_part(replies[1])
    assert replies[0].has_error()


@pytest.mark.parametrize("changes", HOSTILE[::7])
def test_no_evaluation_says_anything(sites, monkeypatch, changes):
    replies = [answer(folder, changes, "evaluate", monkeypatch)[0] for folder in sites]
    assert all(reply.has_error() or not reply.content["metrics"]["epsilon"] for reply in replies)
    assert public_part(replies[0]) == public_part(replies[1])


# Messages


def with_arrays(change):
    def changed(request):
        record = request.content["arrays"]
        for name, array in list(record.items()):
            record[name] = Array(change(array.numpy()))

    return changed


def with_config(**values):
    def changed(request):
        request.content["config"] = ConfigRecord(
            {key.replace("_", "-"): value for key, value in values.items()}
        )

    return changed


MESSAGES = {
    "NaN": with_arrays(lambda a: np.full_like(a, np.nan)),
    "infinite": with_arrays(lambda a: np.full_like(a, np.inf)),
    "huge": with_arrays(lambda a: np.full_like(a, 3e38)),
    "zero": with_arrays(np.zeros_like),
    "float64": with_arrays(lambda a: a.astype(np.float64)),
    "whole numbers": with_arrays(lambda a: a.astype(np.int64)),
    "flat": with_arrays(np.ravel),
    "empty": with_arrays(lambda a: a[:0]),
    "no arrays": lambda request: request.content["arrays"].clear(),
    "no round": with_config(),
    "round 0": with_config(server_round=0),
    "round -1": with_config(server_round=-1),
    "round 2^62": with_config(server_round=2**62),
    "a text as round": with_config(server_round="one"),
    "a list as round": with_config(server_round=[1]),
    "one gradient": with_config(server_round=1, local_task="gradient", gradient_batch=1),
    "proximal": with_config(server_round=1, proximal_mu=1e30),
    "proximal NaN": with_config(server_round=1, proximal_mu=float("nan")),
    "a text as proximal": with_config(server_round=1, proximal_mu="much"),
    "another fingerprint": with_config(server_round=1, frozen_fingerprint="0" * 64),
    "a number as fingerprint": with_config(server_round=1, labels_fingerprint=7),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_hostile_message_learns_nothing(sites, monkeypatch, name, kind):
    replies = []
    for folder in sites:
        monkeypatch.chdir(folder)
        node = {
            "data-path": str(folder / "own.csv"),
            "state-dir": str(folder / "state"),
            "max-epsilon": 1e4,
        }
        settings = SETTINGS | DP | {"evaluate-epsilon": 1.0}
        run_config = Config.from_run_config(settings).to_run_config()
        request = message(kind, settings)
        MESSAGES[name](request)
        replies.append(client_app.app(request, Context(1, 2, node, RecordDict(), run_config)))
        if not replies[-1].has_error():
            assert ledger_of(folder).entries
    assert replies[0].has_error() == replies[1].has_error()
    if kind == "train" or replies[0].has_error():
        assert public_part(replies[0]) == public_part(replies[1])


def test_a_node_that_allows_unprotected_runs_still_quotes_no_file(sites, monkeypatch):
    """The update may then give the texts away, but an error costs nothing and must say nothing."""
    for changes in HOSTILE[::5]:
        for folder in sites:
            monkeypatch.chdir(folder)
            run_config = Config.from_run_config(SETTINGS).to_run_config() | changes
            node = {"data-path": str(folder / "own.csv"), "allow-unprotected": True}
            context = Context(1, 2, node, RecordDict(), run_config)
            reply = client_app.app(request_for(SETTINGS | changes, "train"), context)
            if reply.has_error():
                assert Reason(reply.error.reason)
                assert not any(secret in reply.error.reason for secret in SECRETS)
