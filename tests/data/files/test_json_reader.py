"""JSON Lines and JSON arrays: each row is an object with the wanted keys, or there is an error."""

import gzip
import json

import pytest
from helpers.data_files import PARTITIONERS, load, pairs, rows_of, sentences, shares, together

from fedattn_app.config import DataConfig
from fedattn_app.data.sources import load_files

pytestmark = pytest.mark.usefixtures("fresh_caches")

OBJECTS = [{"text": text, "label": label} for text, label in sentences(9)]


def put(folder, lines, name="x.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(as_line, lines)) + "\n", encoding="utf-8")
    return path


def as_line(row):
    return row if isinstance(row, str) else json.dumps(row)


def test_an_array_is_read_like_lines(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("\ufeff\n " + json.dumps(OBJECTS, indent=2), encoding="utf-8")
    assert pairs(load(path).train) == sentences(9)


@pytest.mark.parametrize("name", ["x.json", "x.ndjson", "X.JSONL", "x.jsonl.gz", "x.json.gz"])
def test_lines_are_read_from_files_of_every_suffix(tmp_path, name):
    content = "\n\n".join(map(json.dumps, OBJECTS)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert pairs(load(tmp_path / name).train) == sentences(9)


def test_half_of_a_character_is_a_question_mark(tmp_path):
    lines = [*OBJECTS, '{"text": "cut \\ud83d", "label": "n\\udc00"}', '{"text":"","label":"neg"}']
    rows = pairs(load(put(tmp_path, lines)).train)
    assert rows[-2:] == [("cut ?", "n?"), ("", "neg")]


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_every_partitioner_splits_texts_and_labels_with_half_of_a_character(tmp_path, partitioner):
    lines = [
        f'{{"text": "cut {number} \\ud83d", "label": "{"ab"[number % 2]}\\ud83d", '
        f'"ward": "w{number % 2}\\udc00"}}'
        for number in range(20)
    ]
    settings = {"partitioner": partitioner, **PARTITIONERS[partitioner]}
    config = DataConfig(dataset="file", data_path=str(put(tmp_path, lines)), **settings)
    texts = [f"cut {number} ?" for number in range(20)]
    labels = ["ab"[number % 2] + "?" for number in range(20)]
    assert together(shares(config, 2)) == rows_of(texts, labels, ["a?", "b?"])


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("null", 'line 5: an object such as {"text": …, "label": …} is expected, not null'),
        ("1", "line 5: an object such as"),
        ("1.5", "not a number"),
        ("true", "not true or false"),
        ('"text"', "not a text"),
        ('["text", "label"]', "not a list"),
        ("[]", "not a list"),
        ("{'text': 'a'}", "line 5: not JSON"),
        ('{"text": "a", "label": "neg"} {"text": "b"}', "line 5: not JSON (Extra data)"),
        ('{"text": "a", "label": "neg", "text": "b"}', "line 5: cannot be read as JSON (an object"),
        ('{"text": "a", "label": "neg", "label": "neg"}', "the key 'label' twice"),
        ("[" * 100_000, "line 5: "),
        ('{"text": "a", "label": 1' + "0" * 5000 + "}", "line 5: cannot be read as JSON"),
        ('{"text": {"a": 1}, "label": "neg"}', "line 5: column 'text' holds an object"),
        ('{"text": "a", "label": ["neg"]}', "line 5: column 'label' holds a list, not"),
        ('{"text": "a", "label": null}', "line 5 has no label"),
        ('{"text": "a", "label": NaN}', "line 5 has no label"),
        ('{"sentence": "a", "label": "neg"}', "line 5: 'text' (text-column) is missing; the keys"),
        ('{"text": "a"}', "line 5: 'label' (label-column) is missing"),
        ('{"Text": "a", "label": "neg"}', "the keys in the file are text, label, Text"),
        ("{}", "line 5: 'text' (text-column) is missing"),
    ],
)
def test_a_line_that_is_not_such_an_object_is_refused_with_its_number(
    refused, tmp_path, line, part
):
    path = put(tmp_path, [*OBJECTS[:3], "", line, *OBJECTS[3:]])
    with refused(path, part):
        load(path)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "row 3: an object such as"),
        ({"label": "neg"}, "row 3: 'text' (text-column) is missing"),
        ({"text": "a", "label": None}, "row 3 has no label"),
    ],
)
def test_an_element_of_an_array_is_refused_with_its_number(refused, tmp_path, value, part):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([*OBJECTS[:2], value, *OBJECTS[2:]]))
    with refused(path, part):
        load(path)


