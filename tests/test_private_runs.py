"""Whole runs with differential privacy: what they tell, what they spend, and how they end."""

import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Error, Message
from flwr.clientapp import ClientApp

from fedattn_app import client_app, server_app
from fedattn_app.build import build_classifier
from fedattn_app.config import Config
from fedattn_app.errors import RunFailedError, UserError
from fedattn_app.grid import PartitionGrid
from fedattn_app.local_engine import LocalGrid, task_identity
from fedattn_app.parameters import get_arrays
from fedattn_app.results import ACCOUNTANT, CHECKPOINT, SPENDING, read_checkpoint
from fedattn_app.scopes import SCOPES, scope_of
from fedattn_app.simulation import simulate

CLIENTS = 3
KINDS = ("dp-sgd", "client-dp")
TINY = {"model": "tiny", "vocabulary": 512}


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """A file of 240 examples that are easy to tell apart."""
    path = tmp_path_factory.mktemp("opinions") / "train.csv"
    rows = [f"{'good fine' if k % 2 else 'bad poor'} {k},{'np'[k % 2]}" for k in range(240)]
    path.write_text("\n".join(["text,label", *rows]))
    return {"dataset": "file", "data-path": str(path), "max-length": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory, opinions):
    """A function that runs the built-in model on `opinions` in a new folder.

    It returns the result and all that was printed.
    """

    def new(**settings):
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        data = {} if "dataset" in named else opinions
        folder = {"output-dir": str(tmp_path_factory.mktemp("run") / "out")}
        if "resume-from" in named:
            data = folder = {}
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            model = {} if {"model", "resume-from"} & named.keys() else TINY
            result = simulate(model | folder | data | named, CLIENTS)
        return result, out.getvalue()

    return new


@pytest.fixture(scope="module")
def once(run):
    """The same, for runs that several tests look at."""
    return cache(run)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def bits(result):
    return {name: array.tobytes() for name, array in result.arrays.items()}


def epsilons(result, partition):
    """What a client had spent after each round that it took part in."""
    return [row["epsilon"] for row in result.clients if row["partition"] == partition]


def trained(result):
    """Which clients took part in each round."""
    last = result.history[-1]["round"]
    return [
        [row["partition"] for row in result.clients if row["round"] == k]
        for k in range(1, last + 1)
    ]


# What a run tells


@pytest.fixture(scope="module")
def private(once, kind):
    """Two rounds on the built-in corpus."""
    quick = {"batch_size": 64, "physical_batch_size": 64, "max_length": 16}
    return once(dataset="triage", privacy=kind, noise_multiplier=1.0, num_rounds=2, **quick)


def test_epsilon_is_told_in_every_place(private, kind):
    result, printed = private
    assert trained(result) == [[0, 1, 2]] * 2
    for partition in range(CLIENTS):
        told = epsilons(result, partition)
        assert 0 < told[0] < told[1]
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
    assert "epsilon_untold" not in result.summary


def test_without_privacy_there_is_no_epsilon(once):
    result, printed = once(num_rounds=1)
    assert {row["epsilon_max"] for row in result.history} == {None}
    assert {row["epsilon"] for row in result.clients} == {None}
    assert result.summary["epsilon"] is None
    assert result.summary["delta"] is None
    assert "ε" not in printed


@pytest.mark.parametrize("kind", ["dp-sgd"], indirect=True)
def test_dp_sgd_tells_nothing_exact_of_the_examples(private):
    result, printed = private
    for row in result.clients:
        kept = {row[key] for key in ("num_examples", "accuracy", "loss", "seconds")}
        assert kept == {None}
    for row in result.history:
        assert (row["train"], row["evaluate"]) == (None, None)
    assert result.summary["worst_client_accuracy"] is None
    assert "clients do not evaluate (evaluate-epsilon = 0)" in printed
    # The server has a test set of its own.
    assert 0 <= result.summary["accuracy"] == result.history[-1]["central"]["accuracy"] <= 1


