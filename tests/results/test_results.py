"""A run's folder: written, read back, carried on or refused; and scores per class."""

import tomllib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedattn_app.config import Config
from fedattn_app.models.parameters import fingerprint
from fedattn_app.results.run_folder import RunFolder, RunResult

ARRAYS = {
    "weight": np.float32([[1.5, -0.0, 3], [np.nan, 1e-45, 6]]),
    "bias": np.arange(3, dtype=np.float32),
}
LATER = {name: array + 1 for name, array in ARRAYS.items()}
CLIENTS = [{"partition": 0, "accuracy": 0.25}, {"partition": 1, "accuracy": 0.5}]


def make_config(**settings):
    return Config.from_run_config({key.replace("_", "-"): v for key, v in settings.items()})


def row(server_round):
    return {"round": server_round, "seconds": 0.5, "train": {"loss": 1.0}, "epsilon_max": None}


def clients(server_round):
    return [{"round": server_round, **client} for client in CLIENTS] if server_round else []


def rounds(*numbers):
    return [row(number) for number in numbers]


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run of 5 rounds that was stopped between the third and its checkpoint."""
    folder = RunFolder(make_config(output_dir=str(tmp_path / "run"), num_rounds=5, dropout=0.25))
    for number in range(4):
        folder.add_round(row(number), clients(number))
        if number < 3:
            folder.checkpoint(number, LATER if number == 2 else ARRAYS)
    return folder.path


def carry_on(path, **settings):
    return RunFolder(
        make_config(**{"resume_from": str(path), "num_rounds": 5, "dropout": 0.25, **settings})
    )


# Writing and reading


def test_what_is_written_is_read_back(tmp_path):
    folder = RunFolder(make_config(output_dir=str(tmp_path / "deep" / "run")))
    assert folder.path == tmp_path / "deep" / "run"
    assert (folder.arrays, folder.earlier) == ({}, [])
    result = RunResult(folder.path)
    for number in range(3):
        folder.add_round(row(number), clients(number))
    summary = {"accuracy": 0.5, "epsilon": None, "recall_per_class": {"naïve": 0.5, "痛": None}}
    folder.finish(summary, ARRAYS, {"labels": '["naïve", "痛"]'})
    assert result.history == rounds(0, 1, 2)
    assert result.clients == [*clients(1), *clients(2)]
    assert result.summary == summary
    assert fingerprint(result.arrays) == fingerprint(ARRAYS)
    with safe_open(folder.path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"labels": '["naïve", "痛"]'}


def test_arrays_of_any_memory_layout_are_kept_as_they_are(tmp_path):
    arrays = {"column first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    settings = {"output_dir": str(tmp_path), "num_rounds": 2}
    folder = RunFolder(make_config(**settings))
    folder.checkpoint(1, arrays)
    folder.finish({}, arrays, {})
    assert fingerprint(RunResult(tmp_path).arrays) == fingerprint(arrays)
    resumed = RunFolder(make_config(**settings, resume_from=str(tmp_path)))
    assert fingerprint(resumed.arrays) == fingerprint(arrays)


def test_each_round_is_there_as_soon_as_it_is_added(tmp_path):
    folder = RunFolder(make_config(output_dir=str(tmp_path)))
    for number in range(3):
        folder.add_round(row(number), clients(number))
        assert RunResult(tmp_path).history == rounds(*range(number + 1))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": 1e-5, "weight_decay": 1e22, "num_rounds": 10**12, "seed": 2**32 - 1},
        {"labels": 'say "no",it\'s yes', "dataset": "file", "data_path": r"C:\data\new.csv"},
        {"labels": "naïve,痛,😀", "text_column": "two\nlines\ttab"},
    ],
)
def test_the_config_is_kept_as_toml_with_the_versions(tmp_path, settings):
    config = make_config(**settings, output_dir=str(tmp_path))
    RunFolder(config)
    kept = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert {"python", "flwr", "torch", "opacus"} <= set(kept.pop("versions"))
    assert kept == config.to_run_config()


def test_without_a_name_a_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(make_config())
    assert folder.path.is_absolute()
    assert folder.path.parent == tmp_path / "runs"


def test_the_home_folder_may_be_named_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder(make_config(output_dir="~/run")).path == tmp_path / "run"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    with refused(f"output-dir = {file / below}", "cannot be written"):
        RunFolder(make_config(output_dir=str(file / below)))


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_is(refused, interrupted):
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.is_file()}
    with refused(f"output-dir = {interrupted}", "holds a run already", "resume-from"):
        RunFolder(make_config(output_dir=str(interrupted)))
    assert {f: f.read_bytes() for f in interrupted.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("name", ["summary", "history", "clients", "arrays"])
def test_a_folder_without_results_is_refused(refused, tmp_path, name):
    with refused(tmp_path, "cannot be read"):
        getattr(RunResult(tmp_path), name)


# Carrying a run on


def test_a_run_carries_on_from_its_checkpoint_in_its_own_folder(interrupted):
    folder = carry_on(interrupted)
    assert folder.path == interrupted
    assert fingerprint(folder.arrays) == fingerprint(LATER)
    assert folder.earlier == rounds(0, 1, 2)
    folder.add_round(row(3), clients(3))
    result = RunResult(interrupted)
    assert result.history == rounds(0, 1, 2, 3)
    assert result.clients == [*clients(1), *clients(2), *clients(3)]


def test_a_run_carries_on_in_another_folder_and_leaves_the_first_alone(interrupted, tmp_path):
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.is_file()}
    folder = carry_on(interrupted, output_dir=str(tmp_path / "other"))
    assert folder.path == tmp_path / "other"
    assert fingerprint(folder.arrays) == fingerprint(LATER)
    assert RunResult(folder.path).history == rounds(0, 1, 2)
    assert {f: f.read_bytes() for f in interrupted.rglob("*") if f.is_file()} == before


def test_a_run_that_was_carried_on_can_be_carried_on_again(interrupted):
    carry_on(interrupted).checkpoint(3, ARRAYS)
    again = carry_on(interrupted)
    assert fingerprint(again.arrays) == fingerprint(ARRAYS)


@pytest.mark.parametrize("name", ["history.jsonl", "clients.jsonl"])
def test_a_line_that_was_cut_off_while_it_was_written_does_no_harm(interrupted, name):
    file = interrupted / name
    file.write_bytes(file.read_bytes()[:-9])
    folder = carry_on(interrupted)
    assert folder.earlier == rounds(0, 1, 2)
    assert RunResult(interrupted).clients == [*clients(1), *clients(2)]


@pytest.mark.parametrize(
    "settings",
    [{"num_rounds": 3}, {"fraction_evaluate": 0.5}, {"min_clients": 2}, {"round_timeout": 60.0}],
)
def test_a_run_may_carry_on_with_another(interrupted, settings):
    assert carry_on(interrupted, **settings).earlier == rounds(0, 1, 2)


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
def test_a_run_carries_on_with_the_settings_it_began_with(
    refused, interrupted, settings, began_with
):
    [(key, value)] = settings.items()
    with refused(f"{key.replace('_', '-')} = {value!r}", repr(began_with), interrupted):
        carry_on(interrupted, **settings)


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_a_run_that_has_its_rounds_is_not_carried_on(refused, interrupted, num_rounds):
    with refused(f"num-rounds = {num_rounds}", "2 rounds already"):
        carry_on(interrupted, num_rounds=num_rounds)


def test_a_folder_without_a_checkpoint_is_not_carried_on(refused, tmp_path):
    with refused(f"resume-from = {tmp_path}", "holds no checkpoint"):
        carry_on(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 60, -1], ids=lambda kept: f"[:{kept}]")
def test_a_checkpoint_that_is_cut_off_is_refused(refused, interrupted, kept):
    file = interrupted / "checkpoint" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with refused(file, "cannot be read"):
        carry_on(interrupted)


@pytest.mark.parametrize("metadata", [None, {"round": "two"}])
def test_a_checkpoint_that_does_not_say_its_round_is_refused(refused, interrupted, metadata):
    file = interrupted / "checkpoint" / "model.safetensors"
    save_file(ARRAYS, file, metadata)
    with refused(file):
        carry_on(interrupted)


@pytest.mark.parametrize("content", [None, "seed = \n", "sede = 1\n"])
def test_a_checkpoint_without_its_config_is_refused(refused, interrupted, content):
    file = interrupted / "config.toml"
    file.unlink() if content is None else file.write_text(content)
    with refused("sede" if content and "sede" in content else file):
        carry_on(interrupted)
