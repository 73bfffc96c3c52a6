"""A run is resumed from its checkpoint, or refused with the reason."""

from contextlib import contextmanager

import pytest
from helpers.run_folders import ARRAYS, LATER, clients, make_config, rounds, row
from safetensors.numpy import save_file

from fedattn_app.models.parameters import fingerprint
from fedattn_app.results.resume import earlier_run
from fedattn_app.results.run_folder import RunFolder
from fedattn_app.results.run_result import RunResult
from fedattn_app.run_identity import RunIdentity


@contextmanager
def resumed(path, **settings):
    """The folder of a run that resumes the one at `path`, and what it takes from it."""
    config = make_config(**{"resume_from": str(path), "num_rounds": 5, "dropout": 0.25, **settings})
    with RunFolder(config) as folder:
        with folder.reading_earlier_run():
            earlier = earlier_run(config, RunIdentity())
        folder.begin(earlier=earlier)
        yield folder, earlier


def resume(path, **settings):
    """Resume the run at `path` and stop at once; return the folder and what it took from it."""
    with resumed(path, **settings) as begun:
        return begun


def test_a_run_is_resumed_from_its_checkpoint_in_its_own_folder(interrupted):
    with resumed(interrupted) as (folder, earlier):
        assert folder.path == interrupted
        assert fingerprint(earlier.arrays) == fingerprint(LATER)
        assert earlier.history == rounds(0, 1, 2)
        folder.add_round(row(3), clients(3))
    result = RunResult(interrupted)
    assert result.history == rounds(0, 1, 2, 3)
    assert result.clients == [*clients(1), *clients(2), *clients(3)]


def test_a_run_is_resumed_in_another_folder_and_leaves_the_first_alone(interrupted, tmp_path):
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.is_file()}
    folder, earlier = resume(interrupted, output_dir=str(tmp_path / "other"))
    assert folder.path == tmp_path / "other"
    assert fingerprint(earlier.arrays) == fingerprint(LATER)
    assert RunResult(folder.path).history == rounds(0, 1, 2)
    assert {f: f.read_bytes() for f in interrupted.rglob("*") if f.is_file()} == before


def test_a_resumed_run_can_be_resumed_again(interrupted):
    with resumed(interrupted) as (folder, _):
        folder.write_checkpoint(3, ARRAYS)
    _, again = resume(interrupted)
    assert fingerprint(again.arrays) == fingerprint(ARRAYS)


@pytest.mark.parametrize("name", ["history.jsonl", "clients.jsonl"])
def test_a_line_that_was_cut_off_while_it_was_written_does_no_harm(interrupted, name):
    file = interrupted / name
    file.write_bytes(file.read_bytes()[:-9])
    _, earlier = resume(interrupted)
    assert earlier.history == rounds(0, 1, 2)
    assert RunResult(interrupted).clients == [*clients(1), *clients(2)]


@pytest.mark.parametrize(
    "settings",
    [{"num_rounds": 3}, {"fraction_evaluate": 0.5}, {"min_clients": 2}, {"round_timeout": 60.0}],
)
def test_a_resumed_run_may_change(interrupted, settings):
    assert resume(interrupted, **settings)[1].history == rounds(0, 1, 2)


@pytest.mark.parametrize(
    ("settings", "began_with"),
    [
        ({"seed": 2}, 1),
        ({"dropout": 0.5}, 0.25),
        ({"shared": "head"}, "attention+head"),
        ({"layers": 1}, 0),
        ({"labels": "a,b"}, ""),
        ({"fraction_train": 0.5}, 1.0),
    ],
)
def test_a_resumed_run_may_not_change(refused, interrupted, settings, began_with):
    [(key, value)] = settings.items()
    with refused(f"{key.replace('_', '-')} = {value!r}", repr(began_with), interrupted):
        resume(interrupted, **settings)


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_a_run_with_all_its_rounds_is_not_resumed(refused, interrupted, num_rounds):
    (interrupted / "status.json").unlink()  # as in a run of an earlier version
    for name in ("model.safetensors", "summary.json"):
        (interrupted / name).touch()
    with refused(f"num-rounds = {num_rounds}", "already has 2 rounds"):
        resume(interrupted, num_rounds=num_rounds)


@pytest.mark.parametrize("missing", ["model.safetensors", "summary.json", ""])
def test_a_run_with_all_its_rounds_is_resumed_for_its_final_files(interrupted, missing):
    """Also if it has them and did not end."""
    for name in {"model.safetensors", "summary.json"} - {missing}:
        (interrupted / name).touch()
    assert resume(interrupted, num_rounds=2)[1].last_round == 2


def test_a_folder_without_a_checkpoint_is_not_resumed(refused, tmp_path):
    with refused(f"resume-from = {tmp_path}", "holds no checkpoint"):
        resume(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 60, -1], ids=lambda kept: f"[:{kept}]")
def test_a_checkpoint_that_is_cut_off_is_refused(refused, interrupted, kept):
    file = interrupted / "checkpoint" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with refused(file, "cannot be read"):
        resume(interrupted)


@pytest.mark.parametrize("metadata", [None, {"round": "two"}])
def test_a_checkpoint_that_does_not_say_its_round_is_refused(refused, interrupted, metadata):
    file = interrupted / "checkpoint" / "model.safetensors"
    save_file(ARRAYS, file, metadata)
    with refused(file):
        resume(interrupted)


@pytest.mark.parametrize("content", [None, "seed = \n", "sede = 1\n"])
def test_a_checkpoint_without_its_config_is_refused(refused, interrupted, content):
    file = interrupted / "config.toml"
    file.unlink() if content is None else file.write_text(content)
    with refused("sede" if content and "sede" in content else file):
        resume(interrupted)