def test_the_number_of_examples_is_told_where_it_is_public(once):
    settings = {"privacy": "dp-sgd", "noise_multiplier": 1.0, "num_rounds": 1}
    public, _ = once(**settings, partitioner="linear", num_examples_public=True)
    assert [row["num_examples"] for row in public.clients] == [36, 72, 108]
    assert {row["accuracy"] for row in public.clients} == {None}
    secret, _ = once(**settings)
    assert {row["num_examples"] for row in secret.clients} == {None}


def test_noisy_counts_are_pooled_where_evaluation_has_a_budget(once):
    settings = {"privacy": "dp-sgd", "noise_multiplier": 1.0, "num_rounds": 2}
    result, printed = once(**settings, evaluate_epsilon=8.0)
    for row in result.history[1:]:
        assert row["evaluate"] is not None
        assert row["evaluate"]["loss"] is None
        assert 0 <= row["evaluate"]["accuracy"] <= 1
    assert {row["accuracy"] for row in result.clients} == {None}
    assert result.summary["accuracy"] == result.history[-1]["evaluate"]["accuracy"]
    assert result.summary["worst_client_accuracy"] is None
    assert "noisy held-out accuracy" in printed
    assert "clients do not evaluate" not in printed
    silent, _ = once(**settings)
    assert silent.history[-1]["evaluate"] is None
    assert result.summary["epsilon"] > silent.summary["epsilon"]


def test_scores_that_are_nearly_all_noise_stay_between_0_and_1(once):
    result, _ = once(
        privacy="dp-sgd", noise_multiplier=1.0, num_rounds=3, evaluate_epsilon=0.05, seed=3
    )
    # In a round in which every noisy number of examples falls below 1 there are none.
    for row in result.history[1:]:
        assert row["evaluate"] is None or 0 <= row["evaluate"]["accuracy"] <= 1


# Noise


@pytest.fixture(scope="module")
def repeated(kind):
    return {"privacy": kind, "noise_multiplier": 1.0, "num_rounds": 2}


def test_noise_from_the_seed_repeats_and_is_marked_as_worthless(run, once, repeated):
    first, printed = once(**repeated, reproducible_noise=True)
    again, _ = run(**repeated, reproducible_noise=True)
    assert bits(first) == bits(again)
    note = first.summary["privacy_note"]
    assert "holds for nobody" in note
    assert f"reproducible-noise: {note}" in printed


def test_noise_from_the_system_does_not_repeat(run, once, repeated):
    first, _ = once(**repeated)
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
def test_flowers_engine_gives_the_same_bits(once, repeated, opinions, tmp_path):
    local, _ = once(**repeated, reproducible_noise=True)
    settings = {name.replace("_", "-"): value for name, value in repeated.items()}
    settings |= {"reproducible-noise": True, "output-dir": str(tmp_path / "flower")}
    flower = simulate(TINY | opinions | settings, CLIENTS, engine="flower", quiet=True)
    assert bits(flower) == bits(local)
    assert [row["epsilon"] for row in flower.clients] == [row["epsilon"] for row in local.clients]


# Budgets


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_the_noise_is_chosen_so_that_the_rounds_spend_the_budget(once, kind, target):
    result, _ = once(privacy=kind, target_epsilon=target, num_rounds=3)
    assert result.summary["rounds"] == 3
    assert 0.95 * target < result.summary["epsilon"] <= target
    for partition in range(CLIENTS):
        assert len(epsilons(result, partition)) == 3


ENDS = {
    "dp-sgd": "0 of 3 clients have privacy budget left, 1 are needed",
    "client-dp": "would exceed max_epsilon",
}


def test_a_spent_budget_ends_the_run_in_order(once, kind):
    free, _ = once(privacy=kind, noise_multiplier=1.0, num_rounds=3)
    spent = [row["epsilon_max"] for row in free.history]
    target = (spent[2] + spent[3]) / 2
    result, printed = once(privacy=kind, noise_multiplier=1.0, target_epsilon=target, num_rounds=5)
    assert [row["round"] for row in result.history] == [0, 1, 2]
    assert result.summary["rounds"] == 2
    assert result.summary["epsilon"] == spent[2] <= target
    assert result.arrays.keys() == free.arrays.keys()
    assert (result.path / CHECKPOINT).exists()
    assert "the run ends after round 2: " in printed
    assert ENDS[kind] in printed
    assert f"results in {result.path}" in printed


