"""Which folders a run may name on the server of an operator, and that nothing else is touched."""

import os
from pathlib import Path

import pytest

from fedattn_app.config import OutputConfig
from fedattn_app.results.confinement import RUNS_VARIABLE, confine

KEYS = ("output-dir", "resume-from")


def output_of(key, text):
    return OutputConfig(**{key.replace("-", "_"): str(text)})


@pytest.fixture
def root(tmp_path, monkeypatch):
    path = tmp_path / "allowed"
    path.mkdir()
    monkeypatch.setenv(RUNS_VARIABLE, str(path))
    return path


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").touch()
    return path


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("run", "run"),
        ("a/b/run", "a/b/run"),
        ("./run/", "run"),
        ("a/../run", "run"),
        ("{root}/run", "run"),
        ("{root}/a/../run", "run"),
        ("{link}/run", "run"),
        ("here/run", "there/run"),
        ("~", "~"),
        ("~root/run", "~root/run"),
    ],
)
def test_a_folder_inside_is_accepted_without_links(root, tmp_path, monkeypatch, key, text, below):
    (root / "there").mkdir()
    (root / "here").symlink_to("there")
    (tmp_path / "link").symlink_to(root)
    before = listing(tmp_path)
    for allowed in (root, tmp_path / "link"):
        monkeypatch.setenv(RUNS_VARIABLE, str(allowed))
        given = text.format(root=root, link=allowed)
        assert confine(output_of(key, given)) == (output_of(key, root / below), str(root))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "..",
            ".",
            "run/..",
            "../outside",
            "../allowed2",
            "a/../../outside",
            "a/../../allowed/run",
        ),
        *("/", "/etc/passwd", "{root}", "{root}/", "{root}/..", "{root}/../outside", "{root}2/run"),
        *("{outside}", "{outside}/file", "{outside}/gone", "{outside}/file/below"),
        *("{outside}/../allowed/run", "{outside}/back/run", "/../{root}", "//{root}/../.."),
        *("out", "out/run", "out/gone", "dangling", "loop/../../x", "out/../run/../../outside"),
        *("a\0b", "../" * 5000, "/" + "x" * 50_000, "a/" * 19_999 + "../" * 19_999 + ".."),
    ],
    ids=lambda text: text[:24],
)
def test_any_other_folder_is_refused_with_one_text(refused, root, tmp_path, outside, key, text):
    (root / "out").symlink_to(outside)
    (root / "dangling").symlink_to(tmp_path / "gone")
    (root / "loop").symlink_to("loop")
    (outside / "back").symlink_to(root)
    before = listing(tmp_path)
    with refused(f"{key} = ", f": must be inside {RUNS_VARIABLE} = {root}, the folder for"):
        confine(output_of(key, text.format(root=root, outside=outside)))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("key", KEYS)
def test_nothing_outside_is_looked_at(refused, root, outside, key, monkeypatch):
    looked_at = []

    def watched(name):
        real = getattr(os, name)

        def call(path, *arguments, **options):
            looked_at.append(Path(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "readlink", "scandir", "open"):
        watched(name)
    for text in (outside / "file", "../outside/file", f"{outside}/../allowed/run"):
        with refused(f"{key} = "):
            confine(output_of(key, text))
    assert not [path for path in looked_at if outside in (path, *path.parents)]


def test_a_run_that_names_no_folder_gets_one_in_that_of_the_operator(root, tmp_path, monkeypatch):
    assert confine(OutputConfig()) == (OutputConfig(), str(root))
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "link"))
    assert confine(OutputConfig()) == (OutputConfig(), str(root))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("text", ["run", "runs/run", "/etc/passwd", "/gone", "a\0b"])
def test_without_the_variable_no_folder_may_be_named(refused, monkeypatch, key, value, text):
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(RUNS_VARIABLE, value)
    assert confine(OutputConfig()) == (OutputConfig(), "runs")
    with refused(f"{key} = ", "may not name a folder", "operator", RUNS_VARIABLE):
        confine(output_of(key, text))


@pytest.mark.parametrize("value", ["runs", "~/runs", "."])
def test_the_operator_must_give_an_absolute_path(refused, monkeypatch, value):
    monkeypatch.setenv(RUNS_VARIABLE, value)
    with refused(f'{RUNS_VARIABLE} = "{value}"', "absolute"):
        confine(OutputConfig())
