"""The results files of the benchmarks, and sweeps that are interrupted."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from common.results import read
from common.sweep import sweep

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "attacks")


def run(marks, number, name):
    """Leave a mark for each call, as a run would leave its figures."""
    (marks / f"{number}{name}").touch(exist_ok=False)
    return {"square": number**2}


JOBS = [{"number": number, "name": name} for number in range(3) for name in "ab"]


def test_a_sweep_writes_a_header_and_one_line_for_each_run(tmp_path):
    output = tmp_path / "new folder" / "results.jsonl"
    rows = sweep(partial(run, tmp_path), JOBS, output, {"colour": "blue"})
    assert rows == [{**job, "square": job["number"] ** 2} for job in JOBS]
    header, *lines = map(json.loads, output.read_text().splitlines())
    assert header["about"]["colour"] == "blue"
    assert header["about"]["torch"]
    assert sorted(lines, key=str) == sorted(rows, key=str)


def test_an_interrupted_sweep_resumes_where_its_file_ends(tmp_path):
    output = tmp_path / "results.jsonl"
    sweep(partial(run, tmp_path), JOBS[:4], output, {})
    kept = output.read_text().splitlines(keepends=True)[:3]
    output.write_text("".join(kept) + '{"number": 2, "na')  # stopped while it wrote a line
    for mark in tmp_path.iterdir():
        if mark != output:
            mark.unlink()
    rows = sweep(partial(run, tmp_path), JOBS, output, {})
    assert len(list(tmp_path.iterdir())) == 1 + len(JOBS) - 2
    assert [(row["number"], row["name"]) for row in rows] == [tuple(job.values()) for job in JOBS]
    assert output.read_text().splitlines(keepends=True)[1:3] == kept[1:]
    assert len(read(output).rows) == len(JOBS)


def test_a_finished_sweep_runs_nothing(tmp_path):
    output = tmp_path / "results.jsonl"
    rows = sweep(partial(run, tmp_path), JOBS, output, {})
    before = output.read_bytes()
    assert sweep(partial(run, tmp_path), JOBS, output, {"colour": "blue"}) == rows
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").iterdir()), ids=lambda path: path.name
)
def test_a_results_file_says_how_it_was_made(path):
    results = read(path)
    assert path.suffix == ".jsonl"
    assert {"date", "hardware", "python", "flwr", "torch"} <= results.about.keys()
    assert len(results.rows) == len(path.read_text().splitlines()) - 1 > 0


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_from_its_path(script):
    """The folder of a script comes first on the search path, and may hide no package."""
    command = [sys.executable, str(script), *([] if script.stem == "payloads" else ["--help"])]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT.parent)