def test_a_budget_too_small_for_one_round_fails_the_run(run, kind):
    """There is no model to be taken for a trained one, and one line says what to change."""
    with pytest.raises(RunFailedError, match=r"no round was run: .*; raise target-epsilon"):
        run(privacy=kind, noise_multiplier=0.5, target_epsilon=0.1, num_rounds=2)


@pytest.fixture(scope="module")
def unequal(once):
    """Settings with which the smallest of the clients can pay for two rounds, the others for more.

    A smaller client takes its examples more often, so that a round costs it more.
    """
    settings = {"privacy": "dp-sgd", "noise_multiplier": 2.0, "batch_size": 8}
    settings["partitioner"] = "linear"
    free, _ = once(**settings, num_rounds=4)
    small, *others = (epsilons(free, partition) for partition in range(CLIENTS))
    target = (small[1] + small[2]) / 2
    assert all(spent[3] < target for spent in others)
    return settings | {"target_epsilon": target, "num_rounds": 9}


def test_a_client_that_spent_its_budget_is_asked_no_more(once, unequal):
    result, printed = once(**unequal)
    rounds = trained(result)
    assert rounds == [[0, 1, 2]] * 2 + [[1, 2]] * (len(rounds) - 2)
    assert 4 <= len(rounds) == result.summary["rounds"] < 9
    assert "client 0: budget spent, ε " in printed
    assert {row["failures"] for row in result.history} == {0}
    largest = [row["epsilon_max"] for row in result.history[1:]]
    assert largest == sorted(largest)
    assert largest[-1] <= unequal["target_epsilon"]
    # It is asked in the round in which it says so, and never again.
    down = [row["bytes_down"] for row in result.history]
    assert down[3] == pytest.approx(1.5 * down[4], rel=0.01)


def test_a_run_ends_where_fewer_clients_are_left_than_it_needs(once, unequal):
    result, printed = once(**unequal, min_clients=3)
    assert result.summary["rounds"] == 3
    assert "2 of 3 clients have privacy budget left, 3 are needed" in printed
    assert result.arrays


# Carrying on


@pytest.mark.parametrize("reproducible", [True, False])
def test_client_dp_carried_on_adds_up(run, once, reproducible):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0}
    settings["reproducible_noise"] = reproducible
    whole, _ = once(**settings, num_rounds=4)
    half, _ = run(**settings, num_rounds=2)
    resumed, _ = run(resume_from=str(half.path), num_rounds=4)
    told = [row["epsilon_max"] for row in resumed.history]
    assert told == [row["epsilon_max"] for row in whole.history]
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]
    assert (bits(resumed) == bits(whole)) == reproducible


def test_client_dp_carried_on_has_the_budget_that_is_left(run):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0, "target_epsilon": 6.0}
    half, _ = run(**settings, num_rounds=1)
    resumed, _ = run(resume_from=str(half.path), num_rounds=5)
    whole, _ = run(**settings, num_rounds=5)
    assert 1 <= resumed.summary["rounds"] == whole.summary["rounds"] < 5
    assert resumed.summary["epsilon"] == whole.summary["epsilon"] <= 6.0
    again, printed = run(resume_from=str(whole.path), num_rounds=6)
    assert "no round was run" in printed
    assert again.summary == whole.summary


def test_client_dp_carried_on_may_spend_more(run):
    settings = {"privacy": "client-dp", "target_epsilon": 5.0, "num_rounds": 2}
    spent, _ = run(**settings)
    assert spent.summary["epsilon"] <= 5.0
    with pytest.raises(UserError, match="target-epsilon = 5: too little of it is left"):
        run(resume_from=str(spent.path), num_rounds=3)
    more, _ = run(resume_from=str(spent.path), num_rounds=3, target_epsilon=9.0)
    assert more.summary["rounds"] == 3
    assert 5.0 < more.summary["epsilon"] <= 9.0


