"""What happens over the rounds: when a run ends, what is kept, who takes part."""

import json
from unittest.mock import ANY

import numpy as np
import pytest
from helpers.data_files import write
from helpers.runs import QUICK, same_arrays, without_times

from fedattn_app import client_app, server_app
from fedattn_app.analysis.predictor import Predictor
from fedattn_app.config import Config, TrainingConfig
from fedattn_app.engine.local_grid import LocalGrid
from fedattn_app.errors import RunFailedError
from fedattn_app.files import read_arrays
from fedattn_app.flower_compat import task_identity
from fedattn_app.models.parameters import get_arrays, without
from fedattn_app.models.scopes import scope_of
from fedattn_app.models.transformer import build_model
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.simulation import simulate
from fedattn_app.transport.lazy_array import lazy_record

CLIENTS = 3


def run(folder, **more):
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    config = {**QUICK, **keys, "output-dir": str(folder)}
    return simulate(config, CLIENTS, workers=1, quiet=True)


def test_a_run_ends_when_it_gets_no_better(tmp_path):
    whole = run(tmp_path / "whole", num_rounds=30, patience=2, min_delta=0.3)
    accuracies = [row["central"]["accuracy"] for row in whole.history]
    best, at = accuracies[0], 0
    for number, accuracy in enumerate(accuracies):
        if accuracy > best + 0.3:
            best, at = accuracy, number
    assert whole.summary["rounds"] == at + 2 < 30
    before = contents(whole.path)
    again = simulate({"resume-from": str(whole.path), "num-rounds": 40}, quiet=True)
    assert again.path == whole.path
    assert contents(again.path) == {**before, "config.toml": ANY}


def test_a_run_that_has_ended_is_whole_in_another_folder_too(tmp_path):
    whole = run(tmp_path / "whole", num_rounds=30, patience=1, min_delta=0.3)
    copy = {"resume-from": str(whole.path), "output-dir": str(tmp_path / "copy")}
    other = simulate(copy, quiet=True)
    assert same_arrays(other, whole)
    scores = ("rounds", "accuracy", "macro_f1", "recall_per_class", "best_round")
    assert [other.summary[key] for key in scores] == [whole.summary[key] for key in scores]
    longer = {"resume-from": str(other.path), "patience": 30, "num-rounds": 5}
    assert simulate(longer, quiet=True).summary["rounds"] == 5


def test_nobody_waits_for_clients_to_evaluate_when_all_have_left(tmp_path):
    class Leaving(LocalGrid):
        trained = False

        def send_and_receive(self, messages, **more):
            replies = list(super().send_and_receive(messages, **more))
            self.trained |= any(r.metadata.message_type == "train" for r in replies)
            return replies

        def get_node_ids(self):
            return [] if self.trained else super().get_node_ids()

    keys = {**QUICK, "num-rounds": 1, "fraction-evaluate": 1.0, "output-dir": str(tmp_path / "run")}
    config = Config.from_run_config(keys)
    with task_identity():
        grid = Leaving(client_app.app, CLIENTS, dict(config.to_run_config()))
        result = server_app.run(PartitionGrid(grid), config)
    assert [row["clients"] for row in result.history] == [0, CLIENTS]
    assert result.history[1]["evaluate"] is None


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_that_waits_longer_is_that_which_was_never_ended(tmp_path):
    settings = {"num_rounds": 5, "min_delta": 0.3}
    whole = run(tmp_path / "whole", patience=20, **settings)
    part = run(tmp_path / "part", patience=1, **settings)
    assert part.summary["rounds"] < 5
    rest = simulate({"resume-from": str(part.path), "patience": 20}, quiet=True)
    assert same_arrays(rest, whole)


@pytest.mark.parametrize("score", ["accuracy", "loss", "macro-f1"])
def test_the_best_model_is_kept_beside_the_last(tmp_path, score):
    # A rate that falls to nothing would hide which round was best; this one swings.
    result = run(tmp_path / "run", score=score, learning_rate=0.05, num_rounds=6)
    values = [row["central"][score.replace("-", "_")] for row in result.history]
    best = int(np.argmin(values) if score == "loss" else np.argmax(values))
    assert result.summary["best_round"] == best
    arrays, about = read_arrays(result.path / "best.safetensors")
    assert about["round"] == str(best)
    part = run(tmp_path / "part", score=score, learning_rate=0.05, num_rounds=max(best, 1))
    if best:
        assert all(arrays[name].tobytes() == part.arrays[name].tobytes() for name in arrays)
    assert (
        Predictor.load(result.path / "best.safetensors").labels
        == Predictor.load(result.path / "model.safetensors").labels
    )


