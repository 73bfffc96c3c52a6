"""What happens after a round."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from helpers.run_folders import begun, make_config

from fedattn_app.config import FederationConfig
from fedattn_app.results.checkpoint import BEST, Checkpoint
from fedattn_app.results.run_result import RunResult
from fedattn_app.server.observers import (
    BestModel,
    FolderWriter,
    Patience,
    Progress,
    RoundEnd,
    RoundObserver,
    last_improvement,
    score_reader,
)
from fedattn_app.server.outcome import Outcome


def history(*scores):
    """Rows with these central accuracies; None for a row without any."""
    return [
        {
            "round": number,
            "seconds": 1.0,
            "central": score if score is None else {"accuracy": score, "loss": 1 - score},
            "evaluate": None,
            "train": None,
            "epsilon_max": None,
            "bytes_up": 2_000_000,
            "bytes_down": 0,
            "failures": 0,
        }
        for number, score in enumerate(scores)
    ]


def end(*scores, **more):
    outcome = Outcome(ArrayRecord(), history=history(*scores), last_round=len(scores) - 1)
    return RoundEnd(outcome, **more)


@pytest.fixture
def folder(tmp_path):
    with begun(make_config(output_dir=str(tmp_path / "run"))) as folder:
        yield folder


def accuracy(row):
    return row["central"] and row["central"]["accuracy"]


@pytest.mark.parametrize(
    ("scores", "min_delta", "expected"),
    [
        ((0.1, 0.5, 0.4, 0.5), 0.0, 1),  # the first of equal ones
        ((0.1, 0.5, 0.4, 0.51), 0.0, 3),
        ((0.1, 0.5, 0.4, 0.51), 0.05, 1),
        ((None, None, 0.3, None), 0.0, 2),
        ((None, None), 0.0, -1),
        ((0.2,), 0.1, 0),
    ],
)
def test_the_last_improvement(scores, min_delta, expected):
    assert last_improvement(history(*scores), accuracy, min_delta) == expected


@pytest.mark.parametrize(
    ("row", "clients_may_decide", "expected"),
    [
        ({"central": {"loss": 0.5}, "evaluate": {"loss": 0.1}}, True, -0.5),
        ({"central": None, "evaluate": {"loss": 0.1}}, True, -0.1),
        ({"central": None, "evaluate": {"loss": 0.1}}, False, None),
        ({"central": None, "evaluate": {"loss": None}}, True, None),
        ({"central": None, "evaluate": None}, True, None),
    ],
)
def test_a_lower_loss_is_a_higher_score(row, clients_may_decide, expected):
    assert score_reader(FederationConfig(score="loss"), clients_may_decide)(row) == expected


def test_a_round_is_in_the_folder_when_it_has_ended(folder):
    arrays, state = {"w": np.float32([1, 2])}, {"velocity/w": np.float32([3, 4])}
    writer = FolderWriter(folder, keeps_budgets=True)
    writer.round_ended(end(0.5, clients=[{"round": 0}], changed_arrays=arrays, rule_state=state))
    assert len(RunResult(folder.path).history) == len(RunResult(folder.path).clients) == 1
    checkpoint = Checkpoint.read(folder.path)
    np.testing.assert_array_equal(checkpoint.arrays["w"], arrays["w"])
    np.testing.assert_array_equal(checkpoint.rule_state["velocity/w"], state["velocity/w"])
    assert (folder.path / "checkpoint" / "spending.json").exists()


def test_the_best_model_is_that_of_the_best_round(folder):
    best = BestModel(folder, accuracy)
    best.run_started(None)
    kept = []
    for number, scores in enumerate([(0.2,), (0.2, 0.6), (0.2, 0.6, 0.4), (0.2, 0.6, 0.4, None)]):
        best.round_ended(end(*scores, changed_arrays={"w": np.float32([number])}))
        kept.append((folder.best.server_round, float(folder.best.arrays["w"][0])))
    assert kept == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert (folder.path / BEST).exists()


def test_a_resumed_run_keeps_the_best_of_its_last_round_if_that_was_not_kept(folder):
    best = BestModel(folder, accuracy)
    best.run_started(end(0.2, 0.6, changed_arrays={"w": np.float32([7])}))
    assert folder.best.server_round == 1
    best.round_ended(end(0.2, 0.6, 0.5, changed_arrays={"w": np.float32([8])}))
    assert folder.best.server_round == 1


@pytest.mark.parametrize(
    ("scores", "stops"),
    [((0.5, 0.4), False), ((0.5, 0.4, 0.4), True), ((0.5, 0.4, 0.6), False), ((None,) * 5, False)],
)
def test_patience_ends_a_run_without_improvement(scores, stops):
    patience = Patience(FederationConfig(patience=2), accuracy)
    reason = patience.reason_to_stop(end(*scores).outcome)
    assert reason == ("no better accuracy since round 0 (patience = 2)" if stops else None)
    assert Patience(FederationConfig(), accuracy).reason_to_stop(end(*scores).outcome) is None


def test_progress_is_a_line_a_round_with_the_time_left(caplog, monkeypatch):
    clock = iter([0.0, 10.0, 70.0, 130.0])
    monkeypatch.setattr("fedattn_app.server.observers.time.perf_counter", lambda: next(clock))
    progress = Progress(num_rounds=3)
    with caplog.at_level("INFO", "fedattn"):
        progress.run_started(None)
        for scores in ((0.1,), (0.1, 0.2), (0.1, 0.2, 0.3)):
            progress.round_ended(end(*scores))
    lines = caplog.messages
    assert lines[0].startswith("round 0/3  test accuracy 0.100")
    assert "left" not in lines[0]
    assert lines[1].endswith("2:00 left")  # two more rounds of a minute
    assert lines[2].endswith("1:00 left")


def test_an_observer_may_do_nothing():
    observer = RoundObserver()
    observer.run_started(None)
    observer.round_ended(end(0.5))
    assert observer.reason_to_stop(end(0.5).outcome) is None