def test_a_target_that_no_noise_reaches_leaves_no_folder(tmp_path, refused, kind):
    settings = {"privacy": kind, "target-epsilon": 1e-4, "output-dir": str(tmp_path / "run")}
    with refused("target-epsilon = 0.0001: no noise is enough"):
        simulate(TINY | settings, CLIENTS, quiet=True)
    assert not (tmp_path / "run").exists()


def releases(run):
    """How many releases of noise a run's folder counts."""
    accountant = json.loads((run / ACCOUNTANT).read_text())
    return sum(release["count"] for release in accountant["compositions"])


def evaluating(look):
    """Our ClientApp, but `look` is called before it evaluates."""
    app = ClientApp()

    @app.evaluate()
    def evaluate(message: Message, context):
        look()
        return client_app.app(message, context)

    app.train()(client_app.app)
    app.query()(client_app.describe)
    return app


def test_a_release_is_counted_before_anyone_sees_it(tiny, opinions):
    path, counted = Path(tiny["output-dir"]), []
    app = evaluating(lambda: counted.append(releases(path)))
    run_of(tiny | opinions | {"privacy": "client-dp"}, app, num_rounds=2)
    assert counted == [1] * CLIENTS + [2] * CLIENTS


def test_a_release_whose_round_was_lost_is_counted_for_ever(tiny, opinions, once):
    number = count(1)

    def die():
        if next(number) > CLIENTS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tiny | opinions | {"privacy": "client-dp"}, evaluating(die))
    path = Path(tiny["output-dir"])
    assert read_checkpoint(path)[1]["round"] == "1"
    resumed = simulate({"resume-from": str(path)}, CLIENTS, quiet=True)
    assert resumed.summary["rounds"] == 3
    assert releases(path) == 4
    whole, _ = once(privacy="client-dp", noise_multiplier=1.0, num_rounds=4)
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]


def test_a_run_stopped_in_its_first_round_begins_once(tiny, opinions):
    def die():
        raise KeyboardInterrupt

    settings = tiny | opinions | {"privacy": "client-dp"}
    with pytest.raises(KeyboardInterrupt):
        run_of(settings, evaluating(die))
    resumed = simulate({"resume-from": tiny["output-dir"]}, CLIENTS, quiet=True)
    assert [row["round"] for row in resumed.history] == [0, 1, 2, 3]
    assert releases(resumed.path) == 4


def test_a_summary_does_not_outlive_a_release_that_it_lacks(tiny, opinions):
    def die():
        raise KeyboardInterrupt

    settings = tiny | opinions | {"privacy": "client-dp"}
    result = run_of(settings, client_app.app, num_rounds=1)
    with pytest.raises(KeyboardInterrupt):
        run_of(settings | {"resume-from": str(result.path)}, evaluating(die), num_rounds=2)
    assert releases(result.path) == 2
    assert not (result.path / "summary.json").exists()


def test_the_summary_counts_a_release_whose_round_was_lost(tiny, opinions):
    number = count(1)

    def die_in_round_2():
        if next(number) > CLIENTS:
            raise KeyboardInterrupt

    budget = {"privacy": "client-dp", "target-epsilon": 8.0}
    with pytest.raises(KeyboardInterrupt):
        run_of(tiny | opinions | budget, evaluating(die_in_round_2))
    resumed = simulate({"resume-from": tiny["output-dir"]}, CLIENTS, quiet=True)
    assert resumed.summary["rounds"] == 1  # a third release would pass the target
    last = resumed.history[-1]
    assert resumed.summary["accuracy"] == (last["central"] or last["evaluate"])["accuracy"]
    assert resumed.summary["epsilon"] > resumed.history[-1]["epsilon_max"]


@pytest.fixture(scope="module")
def half(run):
    """Two rounds under client-dp."""
    return run(privacy="client-dp", noise_multiplier=1.0, num_rounds=2)[0].path


def with_releases(*counts):
    """A change of the accountant's file: what else it says stays."""

    def change(file):
        accountant = json.loads(file.read_text())
        (release, *_) = accountant["compositions"]
        accountant["compositions"] = [{**release, "count": count} for count in counts]
        file.write_text(json.dumps(accountant))

    return change


