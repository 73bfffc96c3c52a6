"""What an owner is shown of a bundle."""

import unicodedata

import pytest

from fedattn_app.bundles.bundle import sha256_of
from fedattn_app.bundles.comparison import describe, differences, printable


def test_each_file_is_listed_with_its_size_and_hash(files, made):
    lines = list(describe(made(files)))
    assert len(lines) == len(files)
    content = files["app.py"].encode()
    assert lines[1].split() == [sha256_of(content), str(len(content)), "app.py"]


def test_differences_are_counted_by_file_and_then_shown(files, made):
    old = made(files)
    del files["README.md"]
    files["app.py"] += "import os\n"
    files["new.py"] = "a = 1\nb = 2\n"
    lines = list(differences(old, made(files)))
    assert [line.split() for line in lines[:3]] == [
        ["+0", "-1", "README.md", "(removed)"],
        ["+1", "-0", "app.py"],
        ["+2", "-0", "new.py", "(new", "file)"],
    ]
    assert lines[lines.index("--- a/app.py") + 1 :][:2] == ["+++ b/app.py", "@@ -1,2 +1,3 @@"]
    assert {"-# Small", "+import os", "+a = 1", "+b = 2"} <= set(lines)
    assert "--- /dev/null" in lines


def test_equal_files_have_no_differences(files, made):
    assert list(differences(made(files), made(dict(reversed(files.items()))))) == []


def test_an_empty_file_and_a_last_line_break_are_differences(files, made):
    old = made(files)
    new = made(files | {"empty.py": "", "app.py": files["app.py"].rstrip("\n")})
    lines = list(differences(old, new))
    assert "+++ b/empty.py" in lines
    assert "+server = None (no line break at the end)" in lines


@pytest.mark.parametrize(
    "hidden",
    [
        *("\x1b[2K\x1b[1A", "\r", "\b", "\x07", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\x9b"),
        *("\u202e", "\u2066", "\u200b", "\u200d", "\u2060", "\ufeff", "\xad", "\U000e0061"),
        *("\u2028", "\u2029", "\xa0", "\u3000", "\ue000", "\U0010ffff", "\u0378", "\u0301", "\t"),
    ],
)
def test_nothing_is_hidden_from_the_owner(hidden, files, made):
    old = made(files)
    files["app.py"] += f"import os{hidden}# harmless\n"
    (line,) = [line for line in differences(old, made(files)) if "harmless" in line]
    assert line.startswith("+import os\\")
    assert line.isascii()
    assert line.isprintable()
    assert line.endswith("# harmless")


def test_text_in_other_languages_stays_as_it_is():
    text = "# Müller, 医療, здоровье \\n {}[]"
    assert printable(text) == text


def test_every_control_and_format_character_is_escaped():
    for number in range(0x110000):
        character = chr(number)
        kind = unicodedata.category(character)
        hides = kind[0] in "CM" or kind in ("Zl", "Zp") or (kind == "Zs" and character != " ")
        hides |= character in "\u115f\u1160\u3164\uffa0\u2800"  # blank
        hides |= unicodedata.bidirectional(character) in ("R", "AL", "AN")  # moves its neighbours
        assert (len(printable(character)) > 1) == hides, hex(number)
