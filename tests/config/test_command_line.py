"""Reading ``--run-config``: pairs, and files."""

import pytest

from fedattn_app.config import parse_run_config


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {}),
        ([""], {}),
        (["num-rounds=3"], {"num-rounds": 3}),
        (["num-rounds = 3\n seed= 4"], {"num-rounds": 3, "seed": 4}),
        (["alpha=1e-3 quiet=true"], {"alpha": 1e-3, "quiet": True}),
        (["""labels='no, not yet' dataset="a/b" """], {"labels": "no, not yet", "dataset": "a/b"}),
        ([r"shared='.*\.(query|key)\..*'"], {"shared": r".*\.(query|key)\..*"}),
        (["labels='a=b #c'"], {"labels": "a=b #c"}),
        (["seed=1 alpha=2", "seed=3"], {"seed": 3, "alpha": 2}),
        (["seed=1 seed=2"], {"seed": 2}),
    ],
)
def test_pairs_are_read(items, expected):
    assert parse_run_config(items) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("num-rounds", "key=value"),
        ("num-rounds=3 fast", "key=value"),
        ("=3", "key=value"),
        ("seed=", "key=value"),
        ("?!", "key=value"),
        ("seed==3", "seed"),
        ("strategy=fedavg", "put text in quotes"),
        ("labels='no", "quotes"),
    ],
)
def test_text_that_is_neither_pairs_nor_a_file_is_refused(refused, text, part):
    with refused(part, text.split("=")[0]):
        parse_run_config([text])


WINDOWS_PATHS = [
    r"C:\Users\me\x.csv",
    r"C:\me\data",
    r"C:\data" + "\\",
    r"C:\temp\new.csv",
    r"\\nas\x",
]


@pytest.mark.parametrize("path", WINDOWS_PATHS[:4])
def test_a_backslash_in_double_quotes_is_explained(refused, path):
    with refused(f'data-path = "{path}"', "write a backslash twice or as /, or use single quotes"):
        parse_run_config([f'seed=1 data-path="{path}"'])


@pytest.mark.parametrize("path", WINDOWS_PATHS)
def test_a_path_of_windows_can_be_given_in_three_ways(path):
    doubled, slashes = path.replace("\\", 2 * "\\"), path.replace("\\", "/")
    for text, value in ((f"'{path}'", path), (f'"{doubled}"', path), (f'"{slashes}"', slashes)):
        assert parse_run_config([f"data-path={text} seed=1"]) == {"data-path": value, "seed": 1}


@pytest.mark.parametrize("path", WINDOWS_PATHS[:2])
def test_a_backslash_in_a_toml_file_is_explained(refused, tmp_path, path):
    file = tmp_path / "run.toml"
    file.write_text(f'data-path = "{path}"\n')
    with refused(file, "not a TOML file", "write a backslash twice"):
        parse_run_config([str(file)])


def test_a_toml_file_is_read_and_later_items_win(tmp_path):
    file = tmp_path / "run config.toml"
    file.write_text('seed = 5  # five\nalpha = 2.0\nlabels = "né,oui"\n', encoding="utf-8")
    assert parse_run_config(["seed=1 num-rounds=2", str(file), "alpha=3.0"]) == {
        "seed": 5,
        "num-rounds": 2,
        "alpha": 3.0,
        "labels": "né,oui",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"seed = \n", "not a TOML file"),
        (b"seed = 1\nseed = 2\n", "not a TOML file"),
        (b'labels = "n\xe9"\n', "not a TOML file"),
    ],
)
def test_a_toml_file_that_cannot_be_read_is_refused(refused, tmp_path, content, reason):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with refused(file, reason):
        parse_run_config([str(file)])


def test_a_folder_in_place_of_a_toml_file_is_refused(refused, tmp_path):
    (tmp_path / "run.toml").mkdir()
    with refused(tmp_path / "run.toml", "cannot be read"):
        parse_run_config([str(tmp_path / "run.toml")])


def test_the_config_of_a_run_is_read_without_its_folders(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('seed = 5\noutput-dir = "a"\nresume-from = "b"\n[versions]\nflwr = "1"\n')
    assert parse_run_config([str(file)]) == {"seed": 5}


def test_a_number_with_thousands_of_digits_is_refused(refused, tmp_path):
    with refused("seed = 9999", "not a TOML value"):
        parse_run_config(["seed=" + "9" * 5000])
    (tmp_path / "run.toml").write_text("seed = " + "9" * 5000)
    with refused(tmp_path / "run.toml", "not a TOML file"):
        parse_run_config([str(tmp_path / "run.toml")])