UNACCOUNTED = {
    "missing": (lambda file: file.unlink(), "does not say what the run has spent"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "does not say"),
    "nothing": (lambda file: file.write_text(""), "does not say"),
    "half of it": (lambda file: file.write_text(file.read_text()[:-40]), "does not say"),
    "no text": (lambda file: file.write_bytes(b"\xff\xfe"), "does not say"),
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
    "less than none": (with_releases(4, -1), "resume-from"),
    "another accountant": (
        lambda file: file.write_text(file.read_text().replace('"rdp"', '"pld"')),
        "resume-from",
    ),
}


@pytest.mark.parametrize("what", UNACCOUNTED)
def test_client_dp_is_not_carried_on_without_what_it_has_spent(half, tmp_path, refused, what):
    change, reason = UNACCOUNTED[what]
    path = Path(shutil.copytree(half, tmp_path / "half"))
    change(path / ACCOUNTANT)
    with refused(path, reason):
        simulate({"resume-from": str(path), "num-rounds": 3}, CLIENTS, quiet=True)


def test_a_dp_sgd_simulation_is_not_carried_on(once, refused):
    result, _ = once(privacy="dp-sgd", noise_multiplier=1.0, num_rounds=1)
    with refused("resume-from", "privacy ledgers"):
        simulate({"num-rounds": 2, "resume-from": str(result.path)}, CLIENTS, quiet=True)


def test_client_dp_refuses_a_delta_too_large_for_the_clients(run, refused):
    settings = {"privacy": "client-dp", "noise_multiplier": 1.0, "num_rounds": 1}
    with refused("target-delta = 0.34", "1 / number of clients = 1 / 3"):
        run(**settings, target_delta=0.34)
    assert run(**settings, target_delta=0.33)[0].summary["delta"] == 0.33


# Replies


def changed_by(change):
    """Our ClientApp, but `change` alters the metrics of node 1's second training reply."""
    app = ClientApp()
    number = count(1)

    @app.train()
    def train(message: Message, context):
        reply = client_app.app(message, context)
        if context.node_config["partition-id"] == 1 and next(number) == 2:
            change(reply.content["metrics"])
        return reply

    app.evaluate()(client_app.app)
    app.query()(client_app.describe)
    return app


def run_of(run_config, client_app, num_rounds=3):
    settings = {"privacy": "dp-sgd", "noise-multiplier": 1.0, **run_config}
    config = Config.from_run_config(settings | {"num-rounds": num_rounds})
    with task_identity():
        grid = LocalGrid(client_app, CLIENTS, dict(config.to_run_config()))
        return server_app.run(PartitionGrid(grid), config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update({"epsilon": float("nan")}), "epsilon is not a finite number"),
        (lambda m: m.update({"epsilon": float("inf")}), "epsilon is not a finite number"),
        (lambda m: m.pop("epsilon"), "metrics differ in epsilon"),
        (lambda m: m.update({"loss": 1.0}), "metrics differ in loss"),
    ],
    ids=["not a number", "infinite", "none", "an exact loss"],
)
def test_a_reply_that_is_not_as_private_as_it_must_be_fails(tiny, opinions, caplog, change, reason):
    result = run_of(tiny | opinions, changed_by(change))
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert trained(result) == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "client 1 failed: unsound reply" in caplog.text
    assert reason in caplog.text
    largest = [row["epsilon_max"] for row in result.history[1:]]
    assert largest == sorted(largest)


def test_a_client_whose_epsilon_fell_is_asked_no_more(tiny, opinions, caplog):
    """It forgot what it spent: all that it says of ε from now on is too little."""
    halved = changed_by(lambda m: m.update({"epsilon": 0.5 * m["epsilon"]}))
    result = run_of(tiny | opinions, halved)
    assert trained(result) == [[0, 1, 2], [0, 2], [0, 2]]
    assert [row["failures"] for row in result.history] == [0, 0, 1, 0]
    assert caplog.text.count("client 1: its privacy ledger is lost; it is asked no more") == 1
    assert result.summary["epsilon_untold"] == [1]


def test_what_an_unsound_reply_says_of_epsilon_counts(tiny, opinions):
    spendthrift = changed_by(lambda m: m.update({"epsilon": 100.0, "loss": 1.0}))
    result = run_of(tiny | opinions, spendthrift, num_rounds=2)
    assert trained(result) == [[0, 1, 2], [0, 2]]
    assert result.summary["epsilon"] == 100


