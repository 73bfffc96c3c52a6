"""Resumed runs: the same result as without a break, and checkpoints that are refused."""

import numpy as np
import pytest
from helpers.runs import CLIENTS, app_that, same_arrays, without_times

from fedattn_app.errors import RunFailedError
from fedattn_app.files import read_arrays, write_arrays
from fedattn_app.results.checkpoint import CHECKPOINT, Checkpoint
from fedattn_app.results.run_result import RunResult
from fedattn_app.results.run_state import FINAL_FILES
from fedattn_app.simulation import simulate


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path):
    whole = simulate(tiny | {"num-rounds": 4}, CLIENTS, quiet=True)
    half = simulate(tiny | {"output-dir": str(tmp_path / "half")}, CLIENTS, quiet=True)
    # Only the changed setting is given; the others come from the run's own config.toml.
    resumed = simulate({"num-rounds": 4, "resume-from": str(half.path)}, quiet=True)
    assert resumed.path == half.path
    assert same_arrays(whole, resumed)
    expected, expected_summary = without_times(whole)
    rows, summary = without_times(resumed)
    # A resumed run queries the nodes again, which costs a few bytes.
    for row, other in zip(rows, expected, strict=True):
        if "bytes_up" in row:
            row["bytes_up"] = row["bytes_down"] = other["bytes_up"] = other["bytes_down"] = None
    assert rows == expected
    assert summary["accuracy"] == expected_summary["accuracy"]


def test_a_run_resumes_although_the_last_row_of_its_history_is_lost(tiny, tmp_path):
    whole = simulate(tiny | {"num-rounds": 3}, CLIENTS, quiet=True)
    half = simulate(tiny | {"output-dir": str(tmp_path / "half")}, CLIENTS, quiet=True)
    history = half.path / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]) + '{"rou')
    resumed = simulate({"num-rounds": 3, "resume-from": str(half.path)}, CLIENTS, quiet=True)
    assert [row["round"] for row in resumed.history] == [0, 1, 3]
    assert same_arrays(whole, resumed)


@pytest.mark.parametrize(
    "rule", [{}, {"strategy": "fedbuff", "fedbuff-buffer-size": 1}], ids=["fedavg", "fedbuff"]
)
def test_the_final_files_are_gone_before_a_message_is_sent(tiny, rule):
    result = simulate(tiny | rule, CLIENTS, workers=1, quiet=True)
    before = []

    def train():
        before.extend((result.path / name).exists() for name in FINAL_FILES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(
            {"num-rounds": 3, "resume-from": str(result.path)},
            workers=1,
            quiet=True,
            clients=app_that(train),
        )
    assert before == [False, False, False]
    assert result.state == "interrupted"


def test_a_resumed_run_that_fails_says_so(tiny, ran):
    def fail():
        raise RuntimeError("out of order")

    settings = {"num-rounds": 3, "resume-from": str(ran.path)}
    with pytest.raises(RunFailedError) as caught:
        simulate(settings, workers=1, quiet=True, clients=app_that(fail))
    assert ran.status == {"state": "failed", "round": 2, "reason": str(caught.value)}
    assert not (ran.path / "summary.json").exists()


def test_a_resumed_run_with_nothing_to_do_has_ended_and_keeps_its_files(tiny):
    settings = tiny | {"num-rounds": 9, "patience": 1, "min-delta": 1.0}
    result = simulate(settings, CLIENTS, quiet=True)
    before = {name: (result.path / name).read_bytes() for name in FINAL_FILES}
    simulate({"num-rounds": 10, "resume-from": str(result.path)}, quiet=True)
    assert {name: (result.path / name).read_bytes() for name in FINAL_FILES} == before
    assert result.state == "ended"


def test_a_run_with_all_its_rounds_gets_its_final_files_without_another_round(tiny, tmp_path):
    """Here or in another folder, with the same bits."""
    result = simulate(tiny, CLIENTS, quiet=True)
    whole, arrays = without_times(result), result.arrays
    (result.path / "summary.json").unlink()
    (result.path / "best.safetensors").unlink()
    for settings in ({"output-dir": str(tmp_path / "other")}, {"num-rounds": 2}):
        again = simulate({"resume-from": str(result.path), **settings}, quiet=True)
        rows, summary = without_times(again)
        assert rows == whole[0]
        assert again.arrays.keys() == arrays.keys()
        assert all(again.arrays[name].tobytes() == arrays[name].tobytes() for name in arrays)
        assert (again.path / "best.safetensors").exists()
        unknown = {name for name in summary if summary[name] != whole[1][name]}
        assert unknown == {
            *("worst_client_accuracy", "best_client_accuracy", "client_accuracy_deviation")
        }


def test_a_run_does_not_resume_with_another_number_of_clients(tiny, ran, refused):
    with refused("4 clients", "split its data over 3", "--num-supernodes 3"):
        simulate({"num-rounds": 3, "resume-from": str(ran.path)}, 4, quiet=True)
    # The refused call leaves the run's results unchanged.
    assert RunResult(ran.path).summary == ran.summary
    assert RunResult(ran.path).arrays.keys() == ran.arrays.keys()


def test_a_simulation_with_personal_parameters_does_not_resume(tiny, refused):
    config = tiny | {"local": "personal", "shared": "attention"}
    result = simulate(config, CLIENTS, quiet=True)
    with refused("resume-from", "personal"):
        simulate({"num-rounds": 3, "resume-from": str(result.path)}, CLIENTS, quiet=True)


def test_a_checkpoint_has_only_the_shared_parameters(ran):
    arrays = Checkpoint.read(ran.path).arrays
    assert arrays.keys() == {name for name in ran.arrays if ".attention." in name or "head" in name}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda arrays, about: about.update({"frozen": "0" * 64}), "frozen parameters"),
        (lambda arrays, about: about.pop("frozen"), "frozen parameters"),
        (lambda arrays, about: arrays.pop("head.bias"), "head.bias"),
        (lambda arrays, about: arrays.update(x=np.zeros(1)), "x"),
        (lambda arrays, about: arrays.update({"head.bias": np.zeros(7)}), "head.bias"),
    ],
    ids=[
        "another fingerprint",
        "no fingerprint",
        "a missing array",
        "an extra array",
        "another shape",
    ],
)
def test_a_checkpoint_of_another_model_is_refused(ran, refused, change, part):
    arrays, about = read_arrays(ran.path / CHECKPOINT)
    change(arrays, about)
    write_arrays(ran.path / CHECKPOINT, arrays, about)
    with refused("resume-from", part):
        simulate({"num-rounds": 3, "resume-from": str(ran.path)}, CLIENTS, quiet=True)
    assert RunResult(ran.path).summary == ran.summary
