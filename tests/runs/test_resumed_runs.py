"""Resumed runs: the same result as without a break, and checkpoints that are refused."""

import numpy as np
import pytest
from helpers.runs import CLIENTS, same_arrays, without_times

from fedattn_app.files import read_arrays, write_arrays
from fedattn_app.results.checkpoint import CHECKPOINT, Checkpoint
from fedattn_app.results.run_result import RunResult
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