def test_a_client_that_did_not_say_what_it_spent_last_is_named(tiny, opinions):
    def fail(metrics):
        raise RuntimeError("out of order")

    result = run_of(tiny | opinions, changed_by(fail), num_rounds=2)
    assert result.summary["epsilon_untold"] == [1]
    longer = {"output-dir": f"{tiny['output-dir']}-3"}
    assert "epsilon_untold" not in run_of(tiny | opinions | longer, changed_by(fail)).summary


@pytest.mark.parametrize("fault", ["dropped", "failed"])
def test_what_was_spent_is_known_to_a_run_that_is_carried_on(tiny, opinions, tmp_path, fault):
    """Also of a client whose updates never counted, and that is no longer there."""
    app, gone = ClientApp(), []

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        context.node_config["state-dir"] = str(tmp_path / f"site {partition}")
        reply = client_app.app(message, context)
        if partition == 1 and (gone or fault == "failed"):
            return Message(Error(1, "out of order"), reply_to=message)
        if partition == 1:
            record = reply.content["arrays"]
            name = next(iter(record))
            record[name] = Array(np.full_like(record[name].numpy(), np.nan))
            reply.content["metrics"]["epsilon"] *= 2
        return reply

    app.query()(client_app.describe)
    first = run_of(tiny | opinions, app, num_rounds=2)
    gone.append(1)
    again = run_of(tiny | opinions | {"resume-from": str(first.path)}, app, num_rounds=3)
    assert [row["round"] for row in again.history] == [0, 1, 2, 3]
    assert again.summary["epsilon"] >= first.summary["epsilon"]
    assert again.summary["epsilon_untold"] == [1]
    others = max(row["epsilon"] for row in again.clients)
    assert (again.summary["epsilon"] > others) == (fault == "dropped")


@pytest.mark.parametrize("content", [None, "", "[]", '{"epsilon": {"0": NaN}, "untold": []}'])
def test_no_run_is_carried_on_without_what_its_clients_have_spent(half, tmp_path, refused, content):
    path = shutil.copytree(half, tmp_path / "run")
    (path / SPENDING).unlink()
    if content is not None:
        (path / SPENDING).write_text(content)
    with refused(str(path / SPENDING), "does not say what the run has spent"):
        simulate({"resume-from": str(path), "num-rounds": 3}, CLIENTS, quiet=True)


# Scopes


def start_of(config, num_labels):
    """The arrays that a run with this configuration starts from, and its scope."""
    model = build_classifier(config, num_labels)
    arrays = get_arrays(model)
    federation = config.federation
    return arrays, scope_of(federation.shared, federation.local, model.family, arrays)


def assert_moves_what_is_shared(run, **settings):
    result, _ = run(noise_multiplier=1.0, num_rounds=1, **settings)
    config = Config.from_run_config(settings | {"noise-multiplier": 1.0})
    arrays, scope = start_of(config, num_labels=2)
    moved = {name for name in arrays if arrays[name].tobytes() != result.arrays[name].tobytes()}
    assert moved == scope.shared
    assert (result.history[1]["clients"], result.history[1]["failures"]) == (CLIENTS, 0)


@pytest.mark.parametrize("shared", [*SCOPES, r"layers\.0\..*|head\.bias"])
def test_every_scope_trains_privately(run, shared):
    assert_moves_what_is_shared(run, privacy="dp-sgd", shared=shared, **TINY)


@pytest.mark.parametrize("shared", ["attention", "lora"])
@pytest.mark.parametrize("privacy", KINDS)
def test_a_pretrained_model_trains_privately(run, pretrained_folder, privacy, shared):
    folder = str(pretrained_folder("distilbert"))
    assert_moves_what_is_shared(run, privacy=privacy, shared=shared, model=folder)


def test_personal_parameters_train_privately_and_stay_at_home(run, kind):
    scope = {"shared": "attention", "local": "personal"}
    assert_moves_what_is_shared(run, privacy=kind, **scope, **TINY)