def test_the_best_of_all_outlives_a_stop(tmp_path):
    settings = {"score": "loss", "learning_rate": 0.05}
    whole = run(tmp_path / "whole", num_rounds=6, **settings)
    run(tmp_path / "part", num_rounds=3, **settings)
    carried = {"resume-from": str(tmp_path / "part"), "num-rounds": 6}
    rest = simulate(carried, quiet=True)
    assert rest.summary["best_round"] == whole.summary["best_round"]
    left, right = (read_arrays(r.path / "best.safetensors")[0] for r in (rest, whole))
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def changed_by(result, other):
    return {k for k in result.arrays if result.arrays[k].tobytes() != other.arrays[k].tobytes()}


def attention_and_head(result):
    return scope_of("attention+head", "frozen", "fedattn", result.arrays).shared


def test_warmup_rounds_train_all_and_the_others_what_is_shared(tmp_path):
    everything = run(tmp_path / "all", shared="all", num_rounds=2)
    warm = run(tmp_path / "warm", warmup_rounds=2, num_rounds=4)
    first_two = run(tmp_path / "two", warmup_rounds=2, num_rounds=2)
    assert same_arrays(first_two, everything)
    assert changed_by(warm, everything) == attention_and_head(warm)
    up = [row["bytes_up"] for row in warm.history]
    down = [row["bytes_down"] for row in warm.history]
    assert up[3] < up[1] / 2
    assert down[3] > 0.9 * down[1]  # the rest goes along


def test_a_warm_start_is_carried_on_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", warmup_rounds=2)
    for stop in (1, 2, 3):
        run(tmp_path / f"{stop}", warmup_rounds=2, num_rounds=stop)
        carried = {"resume-from": str(tmp_path / f"{stop}"), "num-rounds": QUICK["num-rounds"]}
        rest = simulate(carried, quiet=True)
        assert same_arrays(rest, whole)


def test_a_warm_start_evaluates_on_what_was_warmed(tmp_path):
    warm = run(tmp_path / "warm", warmup_rounds=1, num_rounds=2, fraction_evaluate=1.0)
    again = run(tmp_path / "again", warmup_rounds=1, num_rounds=2, fraction_evaluate=1.0)
    assert without_times(warm) == without_times(again)
    assert warm.history[2]["evaluate"]["loss"] < warm.history[0]["central"]["loss"]


@pytest.mark.parametrize(
    "more",
    [
        {"shared": "all"},
        {"shared": "lora", "model": "somewhere/else"},
        {"local": "personal", "shared": "attention"},
    ],
)
def test_warmup_is_refused_where_nothing_is_frozen(refused, more):
    with refused("warmup-rounds = 1"):
        Config.from_run_config({"warmup-rounds": 1, **more})


def test_min_delta_needs_patience(refused):
    with refused("min-delta = 0.1", "patience"):
        Config.from_run_config({"min-delta": 0.1})


def test_the_cosine_falls_to_zero():
    config = TrainingConfig(learning_rate=0.2, learning_rate_schedule="cosine")
    rates = [config.in_round(t, 4).learning_rate for t in (1, 2, 3, 4)]
    expected = [0.1 * (1 + np.cos(np.pi * done / 4)) for done in range(4)]
    np.testing.assert_allclose(rates, expected)
    assert config.in_round(9, 4).learning_rate == rates[-1]
    assert TrainingConfig(learning_rate=0.2).in_round(3, 4).learning_rate == 0.2


def test_the_schedule_reaches_the_clients(tmp_path):
    constant = run(tmp_path / "constant", num_rounds=1)
    cosine = run(tmp_path / "cosine", num_rounds=1, learning_rate_schedule="cosine")
    assert same_arrays(constant, cosine)  # the first round is at the whole rate
    longer = [
        run(tmp_path / f"longer-{schedule}", num_rounds=3, learning_rate_schedule=schedule)
        for schedule in ("constant", "cosine")
    ]
    assert not same_arrays(*longer)