def test_an_array_with_a_repeated_key_is_refused(refused, tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"text": "a", "label": "b", "text": "c", "text": "d"}]')
    with refused(path, "the key 'text' twice"):
        load(path)


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "x", "label": "neg", "label": "pos"}',
        '{"text": "x", "label": "neg", "te\\u0078t": 1}',
    ],
    ids=["as it is", "escaped"],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_a_repeated_key_is_found_beside_texts_with_braces(refused, tmp_path, row, is_array):
    rows = [json.dumps({"text": "a { b {", "label": "neg"}), row]
    (tmp_path / "x.json").write_text(f"[{','.join(rows)}]" if is_array else "\n".join(rows))
    with refused(f"{'row' if is_array else 'line'} 2: cannot be read", "twice"):
        load(tmp_path / "x.json")


def test_a_repeated_key_that_is_not_read_is_no_mistake(tmp_path):
    row = '{"text": "x", "label": "neg", "id": 1, "id": 2, "more": {"text": 1, "text": 2}}'
    assert pairs(load(put(tmp_path, [row])).train) == [("x", "neg")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.jsonl.gz"])
@pytest.mark.parametrize("line", ['["a"]', "[hello", "[]"])
def test_lines_are_no_array_whatever_the_first_is(refused, tmp_path, name, line):
    content = "\n".join([line, *map(json.dumps, OBJECTS)]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with refused(tmp_path / name, "line 1: "):
        load(tmp_path / name)
    config = DataConfig(dataset="file", data_path=str(tmp_path / name), labels="neg,pos")
    assert pairs(load_files(config, secret=True).train) == [("", ""), *sentences(9)]


@pytest.mark.parametrize(
    "content",
    [
        *('[{"text": "a", "label": "b"},]', '[{"text": "a", "label": "b"}', "[,]", '["a" "b"]'),
        *('[{"text": "a", "label": "b"}] []', '[{"text": "a", "label": "b}]', "[}]", "["),
    ],
)
def test_a_text_that_is_not_one_array_is_refused(refused, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with refused(tmp_path / "x.json: "):
        load(tmp_path / "x.json")


def test_a_key_is_no_repetition_where_it_is_part_of_a_text(tmp_path):
    row = {"text": 'the keys "text" and "label"', "label": "neg", "other": {"text": 1}}
    assert pairs(load(put(tmp_path, [row])).train) == [(row["text"], "neg")]


def test_the_error_says_how_many_rows_lack_the_key(refused, tmp_path):
    rows = [
        {"sentence" if number % 3 == 2 else "text": text, "label": label}
        for number, (text, label) in enumerate(sentences(60))
    ]
    path = put(tmp_path, rows)
    with refused(path, "line 3: 'text' (text-column) is missing, as in 19 other rows", "sentence"):
        load(path)
    with refused(path, "no column 'Text'", 'is it text-column = "text"?'):
        load(path, text_column="Text")


@pytest.mark.parametrize(
    "content",
    [
        *('{"data": [{"text": "a", "label": 1}]}', '{"data": [\n{"text": "a", "label": 1}\n]}'),
        '{\n"text": "a",\n"label": 1\n}\n{\n"text": "b",\n"label": 1\n}\n',
    ],
)
def test_another_structure_is_refused_with_what_is_expected(refused, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with refused("x.json", "one object on each line, or one array of objects"):
        load(tmp_path / "x.json")


def test_an_error_holds_no_half_of_a_character(refused, tmp_path):
    path = put(tmp_path, ['{"texts": "a", "cut\\ud83d": 1}'])
    with refused(path, "there are texts, cut?"):
        load(path)


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "{}\n", "[{}]"])
def test_no_rows_are_refused(refused, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with refused("x.json: is empty"):
        load(tmp_path / "x.json")


def test_null_texts_are_counted(tmp_path, refused, caplog):
    path = put(tmp_path, [*OBJECTS, {"text": None, "label": "pos"}, {"text": "", "label": "pos"}])
    assert pairs(load(path).train)[9:] == [("", "pos"), ("", "pos")]
    assert caplog.messages == [f"{path}: 2 of 11 texts are empty"]
    path = put(tmp_path, [{"text": None, "label": "neg"}] * 3)
    with refused(path, "column 'text' (text-column) is empty in every row"):
        load(path)


@pytest.mark.parametrize(
    "line",
    ["null", "no JSON", '{"text": "a", "label": "neg", "text": "b"}', "[" * 100_000, "{}", "[1]"],
)
def test_under_secret_a_malformed_line_is_one_example_without_effect(tmp_path, caplog, line):
    path = put(tmp_path, [*OBJECTS[:3], line, *OBJECTS[3:]])
    config = DataConfig(dataset="file", data_path=str(path), labels="neg,pos")
    rows = pairs(load_files(config, secret=True).train)
    assert rows == [*sentences(9)[:3], ("", ""), *sentences(9)[3:]]
    counted = [text for text in caplog.messages if "1 row could not be read" in text]
    assert len(counted) == (line != "{}")
    assert all("the first is line 4" in text for text in counted)


@pytest.mark.parametrize(
    "element",
    [
        *("null", "[1, [2]]", '{"text": "a", "label": "neg", "label": "pos"}', "{}", "hello"),
        *('{"text": "a, ]}", "label": }', '{"text": "a", "label": 1' + "0" * 5000 + "}"),
        '{"text": "\\"a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
@pytest.mark.parametrize("at", [0, 3, 9])
def test_under_secret_a_malformed_element_is_one_example_without_effect(tmp_path, element, at):
    elements = [*map(json.dumps, OBJECTS[:at]), element, *map(json.dumps, OBJECTS[at:])]
    (tmp_path / "x.json").write_text(f" [ {' ,'.join(elements)} ]\n")
    config = DataConfig(dataset="file", data_path=str(tmp_path / "x.json"), labels="neg,pos")
    rows = pairs(load_files(config, secret=True).train)
    assert rows == [*sentences(9)[:at], ("", ""), *sentences(9)[at:]]


@pytest.mark.parametrize("first", ['["a","b"]', "[hello", "[", "<html>", "%PDF", "PK\x03\x04"])
def test_under_secret_the_first_line_does_not_decide_about_the_others(tmp_path, first):
    config = DataConfig(
        dataset="file", data_path=str(put(tmp_path, [first, *OBJECTS])), labels="neg,pos"
    )
    assert pairs(load_files(config, secret=True).train) == [("", ""), *sentences(9)]


@pytest.mark.parametrize("other", ["z", "z {", "{{{"])
@pytest.mark.parametrize("key", ["text", "te\\u0078t"])
def test_a_key_that_stands_twice_is_found_whatever_other_rows_hold(tmp_path, refused, other, key):
    twice = f'{{"{key}": "a", "text": "b", "label": "pos"}}'
    path = tmp_path / "x.json"
    path.write_text(f"[{twice}, {json.dumps({'text': other, 'label': 'neg'})}]")
    with refused("an object has the key 'text' twice"):
        load(path)
    config = DataConfig(dataset="file", data_path=str(path), labels="neg,pos")
    assert pairs(load_files(config, secret=True).train) == [("", ""), (other, "neg")]
