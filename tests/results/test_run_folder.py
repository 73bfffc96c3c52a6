"""A run's folder is written, read back, or refused."""

import tomllib

import numpy as np
import pytest
from helpers.run_folders import ARRAYS, begun, clients, make_config, rounds, row
from safetensors import safe_open

from fedattn_app.models.parameters import fingerprint
from fedattn_app.results.checkpoint import Checkpoint
from fedattn_app.results.run_result import RunResult

# Writing and reading


def test_what_is_written_is_read_back(tmp_path):
    summary = {"accuracy": 0.5, "epsilon": None, "recall_per_class": {"naïve": 0.5, "痛": None}}
    with begun(make_config(output_dir=str(tmp_path / "deep" / "run"))) as folder:
        assert folder.path == tmp_path / "deep" / "run"
        assert RunResult(folder.path).history == []
        for number in range(3):
            folder.add_round(row(number), clients(number))
        folder.finish(summary, ARRAYS, {"labels": '["naïve", "痛"]'})
    result = RunResult(folder.path)
    assert result.history == rounds(0, 1, 2)
    assert result.clients == [*clients(1), *clients(2)]
    assert result.summary == summary
    assert fingerprint(result.arrays) == fingerprint(ARRAYS)
    with safe_open(folder.path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"labels": '["naïve", "痛"]'}


def test_arrays_of_any_memory_layout_are_kept_as_they_are(tmp_path):
    arrays = {"column first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    settings = {"output_dir": str(tmp_path), "num_rounds": 2}
    with begun(make_config(**settings)) as folder:
        folder.write_checkpoint(1, arrays)
        folder.finish({}, arrays, {})
    assert fingerprint(RunResult(tmp_path).arrays) == fingerprint(arrays)
    assert fingerprint(Checkpoint.read(tmp_path).arrays) == fingerprint(arrays)


def test_each_round_is_there_as_soon_as_it_is_added(tmp_path):
    with begun(make_config(output_dir=str(tmp_path))) as folder:
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
    with begun(config):
        pass
    kept = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert {"python", "flwr", "torch", "opacus"} <= set(kept.pop("versions"))
    assert kept == config.to_run_config()


def test_without_a_name_a_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = set()
    for _ in range(3):  # within the same second
        with begun(make_config()) as folder:
            folder.add_round(row(0), [])
        assert folder.path.is_absolute()
        assert folder.path.parent == tmp_path / "runs"
        paths.add(folder.path)
    assert len(paths) == 3


def test_the_home_folder_may_be_named_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with begun(make_config(output_dir="~/run")) as folder:
        assert folder.path == tmp_path / "run"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    with refused(f"output-dir = {file / below}", "cannot be written"):
        begun(make_config(output_dir=str(file / below))).__enter__()


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_is(refused, interrupted):
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.is_file()}
    with refused(f"output-dir = {interrupted}", "already holds a run", "resume-from"):
        begun(make_config(output_dir=str(interrupted))).__enter__()
    assert {f: f.read_bytes() for f in interrupted.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("name", ["summary", "history", "clients", "arrays", "state"])
def test_a_folder_without_results_is_refused(refused, tmp_path, name):
    with refused(tmp_path, "cannot be read"):
        getattr(RunResult(tmp_path), name)