class Coming(LocalGrid):
    """A grid whose nodes come and go: so many are there, by how often that was asked."""

    def __init__(self, counts, config):
        super().__init__(client_app.app, max(counts), dict(config.to_run_config()))
        self.counts = list(counts)
        self.rounds = 0

    def get_node_ids(self):
        return list(super().get_node_ids())[: self.counts[min(self.rounds, len(self.counts) - 1)]]

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        self.rounds += any(message.metadata.message_type == "train" for message in asked)
        return super().send_and_receive(asked, timeout=timeout)


def run_on(counts, folder, **more):
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    config = Config.from_run_config({**QUICK, "min-clients": 2, **keys, "output-dir": str(folder)})
    with task_identity():
        return server_app.run(PartitionGrid(Coming(counts, config)), config)


def test_clients_come_late_and_leave(tmp_path):
    result = run_on([2, 4, 3, 3], tmp_path / "run")
    assert [row["clients"] for row in result.history] == [0, 2, 4, 3, 3]
    assert [row["failures"] for row in result.history] == [0] * 5


def test_too_few_clients_are_waited_for_and_then_the_run_ends(tmp_path):
    with pytest.raises(RunFailedError, match=r"1 of 2 clients connected in 0\.5 s"):
        run_on([2, 1], tmp_path / "run", round_timeout=0.5)
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert [row["round"] for row in history] == [0, 1]


def test_patience_needs_a_score(tmp_path, refused):
    texts = [f"{'bad' if k % 2 else 'good'} word{k % 7}" for k in range(60)]
    path = write(tmp_path / "data.csv", texts, ["no" if k % 2 else "yes" for k in range(60)])
    settings = {"dataset": "file", "data_path": str(path), "patience": 2}
    with refused("patience = 2", "no test set"):
        run(tmp_path / "run", **settings)
    result = run(tmp_path / "evaluated", **settings, fraction_evaluate=1.0)
    assert result.summary["best_round"] is not None


def test_under_a_schedule_the_number_of_rounds_stays(tmp_path, refused):
    run(tmp_path / "run", num_rounds=2, learning_rate_schedule="cosine")
    with refused("num-rounds = 3", "has 2"):
        simulate({"resume-from": str(tmp_path / "run"), "num-rounds": 3}, quiet=True)


class Greedy(LocalGrid):
    """Nodes whose server also sends all other parameters, as it may after a warm-up only."""

    def __init__(self, config):
        super().__init__(client_app.app, CLIENTS, dict(config.to_run_config()))
        self.replied = []
        arrays = get_arrays(build_model(config.model, 6, 1))
        self.shared = set(scope_of("attention+head", "frozen", "fedattn", arrays).shared)
        self.others = without(arrays, self.shared)

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        for message in asked:
            if message.metadata.message_type == "train":
                zeros = {name: np.zeros_like(array) for name, array in self.others.items()}
                message.content["rest"] = lazy_record(zeros)
        for reply in super().send_and_receive(asked, timeout=timeout):
            self.replied += [set(record) for record in reply.content.array_records.values()]
            yield reply


def test_a_node_neither_shares_nor_takes_more_than_its_run_config_says(tmp_path):
    config = Config.from_run_config({**QUICK, "output-dir": str(tmp_path / "run")})
    nodes = Greedy(config)
    with task_identity():
        result = server_app.run(PartitionGrid(nodes), config)
    assert nodes.others
    assert nodes.replied == [nodes.shared] * (CLIENTS * QUICK["num-rounds"])
    assert same_arrays(result, run(tmp_path / "plain"))


def test_a_node_refuses_a_server_that_shares_more_than_the_run_config_says(tmp_path, caplog):
    settings = {**QUICK, "output-dir": str(tmp_path / "run")}
    nodes = Config.from_run_config(settings).to_run_config()
    grid = PartitionGrid(LocalGrid(client_app.app, CLIENTS, dict(nodes)))
    config = Config.from_run_config(settings | {"shared": "all"})
    with task_identity(), pytest.raises(RunFailedError, match="all 3 clients failed"):
        server_app.run(grid, config)
    assert "the server shares other parameters than this node" in caplog.text
