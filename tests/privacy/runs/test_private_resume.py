"""A resumed run keeps the ε of the rounds before it, those that were interrupted included."""

import json
import re
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Error, Message
from flwr.clientapp import ClientApp
from helpers.nodes import as_real
from helpers.private_clients import CLIENTS, app_that_calls, bits, releases, run_with

from fedattn_app import client_app
from fedattn_app.errors import UserError
from fedattn_app.results.checkpoint import ACCOUNTANT, BUDGETS, Checkpoint
from fedattn_app.simulation import simulate


@pytest.mark.parametrize("reproducible", [True, False])
def test_resumed_client_dp_adds_up_epsilon(run, cached_run, reproducible):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0}
    settings["reproducible_noise"] = reproducible
    whole, _ = cached_run(**settings, num_rounds=4)
    half, _ = run(**settings, num_rounds=2)
    resumed, _ = run(resume_from=str(half.path), num_rounds=4)
    epsilon = [row["epsilon_max"] for row in resumed.history]
    assert epsilon == [row["epsilon_max"] for row in whole.history]
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]
    assert (bits(resumed) == bits(whole)) == reproducible


def test_resumed_client_dp_has_the_rest_of_the_budget(run):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0, "target_epsilon": 6.0}
    half, _ = run(**settings, num_rounds=1)
    resumed, _ = run(resume_from=str(half.path), num_rounds=5)
    whole, _ = run(**settings, num_rounds=5)
    assert 1 <= resumed.summary["rounds"] == whole.summary["rounds"] < 5
    assert resumed.summary["epsilon"] == whole.summary["epsilon"] <= 6.0
    again, printed = run(resume_from=str(whole.path), num_rounds=6)
    assert "no round was run" in printed
    assert again.summary == whole.summary


def test_resumed_client_dp_may_have_a_larger_budget(run):
    settings = {"privacy": "client-dp", "target_epsilon": 5.0, "num_rounds": 2}
    spent, _ = run(**settings)
    assert spent.summary["epsilon"] <= 5.0
    with pytest.raises(UserError, match="target-epsilon = 5: too little of it is left"):
        run(resume_from=str(spent.path), num_rounds=3)
    more, _ = run(resume_from=str(spent.path), num_rounds=3, target_epsilon=9.0)
    assert more.summary["rounds"] == 3
    assert 5.0 < more.summary["epsilon"] <= 9.0


def test_a_release_is_counted_before_any_client_sees_it(tiny, opinions):
    path, counted = Path(tiny["output-dir"]), []
    app = app_that_calls(lambda: counted.append(releases(path)))
    run_with(tiny | opinions | {"privacy": "client-dp"}, app, num_rounds=2)
    assert counted == [1] * CLIENTS + [2] * CLIENTS


def test_a_release_of_an_interrupted_round_stays_counted(tiny, opinions, cached_run):
    number = count(1)

    def die():
        if next(number) > CLIENTS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with(tiny | opinions | {"privacy": "client-dp"}, app_that_calls(die))
    path = Path(tiny["output-dir"])
    assert Checkpoint.read(path).server_round == 1
    resumed = simulate({"resume-from": str(path)}, CLIENTS, quiet=True)
    assert resumed.summary["rounds"] == 3
    assert releases(path) == 4
    whole, _ = cached_run(privacy="client-dp", noise_multiplier=1.0, num_rounds=4)
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]


def test_a_run_interrupted_in_its_first_round_has_one_round_0(tiny, opinions):
    def die():
        raise KeyboardInterrupt

    settings = tiny | opinions | {"privacy": "client-dp"}
    with pytest.raises(KeyboardInterrupt):
        run_with(settings, app_that_calls(die))
    resumed = simulate({"resume-from": tiny["output-dir"]}, CLIENTS, quiet=True)
    assert [row["round"] for row in resumed.history] == [0, 1, 2, 3]
    assert releases(resumed.path) == 4


def test_a_summary_is_removed_before_a_release_that_it_does_not_count(tiny, opinions):
    def die():
        raise KeyboardInterrupt

    settings = tiny | opinions | {"privacy": "client-dp"}
    result = run_with(settings, client_app.app, num_rounds=1)
    with pytest.raises(KeyboardInterrupt):
        run_with(settings | {"resume-from": str(result.path)}, app_that_calls(die), num_rounds=2)
    assert releases(result.path) == 2
    assert not (result.path / "summary.json").exists()


def test_the_summary_counts_a_release_of_an_interrupted_round(tiny, opinions):
    number = count(1)

    def die_in_round_2():
        if next(number) > CLIENTS:
            raise KeyboardInterrupt

    budget = {"privacy": "client-dp", "target-epsilon": 8.0}
    with pytest.raises(KeyboardInterrupt):
        run_with(tiny | opinions | budget, app_that_calls(die_in_round_2))
    resumed = simulate({"resume-from": tiny["output-dir"]}, CLIENTS, quiet=True)
    assert resumed.summary["rounds"] == 1  # a third release would exceed the target
    last = resumed.history[-1]
    assert resumed.summary["accuracy"] == (last["central"] or last["evaluate"])["accuracy"]
    assert resumed.summary["epsilon"] > resumed.history[-1]["epsilon_max"]


@pytest.fixture(scope="module")
def half(run):
    """The folder of a run of two rounds under client-dp."""
    return run(privacy="client-dp", noise_multiplier=1.0, num_rounds=2)[0].path


def with_releases(*counts):
    """A function that replaces only the counts of releases in an accountant's file."""

    def change(file):
        accountant = json.loads(file.read_text())
        (release, *_) = accountant["compositions"]
        accountant["compositions"] = [{**release, "count": count} for count in counts]
        file.write_text(json.dumps(accountant))

    return change


DAMAGED_ACCOUNTANTS = {
    "missing": (lambda file: file.unlink(), "does not say what the run has spent"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "does not say"),
    "nothing": (lambda file: file.write_text(""), "does not say"),
    "half of it": (lambda file: file.write_text(file.read_text()[:-40]), "does not say"),
    "not UTF-8": (lambda file: file.write_bytes(b"\xff\xfe"), "does not say"),
    "a list": (lambda file: file.write_text("[]"), "does not say"),
    "a deep list": (lambda file: file.write_text("[" * 100_000), "does not say"),
    "no events": (lambda file: file.write_text('{"compositions": [{"count": 9}]}'), "does not say"),
    "a text for a number": (
        lambda file: file.write_text(
            re.sub(r'(multiplier": )([\d.]+)', r'\1"\2"', file.read_text())
        ),
        "does not say",
    ),
    "no releases": (with_releases(), "counts 0 rounds and the checkpoint 2"),
    "too few": (with_releases(1), "counts 1 rounds and the checkpoint 2"),
    "a negative count": (with_releases(4, -1), "resume-from"),
    "another accountant": (
        lambda file: file.write_text(file.read_text().replace('"rdp"', '"pld"')),
        "resume-from",
    ),
}


@pytest.mark.parametrize("what", DAMAGED_ACCOUNTANTS)
def test_client_dp_is_not_resumed_without_its_accountant(half, tmp_path, refused, what):
    change, reason = DAMAGED_ACCOUNTANTS[what]
    path = Path(shutil.copytree(half, tmp_path / "half"))
    change(path / ACCOUNTANT)
    with refused(path, reason):
        simulate({"resume-from": str(path), "num-rounds": 3}, CLIENTS, quiet=True)


def test_a_dp_sgd_simulation_is_not_resumed(cached_run, refused):
    result, _ = cached_run(privacy="dp-sgd", noise_multiplier=1.0, num_rounds=1)
    with refused("resume-from", "privacy ledgers"):
        simulate({"num-rounds": 2, "resume-from": str(result.path)}, CLIENTS, quiet=True)


@pytest.mark.parametrize("fault", ["dropped", "failed"])
def test_a_resumed_run_keeps_the_epsilon_of_clients_that_are_gone(tiny, opinions, tmp_path, fault):
    """This includes a client whose updates were all rejected."""
    app, gone = ClientApp(), []

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        own = {"state_dir": str(tmp_path / f"site {partition}"), "max_epsilon": 1e6}
        own["data_path"] = opinions["data-path"]
        reply = client_app.app(message, as_real(context, **own))
        if partition == 1 and (gone or fault == "failed"):
            return Message(Error(1, "out of order"), reply_to=message)
        if partition == 1:
            record = reply.content["arrays"]
            name = next(iter(record))
            record[name] = Array(np.full_like(record[name].numpy(), np.nan))
            reply.content["metrics"]["epsilon"] *= 2
        return reply

    app.query()(client_app.describe)
    settings = tiny | opinions | {"labels": "n,p"}
    first = run_with(settings, app, num_rounds=2)
    gone.append(1)
    again = run_with(settings | {"resume-from": str(first.path)}, app, num_rounds=3)
    assert [row["round"] for row in again.history] == [0, 1, 2, 3]
    assert again.summary["epsilon"] >= first.summary["epsilon"]
    assert again.summary["epsilon_unreported"] == [1]
    others = max(row["epsilon"] for row in again.clients)
    assert (again.summary["epsilon"] > others) == (fault == "dropped")


@pytest.mark.parametrize("content", [None, "", "[]", '{"epsilon": {"0": NaN}, "unreported": []}'])
def test_no_run_is_resumed_without_the_budgets_of_its_clients(half, tmp_path, refused, content):
    path = shutil.copytree(half, tmp_path / "run")
    (path / BUDGETS).unlink()
    if content is not None:
        (path / BUDGETS).write_text(content)
    with refused(str(path / BUDGETS), "does not say what the run has spent"):
        simulate({"resume-from": str(path), "num-rounds": 3}, CLIENTS, quiet=True)
